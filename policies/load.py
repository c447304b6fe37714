"""Loads policy files: YAML into one frozen, compiled `Policy`, or every fault of all files at once.

Several files make one policy: names are shared, and a name defined twice is a fault that tells both places. A file with
rights of its own is held to them in `load_rights.py`. What a key means is judged in `load_parts.py` (small values), `load_workloads.py` (who) and `load_routes.py` (what); this module
reads files, puts them together and checks what only the whole can show: names that exist, ties, unused things.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Final, cast

from policies.document import Entry, Node, kind_of, read_file
from policies.document import Mapping as MappingNode
from policies.examples import PolicyTest, read_test
from policies.faults import FaultError, Faults, Place, nearest
from policies.fields import Fields
from policies.grant import DefaultAction
from policies.keys import FILE
from policies.load_boundaries import Boundaries
from policies.load_parts import NAME, Context
from policies.load_presets import Presets
from policies.load_rights import Limits
from policies.load_routes import read_credential, read_route
from policies.load_workloads import read_group, read_workload
from policies.matcher import Policy
from policies.model import CredentialSpec, KeyHashProof, PresetUse, Route, Workload
from policies.paths import can_meet, parse_pattern
from policies.rights import Rights
from policies.verify import VERIFIED

_EVERYTHING: Final = parse_pattern("/**")


@dataclass(slots=True)
class _Named:
    """Definitions of one kind over all files: name to the entry that defined it."""

    kind: str
    entries: dict[str, tuple[Entry, Path]] = field(default_factory=dict)

    def collect(self, node: Node | None, path: Path, faults: Faults) -> None:
        if node is None:
            return
        if not isinstance(node, MappingNode):
            faults.add(node.place, f"{self.kind}s must be a mapping of names, not {kind_of(node)}")
            return
        for entry in node:
            if not NAME.fullmatch(entry.key):
                faults.add(
                    entry.key_place,
                    f"{entry.key!r} is no name for a {self.kind}",
                    "use letters, digits, dots, dashes and underscores",
                )
            elif entry.key in self.entries:
                faults.add(
                    entry.key_place,
                    f"{self.kind} {entry.key!r} is already defined at {self.entries[entry.key][0].key_place}",
                    "rename one of them",
                )
            else:
                self.entries[entry.key] = (entry, path)


@dataclass(frozen=True, slots=True)
class _Default:
    text: str
    place: Place


def load_policy(
    files: Sequence[Path],
    *,
    rights: Mapping[Path, Rights | None] | None = None,
    variables: Mapping[str, str] | None = None,
    base: Path | None = None,
    held: Mapping[Path, bytes] | None = None,
    seen: Callable[[Path, bytes], object] | None = None,
) -> Policy:
    """Loads and compiles a policy.

    Args:
        files: in the order in which they were named; order changes nothing but the version.
        rights: what each file may write; None, and a file that does not stand there, may write everything.
        variables: what `${name}` stands for in secret paths.
        base: faults name files relative to it where they lie below it.
        held: what files held when somebody else read them; they are not read again.
        seen: is given each file with the bytes that were read.

    Raises:
        FaultError: every fault of every file.
    """
    faults = Faults()
    context = Context(faults, dict(variables or {}), Path())
    limits = Limits(rights or {}, context)
    digest = hashlib.sha256()
    workloads, groups, credentials, routes = _Named("workload"), _Named("group"), _Named("credential"), _Named("route")
    own = _Named("preset")
    tests: list[tuple[Node, Path]] = []
    default: _Default | None = None

    def read(raw: bytes) -> None:
        digest.update(raw + b"\x00")
        if seen is not None:
            seen(path, raw)

    for path in files:
        try:
            root = read_file(path, shown_as=shown_path(path, base), seen=read, held=(held or {}).get(path))
        except FaultError as error:
            faults.found.extend(error.faults)
            continue
        limits.kinds(root, path)
        keys = Fields(root, faults, "the policy", known=FILE)
        keys.choice("version", {"1"})
        default = _default(keys, default)
        workloads.collect(keys.node("workloads"), path, faults)
        groups.collect(keys.node("groups"), path, faults)
        credentials.collect(keys.node("credentials"), path, faults)
        routes.collect(keys.node("routes"), path, faults)
        own.collect(keys.node("presets"), path, faults)
        tests.extend((node, path) for node in keys.nodes("tests"))
    for name, entry in ((name, entry) for name, (entry, _) in groups.entries.items() if name in workloads.entries):
        faults.add(entry.key_place, f"{name!r} names both a group and a workload", "rename one of them")
    for entry, _ in (*workloads.entries.values(), *groups.entries.values()):
        if entry.key == VERIFIED:
            faults.add(entry.key_place, f"{VERIFIED!r} stands for whoever signed a request", "use another name")
    known = {name: read_workload(name, entry.value, context) for name, (entry, _) in workloads.entries.items()}
    members = {name: read_group(name, entry.value, known, context) for name, (entry, _) in groups.entries.items()}
    presets = Presets(context, own.entries)
    uses = _put_presets(presets, routes, limits)
    for preset in presets.used:
        digest.update(preset.raw + b"\x00")
    _limited(limits, workloads, groups, credentials, routes, tests, members)
    shared: dict[str, CredentialSpec] = {}
    for name, (entry, path) in credentials.entries.items():
        spec = read_credential(name, entry.value, context.beside(path))
        if spec is not None:
            shared[name] = spec
    used: set[str] = set()
    loaded: dict[str, Route] = {}
    for name, (entry, path) in routes.entries.items():
        route = read_route(
            name,
            entry,
            context.beside(path),
            workloads=known,
            groups=members,
            credentials=shared,
            defined=set(credentials.entries),
            used=used,
        )
        if route is not None:
            loaded[name] = replace(route, presets=uses[name]) if name in uses else route
    for name, (entry, _) in credentials.entries.items():
        if name not in used and not faults:
            faults.add(entry.key_place, f"no route uses credential {name!r}", "name it in a route or remove it")
    _unique_keys(known, workloads, faults)
    if not faults:
        Boundaries(limits, workloads.entries, routes.entries).judge(known, loaded)
    if not faults:
        _ties(loaded, faults)
    examples = _examples(tests, known, loaded, faults)
    faults.raise_any()
    action = cast("DefaultAction", default.text) if default is not None else "deny"
    return Policy(digest.hexdigest()[:12], known, loaded, examples, default=action)


def _put_presets(presets: Presets, routes: _Named, limits: Limits) -> dict[str, PresetUse]:
    """Puts presets into the routes that use them, and holds each own preset to the rights of the file it stands in: what
    a route of another file makes of its parameters, too. What each route has from presets.
    """
    presets.define()
    for entry, path in presets.own.values():
        limits.preset(entry, path)
    uses: dict[str, PresetUse] = {}
    for name, (entry, path) in list(routes.entries.items()):
        if not isinstance(entry.value, MappingNode) or entry.value.get("use") is None:
            continue
        expanded = presets.expand(name, entry)
        if expanded is None:
            del routes.entries[name]  # what it lacks is not its own fault
            continue
        routes.entries[name] = (expanded.entry, path)
        uses[name] = expanded.use
        for used in expanded.used:
            home = used.preset.home
            if home is not None and limits.of(home) is not limits.of(path):
                limits.preset(Entry(name, used.preset.place, used.written), home)
    return uses


def _limited(
    limits: Limits,
    workloads: _Named,
    groups: _Named,
    credentials: _Named,
    routes: _Named,
    tests: Sequence[tuple[Node, Path]],
    members: Mapping[str, frozenset[str]],
) -> None:
    """Holds each definition to the rights of the file it stands in."""
    if not limits.any:
        return
    for entry, path in workloads.entries.values():
        limits.workload(entry, path)
    for entry, path in groups.entries.values():
        limits.group(entry, path)
    for entry, path in credentials.entries.values():
        limits.credential(entry, path)
    for entry, path in routes.entries.values():
        limits.route(entry, path, members, credentials.entries)
    for node, path in tests:
        limits.test(node, path)


def shown_path(path: Path, base: Path | None) -> str:
    """How faults name a file: relative to `base` where it lies below it."""
    if base is not None:
        try:
            return str(path.relative_to(base))
        except ValueError:
            pass
    return str(path)


def _default(keys: Fields, earlier: _Default | None) -> _Default | None:
    """`default:` of one file, over what an earlier file said."""
    said = keys.choice("default", {"deny", "tunnel", "observe"})
    if said is None:
        return earlier
    place = keys.place_of("default")
    if earlier is not None and earlier.text != said:
        keys.faults.add(
            place, f"default: {said} stands against default: {earlier.text} at {earlier.place}", "say it in one file"
        )
    return _Default(said, place)


def _unique_keys(known: Mapping[str, Workload], named: _Named, faults: Faults) -> None:
    owners: dict[str, str] = {}
    for name, workload in known.items():
        for proof in workload.proofs:
            if isinstance(proof, KeyHashProof):
                owner = owners.setdefault(proof.sha256, name)
                if owner != name:
                    place = named.entries[name][0].key_place
                    faults.add(
                        place,
                        f"workload {name!r} has the same key_hash as workload {owner!r}",
                        "mint a key for each: ostiary key mint",
                    )


def _ties(routes: Mapping[str, Route], faults: Faults) -> None:
    """Two routes that could be chosen for the same request with equal right."""
    groups: dict[tuple[str, str, int, object, object, bool], list[Route]] = {}
    for route in routes.values():
        ways = [("host", host.text, route.port) for host in route.hosts if route.forward]
        for way in (*ways, *(("listener", name, 0) for name in route.listeners)):
            for pattern in route.paths or (_EVERYTHING,):
                # Only patterns of one rank and one literal beginning can meet: this keeps ten thousand routes from
                # being compared pair by pair.
                groups.setdefault((*way, pattern.rank, pattern.literal_prefix, route.methods is None), []).append(route)
    told: set[frozenset[str]] = set()
    for (kind, *_), together in groups.items():
        for one, other in combinations({route.name: route for route in together}.values(), 2):
            pair = frozenset({one.name, other.name})
            if pair in told or not _tie(one, other):
                continue
            told.add(pair)
            later, earlier = (one, other) if one.place > other.place else (other, one)
            faults.add(
                later.place,
                f"route {later.name!r} ties with route {earlier.name!r} at {earlier.place}: same {kind}, equally specific paths, a workload and a method in common",
                "make the paths, methods or workloads of one of them differ",
            )


def _tie(one: Route, other: Route) -> bool:
    workloads = [frozenset[str]().union(*(entry.workloads for entry in route.allow)) for route in (one, other)]
    if not workloads[0] & workloads[1]:
        return False
    if one.methods is not None and other.methods is not None and not one.methods & other.methods:
        return False
    return any(can_meet(left, right) for left in one.paths or (_EVERYTHING,) for right in other.paths or (_EVERYTHING,))


def _examples(
    nodes: Sequence[tuple[Node, Path]], known: Mapping[str, Workload], routes: Mapping[str, Route], faults: Faults
) -> tuple[PolicyTest, ...]:
    found: list[PolicyTest] = []
    for node, _ in nodes:
        test = read_test(node, faults)
        if test is None:
            continue
        if test.workload != VERIFIED:
            _known(test.workload, known, "workload", test.place, faults)
        if test.expected_route is not None:
            _known(test.expected_route, routes, "route", test.place, faults)
        found.append(test)
    return tuple(found)


def _known(name: str, known: Mapping[str, object], kind: str, place: Place, faults: Faults) -> None:
    if name not in known:
        near = nearest(name, known)
        faults.add(
            place, f"{kind} {name!r} is not defined", f"did you mean {near!r}?" if near else f"define it under {kind}s:"
        )
