"""Reads `credentials:` and `routes:`: what a workload may have, where it is put, how the upstream is reached."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

from policies.derive import TOKEN_FIELD, references_of_derivation
from policies.document import Entry, Node, Scalar, kind_of
from policies.document import Mapping as MappingNode
from policies.faults import Place, nearest
from policies.fields import Fields
from policies.keys import CREDENTIAL, DENY, EGRESS, GRANT, LATER, MATCH, REPLY, ROUTE, TIMEOUTS
from policies.load_derive import needs_no_secret as derives_without_secret
from policies.load_derive import read_derive
from policies.load_inject import read_injectors, references_of
from policies.load_parts import (
    NAME,
    Context,
    read_hosts,
    read_methods,
    read_network,
    read_paths,
    read_resolve,
    read_secret,
)
from policies.load_reverse import read_reach
from policies.load_sign import judge_beside, read_signers
from policies.load_tls import read_tls, with_client_cert
from policies.load_verify import read_verifier
from policies.model import (
    AllowEntry,
    CredentialSpec,
    DenyEntry,
    EgressSpec,
    Http2,
    Injector,
    Route,
    ScrubMode,
    SecretSpec,
    TimeoutSpec,
    Workload,
)
from policies.sign import Signer, references_of_signers, transit_use
from policies.verify import VERIFIED, references_of_verifier

type Members = Mapping[str, frozenset[str]]


def read_credential(name: str, node: Node, context: Context) -> CredentialSpec | None:
    """One entry of `credentials:`."""
    keys = Fields(node, context.faults, f"credential {name}", known=CREDENTIAL)
    if not isinstance(node, MappingNode):
        return None
    return _derived(name, _secrets(name, keys, context, required=not derives_without_secret(keys)), keys, context)


def _derived(name: str, spec: CredentialSpec | None, keys: Fields, context: Context) -> CredentialSpec | None:
    """The same, with its `derive:`, if it has one. One that is at fault leaves nothing to go on with."""
    if spec is None and "secret" not in keys and "secrets" not in keys and derives_without_secret(keys):
        spec = CredentialSpec(name, {})
    if spec is None or "derive" not in keys:
        return spec
    lent = next((name for name, secret in spec.secrets.items() if secret.is_lent), None)
    if lent is not None:
        context.faults.add(
            keys.place_of("derive"),
            f"{keys.what} derives a token of {lent}, which is lent",
            "a token would outlive the lease: have the engine's role make what the API wants",
        )
        return None
    return read_derive(spec, keys, context)


def _secrets(name: str, keys: Fields, context: Context, *, required: bool) -> CredentialSpec | None:
    """`secret:` or `secrets:`."""
    faults = context.faults
    if "secret" in keys and "secrets" in keys:
        faults.add(
            keys.place_of("secrets"), f"{keys.what} has both secret and secrets", "put the one secret under secrets too"
        )
        return None
    single, several = keys.node("secret"), keys.node("secrets")
    if single is not None:
        spec = read_secret(single, f"secret of {keys.what}", context)
        return None if spec is None else CredentialSpec(name, {"secret": spec})
    if several is None:
        if required:
            faults.add(keys.place, f"{keys.what} needs 'secret' or 'secrets'", "add secret: {path: …, field: …}")
        return None
    if not isinstance(several, MappingNode):
        faults.add(several.place, f"secrets of {keys.what} must be a mapping of names, not {kind_of(several)}")
        return None
    found: dict[str, SecretSpec] = {}
    for entry in several:
        if not NAME.fullmatch(entry.key) or "." in entry.key or entry.key == "token":
            faults.add(
                entry.key_place,
                f"{entry.key!r} is no name for a secret",
                "use letters, digits, dashes and underscores; token is taken",
            )
            continue
        spec = read_secret(entry.value, f"secret {entry.key} of {keys.what}", context)
        if spec is not None:
            found[entry.key] = spec
    return CredentialSpec(name, found) if found else None


def read_route(
    name: str,
    entry: Entry,
    context: Context,
    *,
    workloads: Mapping[str, Workload],
    groups: Members,
    credentials: Mapping[str, CredentialSpec],
    defined: Collection[str],
    used: set[str],
) -> Route | None:
    """One route, or None where its faults leave nothing to go on with.

    Args:
        name: of the route.
        entry: its key and mapping.
        context: faults, variables, folder.
        workloads: by name.
        groups: members by name.
        credentials: those that could be read.
        defined: names of all credentials, broken ones included: a reference to a broken one is no second fault.
        used: receives the names of credentials that this route uses.
    """
    faults = context.faults
    before = len(faults.found)
    keys = Fields(entry.value, faults, f"route {name}", known=ROUTE, later=LATER["route"])
    reverse = isinstance(entry.value, MappingNode) and "listener" in keys
    if not isinstance(entry.value, MappingNode) or not keys.require(*(() if reverse else ("match",)), "allow"):
        return None
    match_node = keys.node("match") if not reverse or "match" in keys else MappingNode((), keys.place)
    match = (
        Fields(match_node, faults, f"match of route {name}", known=MATCH, later=LATER["match"])
        if match_node is not None
        else None
    )
    if match is None or not isinstance(match_node, MappingNode):
        return None
    reach = read_reach(name, keys, match, read_hosts(match), context)
    credential = _route_credential(name, keys, context, credentials, defined, used)
    names = _Names(workloads, groups, credentials, defined, used, context)
    allow = tuple(
        found
        for index, item in enumerate(keys.nodes("allow"))
        if (found := names.allow(f"allow[{index}]", item)) is not None
    )
    deny = tuple(
        denied
        for index, item in enumerate(keys.nodes("deny"))
        if (denied := names.deny(f"deny[{index}]", item)) is not None
    )
    inject = read_injectors(name, keys, context)
    sign = read_signers(name, keys, context)
    judge_beside(inject, sign, keys.place_of("sign"), context)
    if credential is None and needs_no_secret(inject, sign, allow):
        credential = CredentialSpec(name, {})
    tls = read_tls(name, keys, context)
    caller = keys.choice("caller_credentials", {"replace", "reject", "keep"}, "replace")
    route = Route(
        name=name,
        place=entry.key_place,
        hosts=reach.hosts,
        port=reach.port,
        listeners=reach.listeners,
        upstream=reach.upstream,
        forward=reach.forward,
        allow=allow,
        deny=deny,
        methods=read_methods(match),
        paths=read_paths(match),
        credential=credential,
        inject=inject,
        sign=sign,
        verify=read_verifier(name, keys, context),
        caller_credentials=cast("Literal['replace', 'reject', 'keep']", caller or "replace"),
        mode=cast("Literal['enforce', 'observe']", keys.choice("mode", {"enforce", "observe"}, "enforce") or "enforce"),
        egress=_egress(name, keys, context),
        ca_file=tls.ca_file,
        tls=tls.spec,
        timeouts=_timeouts(name, keys),
        http2=cast("Http2", keys.choice("http2", {"auto", "prefer", "never"}, "auto") or "auto"),
        allow_cleartext=keys.boolean("allow_cleartext"),
        scrub=_scrub(name, keys),
    )
    if len(faults.found) == before:
        _whole(route, keys, context)
        _tls_beside(route, keys, context)
    return with_client_cert(route, tls.secret) if len(faults.found) == before else None


def _route_credential(
    name: str,
    keys: Fields,
    context: Context,
    credentials: Mapping[str, CredentialSpec],
    defined: Collection[str],
    used: set[str],
) -> CredentialSpec | None:
    shared = keys.text("credential")
    own = _secrets(name, keys, context, required=False)
    lacks = "secret" not in keys and "secrets" not in keys and not derives_without_secret(keys)
    if "derive" in keys and (shared is not None or lacks):
        context.faults.add(
            keys.place_of("derive"),
            f"derive of route {name} has no secret of this route to make a token of",
            "write it beside secret:, or in the credential that the route names",
        )
        return None
    if shared is None:
        return _derived(name, own, keys, context)
    used.add(shared)
    if own is not None:
        context.faults.add(
            keys.place_of("credential"), f"route {name} has a secret of its own and a credential", "keep one of them"
        )
    if shared not in defined:
        _unknown("credential", shared, defined, keys.place_of("credential"), context)
    return credentials.get(shared)


def _unknown(kind: str, name: str, known: Collection[str], place: Place, context: Context) -> None:
    near = nearest(name, known)
    context.faults.add(
        place, f"{kind} {name!r} is not defined", f"did you mean {near!r}?" if near else f"define it under {kind}s:"
    )


class _Names:
    """Resolves the names in `allow:` and `deny:`."""

    def __init__(
        self,
        workloads: Mapping[str, Workload],
        groups: Members,
        credentials: Mapping[str, CredentialSpec],
        defined: Collection[str],
        used: set[str],
        context: Context,
    ) -> None:
        self._workloads, self._groups, self._credentials = workloads, groups, credentials
        self._defined, self._used, self._context = defined, used, context

    def _workload(self, scalar: Scalar) -> frozenset[str]:
        if scalar.text in self._workloads or scalar.text == VERIFIED:
            return frozenset({scalar.text})
        _unknown("workload", scalar.text, self._workloads, scalar.place, self._context)
        return frozenset()

    def _group(self, scalar: Scalar) -> frozenset[str]:
        if scalar.text in self._groups:
            return self._groups[scalar.text]
        _unknown("group", scalar.text, self._groups, scalar.place, self._context)
        return frozenset()

    def _either(self, scalar: Scalar) -> frozenset[str]:
        if scalar.text == VERIFIED:
            return frozenset({VERIFIED})
        if scalar.text in self._groups:
            return self._groups[scalar.text]
        if scalar.text in self._workloads:
            return frozenset({scalar.text})
        _unknown("workload", scalar.text, {*self._workloads, *self._groups}, scalar.place, self._context)
        return frozenset()

    def _who(self, keys: Fields) -> frozenset[str]:
        found: set[str] = set()
        for scalar in keys.texts("workload"):
            found |= self._workload(scalar)
        for scalar in keys.texts("group"):
            found |= self._group(scalar)
        return frozenset(found)

    def allow(self, rule: str, node: Node) -> AllowEntry | None:
        if isinstance(node, Scalar):
            return AllowEntry(self._either(node), rule)
        keys = Fields(node, self._context.faults, rule, known=GRANT, later=LATER["grant"])
        if not isinstance(node, MappingNode):
            return None
        if "workload" not in keys and "group" not in keys:
            self._context.faults.add(node.place, f"{rule} names nobody", "add workload: or group:")
            return None
        credential: CredentialSpec | None = None
        name = keys.text("credential")
        if name is not None:
            self._used.add(name)
            credential = self._credentials.get(name)
            if name not in self._defined:
                _unknown("credential", name, self._defined, keys.place_of("credential"), self._context)
        return AllowEntry(self._who(keys), rule, read_methods(keys), read_paths(keys), credential, keys.text("reason"))

    def deny(self, rule: str, node: Node) -> DenyEntry | None:
        if isinstance(node, Scalar):
            return DenyEntry(rule, self._either(node))
        keys = Fields(node, self._context.faults, rule, known=DENY, later=LATER["deny"])
        if not isinstance(node, MappingNode):
            return None
        who = self._who(keys) if "workload" in keys or "group" in keys else None
        return DenyEntry(rule, who, read_methods(keys), read_paths(keys))


def needs_no_secret(inject: Sequence[Injector], sign: Sequence[Signer], allow: Sequence[AllowEntry]) -> bool:
    """Whether all that a route does is to sign with keys that stay in Vault: its credential then reads nothing."""
    return (
        bool(sign)
        and not inject
        and not references_of_signers(sign)
        and all(transit_use(signer) is not None for signer in sign)
        and all(entry.credential is None for entry in allow)
    )


def _egress(name: str, keys: Fields, context: Context) -> EgressSpec | None:
    node = keys.node("egress")
    if node is None:
        return None
    inner = Fields(node, context.faults, f"egress of route {name}", known=EGRESS, later=LATER["egress"])
    blocks = tuple(
        block for scalar in inner.texts("allow") if (block := read_network(scalar, context.faults)) is not None
    )
    share = inner.boolean("share_connections", default=False)
    return EgressSpec(blocks, read_resolve(inner.node("resolve"), context.faults), share_connections=share)


def _tls_beside(route: Route, keys: Fields, context: Context) -> None:
    """What needs TLS is not asked of plain http."""
    tls = route.tls
    if tls is None or not (tls.client_cert or tls.pins):
        return
    what = "shows a client certificate" if tls.client_cert is not None else "pins its upstream's key"
    if route.upstream is not None and route.upstream.cleartext:
        context.faults.add(
            keys.place_of("upstream"), f"route {route.name} {what}, and its upstream is plain http", "write https://"
        )
    elif route.allow_cleartext:
        context.faults.add(
            keys.place_of("allow_cleartext"),
            f"route {route.name} {what}, and allows its credential over plain http",
            "remove allow_cleartext",
        )


def _timeouts(name: str, keys: Fields) -> TimeoutSpec:
    node = keys.node("timeouts")
    if node is None:
        return TimeoutSpec()
    inner = Fields(node, keys.faults, f"timeouts of route {name}", known=TIMEOUTS)
    return TimeoutSpec(
        inner.duration("connect"), inner.duration("first_byte"), inner.duration("idle"), inner.duration("total")
    )


def _scrub(name: str, keys: Fields) -> ScrubMode:
    node = keys.node("reply")
    if node is None:
        return "scrub"
    inner = Fields(node, keys.faults, f"reply of route {name}", known=REPLY, later=LATER["reply"])
    return cast("ScrubMode", inner.choice("scrub", {"scrub", "block", "none"}, "scrub") or "scrub")


def _whole(route: Route, keys: Fields, context: Context) -> None:
    """What only the whole route can show."""
    faults = context.faults
    own = "secret" in keys or "secrets" in keys or "credential" in keys
    specs = [spec for spec in (route.credential, *(entry.credential for entry in route.allow)) if spec is not None]
    uses = bool(route.inject or route.sign)
    checks = references_of_verifier(route.verify)
    place = keys.place_of("inject" if route.inject else "sign")
    if uses and not specs:
        faults.add(
            place,
            f"route {route.name} {'injects' if route.inject else 'signs'} but has no secret",
            "add secret: {path: …, field: …} or credential:",
        )
    if checks and not specs:
        faults.add(
            keys.place_of("verify"),
            f"route {route.name} verifies with a key and has no secret",
            "add secrets: {keys: {path: …}} or credential:",
        )
    if specs and not (uses or checks):
        faults.add(
            keys.place_of("secret") if own else keys.place,
            f"route {route.name} has a secret and puts it nowhere",
            'add inject: {bearer: "{secret}"}',
        )
    if (uses or checks) and specs and route.credential is None:
        for entry in route.allow:
            if entry.credential is None:
                faults.add(
                    keys.place_of("allow"),
                    f"{entry.rule} of route {route.name} gets no credential",
                    "give it a credential or the route a secret",
                )
    if uses and route.caller_credentials == "keep":
        faults.add(
            keys.place_of("caller_credentials"),
            f"caller_credentials: keep excludes {'inject' if route.inject else 'sign'}",
            "a credential of ours always replaces the caller's",
        )
    if "reply" in keys and not specs:
        faults.add(
            keys.place_of("reply"),
            f"route {route.name} has no credential that an answer could show",
            "remove reply: answers of such a route pass as they are",
        )
    _senders(route, keys, context)
    if route.allow_cleartext and not uses:
        faults.add(
            keys.place_of("allow_cleartext"),
            f"route {route.name} allows its credential over plain http and has none",
            "remove allow_cleartext: http:// is forwarded without it",
        )
    if uses and route.upstream is not None and route.upstream.cleartext and not route.allow_cleartext:
        faults.add(
            keys.place_of("upstream"),
            f"route {route.name} has a credential, and its upstream is plain http: it would never be put",
            "write https://, or allow_cleartext: true where the upstream is inside your network",
        )
    if any(host.wildcard for host in route.hosts):
        _wildcard(route, keys, context)
    checked = {reference.entry for reference in checks}
    if any(secret.is_lent for spec in specs for name, secret in spec.secrets.items() if name in checked):
        faults.add(
            keys.place_of("verify"),
            f"route {route.name} verifies with a key that is lent",
            "whoever signs must have the same key: store it under a key-value path",
        )
    for spec in specs:
        _references(route, spec, keys, context)


def _senders(route: Route, keys: Fields, context: Context) -> None:
    """`allow: verified`: callers whose only proof is their signature."""
    if not any(VERIFIED in entry.workloads for entry in route.allow):
        return
    if route.verify is None:
        context.faults.add(
            keys.place_of("allow"),
            f"route {route.name} allows whoever signed the request and verifies nothing",
            "add verify: with the scheme of the sender",
        )
    if not route.listeners:
        context.faults.add(
            keys.place_of("allow"),
            f"route {route.name} allows whoever signed the request, and no reverse listener leads to it",
            "add listener: and upstream:; callers of a forward listener prove who they are first",
        )


def _wildcard(route: Route, keys: Fields, context: Context) -> None:
    """Anyone may register a sibling on a shared domain: it must learn nothing that is good elsewhere."""
    if route.inject:
        context.faults.add(
            keys.place_of("match"),
            f"route {route.name} would reveal its credential to any host under a wildcard",
            "name the hosts: on a shared domain anyone may register a sibling",
        )
    if not all(signer.binds_host for signer in route.sign):
        context.faults.add(
            keys.place_of("sign"),
            f"a signature of route {route.name} does not cover the host, and any host under a wildcard could use it elsewhere",
            "sign the host (host: true, {host}, @authority), or name the hosts",
        )


def _references(route: Route, spec: CredentialSpec, keys: Fields, context: Context) -> None:
    named = (
        {reference.entry for reference in references_of_derivation(spec.derive)}
        if spec.derive is not None
        else set[str]()
    )
    derives = False
    place = keys.place_of("inject" if route.inject else "sign" if route.sign else "verify")
    checks = references_of_verifier(route.verify)
    for reference in (*references_of(route.inject), *references_of_signers(route.sign), *checks):
        if reference.entry == "token":
            if reference in checks:
                context.faults.add(place, f"verify of route {route.name} names {{token}}", "name a stored secret")
            derives = True
            _token(route, spec, reference.field, place, context)
            continue
        named.add(reference.entry)
        secret = spec.secrets.get(reference.entry)
        if secret is None:
            known = ", ".join(f"{{{entry}}}" for entry in spec.secrets if "." not in entry) or "none"
            context.faults.add(
                place,
                f"route {route.name} refers to {{{reference.entry}}}, which {_owner(spec, route)} does not have",
                f"it has {known}",
            )
        elif reference.field is None and secret.field is None:
            context.faults.add(
                place,
                f"{{{reference.entry}}} has no field to stand for",
                f"write {{{reference.entry}.NAME}} or give the secret a field",
            )
    if spec.derive is not None and not derives and (route.inject or route.sign):
        context.faults.add(
            place,
            f"route {route.name} does not use {{token}} of {_owner(spec, route)}, which derives one",
            'write {token} where it goes: inject: {bearer: "{token}"}',
        )
    for entry in spec.secrets:
        if (route.inject or route.sign or checks) and entry not in named:
            context.faults.add(
                place,
                f"route {route.name} does not use {{{entry}}} of {_owner(spec, route)}",
                "use it or remove it",
            )


def _token(route: Route, spec: CredentialSpec, field: str | None, place: Place, context: Context) -> None:
    """A reference to `{token}`."""
    if spec.derive is None:
        context.faults.add(
            place,
            f"route {route.name} refers to {{token}}, and {_owner(spec, route)} derives none",
            "add derive: beside its secret",
        )
    elif (field or TOKEN_FIELD) not in spec.derive.names or field == TOKEN_FIELD:
        known = ["{token}" if name == TOKEN_FIELD else f"{{token.{name}}}" for name in sorted(spec.derive.names)]
        written = f"{{token.{field}}}" if field is not None else "{token}"
        context.faults.add(place, f"{spec.derive.word} makes no {written}", f"it makes {', '.join(known)}")


def _owner(spec: CredentialSpec, route: Route) -> str:
    return f"route {route.name}" if spec.name == route.name else f"credential {spec.name}"
