"""The compiled policy: answers who a key belongs to, which authorities are served, and one question at a time,
`decide`.

Routes are found by authority, then by workload, then through a trie of the literal leading segments of their patterns,
so ten thousand routes cost what ten do. The order of choice (docs/reference/policy.md, "Which route"): exact host
before wildcard, then the more specific path, then listed methods before all. Ties cannot occur: the loader refuses
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from policies.grant import DefaultAction, Denial, DenialCode, Grant, Passage, Question
from policies.model import (
    AnyProof,
    DenyEntry,
    Http2,
    KeyHashProof,
    PeerProof,
    Route,
    SecretSpec,
    Workload,
)
from policies.paths import DEEP, END, PathPattern, parse_pattern, read_path
from policies.sign import TransitUse, transit_use
from policies.verify import VERIFIED, verifying_use

if TYPE_CHECKING:
    from policies.examples import PolicyTest

NEVER_BY_DEFAULT: Final = frozenset({"TRACE", "TRACK", "CONNECT"})
"""What echoes a whole request (TRACK is another name some servers give TRACE) or opens a tunnel. Compared in upper case: methods are
case-sensitive, but not every server reads them so."""
_EVERYTHING: Final = parse_pattern("/**")
MAX_REMEMBERED: Final = 4096
"""Answers kept; then all are forgotten. Paths with ids in them would fill any memory."""
MAX_REMEMBERED_PATH: Final = 256


@dataclass(slots=True)
class _Leaf:
    """One pattern of one route."""

    order: tuple[bool, tuple[int, ...], bool]
    route: Route
    pattern: PathPattern
    strict: bool
    slash: bool


@dataclass(slots=True)
class _Node:
    """A step in the trie of literal leading segments."""

    below: dict[str, _Node] = field(default_factory=dict)
    here: list[_Leaf] = field(default_factory=list)


@dataclass(slots=True)
class _Bucket:
    """Routes of one authority that name one workload."""

    root: _Node = field(default_factory=_Node)
    methods: set[str] | None = field(default_factory=set)
    """Union over the routes; None once one takes all."""
    slash: bool = False


def _every_pattern(route: Route) -> Iterator[PathPattern]:
    yield from route.paths or ()
    for allow in route.allow:
        yield from allow.paths or ()
    for deny in route.deny:
        yield from deny.paths or ()


class Policy:
    """A loaded, compiled, immutable policy.

    Args:
        version: short hash of the files it was loaded from.
        workloads: by name.
        routes: by name.
        tests: the examples it carries.
        default: what becomes of authorities that no route names.
    """

    def __init__(
        self,
        version: str,
        workloads: Mapping[str, Workload],
        routes: Mapping[str, Route],
        tests: tuple[PolicyTest, ...] = (),
        *,
        default: DefaultAction = "deny",
    ) -> None:
        self.version = version
        self.default: DefaultAction = default
        self.workloads = dict(workloads)
        self.routes = dict(routes)
        self.tests = tests
        self._answers: dict[Question, Grant | Denial] = {}
        self._keys: dict[str, str] = {}
        self._peers: dict[int, tuple[str, ...]] = {}
        self._exact: dict[tuple[str, int], dict[str, _Bucket]] = {}
        self._wild: dict[tuple[str, int], dict[str, _Bucket]] = {}
        self._http2: dict[tuple[str, int], set[Http2]] = {}
        """What the routes of an authority say; a wildcard stands with its star."""
        self._reverse: dict[str, dict[str, _Bucket]] = {}
        """By reverse listener, then by workload."""
        self._reverse_http2: set[str] = set()
        """Reverse listeners with a route that prefers HTTP/2."""
        self.workloads_with_any = tuple(
            name for name, one in workloads.items() if any(isinstance(proof, AnyProof) for proof in one.proofs)
        )
        """Workloads with the proof `any: true`; each needs a listener that names it."""
        self.provable_by_any = frozenset(self.workloads_with_any)
        for workload in workloads.values():
            for proof in workload.proofs:
                match proof:
                    case KeyHashProof(sha256=sha256):
                        self._keys[sha256] = workload.name
                    case PeerProof(uid=uid):
                        self._peers[uid] = (*self._peers.get(uid, ()), workload.name)
        for route in routes.values():
            self._index(route)

    def _index(self, route: Route) -> None:
        for host in route.hosts if route.forward else ():
            table, name = (self._wild, host.text[2:]) if host.wildcard else (self._exact, host.text)
            self._http2.setdefault((host.text, route.port), set()).add(route.http2)
            _put(table.setdefault((name, route.port), {}), route, exact=not host.wildcard)
        for listener in route.listeners:
            _put(self._reverse.setdefault(listener, {}), route, exact=True)
            if route.http2 == "prefer":
                self._reverse_http2.add(listener)

    # --- who ---

    def workload_for_key(self, sha256: str) -> str | None:
        """The workload whose caller key has this SHA-256 (lower-case hex)."""
        return self._keys.get(sha256)

    def workloads_for_peer(self, uid: int) -> tuple[str, ...]:
        """Workloads that a Unix-socket peer of this uid may be."""
        return self._peers.get(uid, ())

    # --- where ---

    def _asked(self, question: Question) -> Iterator[_Bucket]:
        if question.listener is None:
            yield from self._buckets(question.host, question.port, question.workload)
        elif (found := self._reverse.get(question.listener, {}).get(question.workload)) is not None:
            yield found

    def _buckets(self, host: str, port: int, workload: str) -> Iterator[_Bucket]:
        """Exact before wildcard."""
        exact = self._exact.get((host, port))
        if exact is not None and (found := exact.get(workload)) is not None:
            yield found
        if self._wild:
            wild = self._wild.get((host.partition(".")[2], port))
            if wild is not None and (found := wild.get(workload)) is not None:
                yield found

    def serves(self, host: str, port: int) -> bool:
        """Whether any route names this authority."""
        return (host, port) in self._exact or (host.partition(".")[2], port) in self._wild

    def serves_workload(self, host: str, port: int, workload: str) -> bool:
        """Whether any route of this authority names the workload."""
        return next(self._buckets(host, port, workload), None) is not None

    def passage(self, host: str, port: int) -> Passage | None:
        """Whether a tunnel to this authority is passed on unopened. An authority that any route names never is: whoever
        the route does not name has no business there.
        """
        if self.default == "deny" or self.serves(host, port):
            return None
        return Passage(self.default)

    def http2(self, host: str, port: int) -> Http2:
        """What a caller of this authority is to be met with, before any request says which route it is for.

        One route that prefers HTTP/2 is enough for `prefer`; `never` is what all of them say.
        """
        said = {
            *self._http2.get((host, port), ()),
            *self._http2.get((f"*.{host.partition('.')[2]}", port), ()),
        }
        if "prefer" in said:
            return "prefer"
        return "never" if said == {"never"} else "auto"

    def prefers_http2(self, listener: str) -> bool:
        """Whether a route of this reverse listener says `http2: prefer`."""
        return listener in self._reverse_http2

    def takes_senders(self, listener: str) -> bool:
        """Whether a route of this reverse listener allows whoever signed the request."""
        return VERIFIED in self._reverse.get(listener, ())

    # --- what ---

    def decide(self, question: Question) -> Grant | Denial:
        """The answer to one question. A policy never changes, so neither does the answer: it is remembered."""
        known = self._answers.get(question)
        if known is None:
            known = self._decide(question)
            if len(question.path) <= MAX_REMEMBERED_PATH:
                if len(self._answers) >= MAX_REMEMBERED:
                    self._answers.clear()
                self._answers[question] = known
        return known

    def _decide(self, question: Question) -> Grant | Denial:
        buckets = tuple(self._asked(question))
        named = question.host if question.listener is None else question.to
        if not buckets:
            return Denial("route_denied", f"No route to {question.to} for workload {question.workload}.")
        method = question.method
        if not any(
            (bucket.methods is None and method.upper() not in NEVER_BY_DEFAULT)
            or (bucket.methods is not None and method in bucket.methods)
            for bucket in buckets
        ):
            return Denial(
                "method_denied",
                f"No route to {named} allows {_shown(method)} for workload {question.workload}.",
                _only(buckets),
            )
        for bucket in buckets:
            best = _best(bucket, question)
            if best is not None:
                return _judge(best, question)
        return Denial(
            "path_denied",
            f"No route to {named} allows this path with {_shown(method)} for workload {question.workload}.",
            _only(buckets),
        )

    def secret_refs(self) -> tuple[tuple[str, SecretSpec], ...]:
        """Every secret that a route may read, each with a name of a route that does; for `check --live`."""
        found: dict[SecretSpec, str] = {}
        for name, secret in self.secret_uses():
            found.setdefault(secret, name)
        return tuple((name, secret) for secret, name in found.items())

    def secret_uses(self) -> tuple[tuple[str, SecretSpec], ...]:
        """Every secret of every route, by the route's name."""
        return tuple((route.name, secret) for route in self.routes.values() for secret in route.secrets())

    def transit_uses(self) -> tuple[tuple[str, TransitUse], ...]:
        """What is asked of each key that stays in Vault, each once, with a name of a route that asks it."""
        found: dict[TransitUse, str] = {}
        for route in self.routes.values():
            for use in (*map(transit_use, route.sign), verifying_use(route.verify)):
                if use is not None:
                    found.setdefault(use, route.name)
        return tuple((name, use) for use, name in found.items())


def _put(buckets: dict[str, _Bucket], route: Route, *, exact: bool) -> None:
    """Adds a route under each workload that it names."""
    patterns = route.paths or (_EVERYTHING,)
    strict = any(not pattern.everything for pattern in _every_pattern(route))
    slash = any(pattern.encoded_slash for pattern in _every_pattern(route))
    for workload in frozenset[str]().union(*(entry.workloads for entry in route.allow)):
        bucket = buckets.setdefault(workload, _Bucket())
        bucket.slash = bucket.slash or slash
        if route.methods is None:
            bucket.methods = None
        elif bucket.methods is not None:
            bucket.methods |= route.methods
        for pattern in patterns:
            node = bucket.root
            for segment in pattern.literal_prefix:
                node = node.below.setdefault(segment, _Node())
            rank = (DEEP, END) if route.paths is None else pattern.rank
            node.here.append(_Leaf((exact, rank, route.methods is not None), route, pattern, strict, slash))


def _shown(method: str) -> str:
    return method if method.isascii() and method.isprintable() and len(method) <= 32 else "this method"


def _only(buckets: Iterable[_Bucket]) -> str | None:
    """The one route that could have been meant, if there is just one: for records."""
    names: set[str] = set()
    for bucket in buckets:
        stack = [bucket.root]
        while stack and len(names) < 2:
            node = stack.pop()
            names.update(leaf.route.name for leaf in node.here)
            stack.extend(node.below.values())
    return next(iter(names)) if len(names) == 1 else None


def _best(bucket: _Bucket, question: Question) -> Route | None:
    plain = read_path(question.path)
    slashed = read_path(question.path, encoded_slash=True) if plain is None and bucket.slash else plain
    canonical = plain if plain is not None else slashed
    best: _Leaf | None = None
    node: _Node | None = bucket.root
    steps = iter(canonical[1:].split("/")) if canonical is not None else iter(())
    while node is not None:
        for leaf in node.here:
            if (best is None or leaf.order > best.order) and _fits(leaf, question, plain, slashed):
                best = leaf
        segment = next(steps, None)
        node = node.below.get(segment) if segment is not None else None
    return None if best is None else best.route


def _fits(leaf: _Leaf, question: Question, plain: str | None, slashed: str | None) -> bool:
    methods = leaf.route.methods
    if question.method.upper() in NEVER_BY_DEFAULT if methods is None else question.method not in methods:
        return False
    if not leaf.strict:
        return True
    canonical = slashed if leaf.slash else plain
    return canonical is not None and leaf.pattern.matches(canonical)


def _judge(route: Route, question: Question) -> Grant | Denial:
    """The chosen route's answer, which is final: deny first, then the first grant that holds."""
    slash = any(pattern.encoded_slash for pattern in _every_pattern(route))
    canonical = read_path(question.path, encoded_slash=slash)
    for deny in route.deny:
        if _denies(deny, question, canonical):
            code: DenialCode = (
                "path_denied"
                if deny.paths is not None
                else "method_denied"
                if deny.methods is not None
                else "access_denied"
            )
            return Denial(
                code, f"Route {route.name} denies this to workload {question.workload}.", route.name, deny.rule
            )
    failed: Denial | None = None
    for entry in route.allow:
        if question.workload not in entry.workloads:
            continue
        if entry.methods is not None and question.method not in entry.methods:
            failed = failed or Denial(
                "method_denied",
                f"Route {route.name} does not grant this method to workload {question.workload}.",
                route.name,
                entry.rule,
            )
            continue
        if entry.paths is not None and (
            canonical is None or not any(pattern.matches(canonical) for pattern in entry.paths)
        ):
            failed = Denial(
                "path_denied",
                f"Route {route.name} does not grant this path to workload {question.workload}.",
                route.name,
                entry.rule,
            )
            continue
        return Grant(question.workload, route, entry.rule, entry.credential or route.credential)
    return failed or Denial(
        "access_denied", f"Route {route.name} grants nothing to workload {question.workload}.", route.name
    )


def _denies(deny: DenyEntry, question: Question, canonical: str | None) -> bool:
    if deny.workloads is not None and question.workload not in deny.workloads:
        return False
    if deny.methods is not None and question.method not in deny.methods:
        return False
    if deny.paths is None:
        return True
    if canonical is None:
        return True
    # Most servers serve `/x/` as `/x`: what is denied there is denied here.
    trimmed = canonical.rstrip("/") or "/"
    return any(pattern.matches(canonical) or pattern.matches(trimmed) for pattern in deny.paths)
