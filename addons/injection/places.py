"""Where credentials stand in a request, and what a route does about those the caller sent.

Owns the list of known credential places (docs/reference/policy.md), the fields that never travel upstream, and the plan
that a route compiles to: computed once a route and policy, looked up by every request.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from addons.head import RequestHead
from addons.injection.cookies import cookies
from addons.injection.render import holds_placeholder, unpacked
from addons.injection.segments import replaced
from addons.names import ByName
from addons.refusal import Code, Refusal
from addons.signing.taken import AWS_CREDENTIAL, taken_headers, taken_parameters
from addons.verifying.taken import ended_headers, ended_parameters
from policies.model import (
    BasicInjector,
    BearerInjector,
    CookieInjector,
    FormInjector,
    HeaderInjector,
    Injector,
    JsonInjector,
    PathInjector,
    QueryInjector,
    Route,
    SwapInjector,
)
from policies.template import FieldRef, Template

CREDENTIAL_HEADERS: Final = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"x-auth-token",
        b"private-token",
        b"dd-api-key",
        b"dd-application-key",
        b"x-amz-security-token",
    }
)
CREDENTIAL_PARAMETERS: Final = frozenset({b"api_key", b"access_token"})

# Some frameworks let these change what the request line says: a grant for GET would pass a DELETE (G52).
OVERRIDES: Final = frozenset(
    {b"x-http-method-override", b"x-http-method", b"x-method-override", b"x-original-url", b"x-rewrite-url"}
)

# RFC 9110 section 7.6.1, and what is meant for this proxy alone. Transfer-Encoding stays: the engine frames the body by
# it.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        # Trailers end here, so nothing is to announce them.
        b"trailer",
        b"upgrade",
        b"http2-settings",
        b"host",
        # The engine answers `Expect: 100-continue` itself once the request is granted.
        b"expect",
    }
)
FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
OWN_PREFIX: Final = b"x-ostiary-"

# What `ostiary env` gives programs that refuse to start without a key; and what is left of a header field when the
# variable it is made of is empty.
_DUMMY: Final = re.compile(rb"ostiary[-_]placeholder|AKIAOSTIARYPLACEHOLD")
AWS_PLACEHOLDER: Final = b"AKIAOSTIARYPLACEHOLD"
"""The key id that AWS SDKs are given: what is signed with it holds no credential, and an SDK cannot but sign."""
_EMPTY: Final = re.compile(rb"(?i:bearer|basic|token)? *")


def place(name: bytes) -> bytes:
    """A field name as gateways read it that turn names into variables (RFC 3875 section 4.1.18): `X_Api_Key` is `X-Api-Key`."""
    return name.lower().replace(b"_", b"-")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a route does to a head, compiled."""

    injectors: tuple[Injector, ...]
    strip_headers: frozenset[bytes]
    """Credential places and overrides, as `place` writes them; empty for a route that keeps what the caller sent."""
    strip_parameters: frozenset[bytes]
    credential_headers: frozenset[bytes]
    credential_parameters: frozenset[bytes]
    """Those of the stripped ones in which a caller's own credential may stand."""
    reject: bool
    scrubbed: bool = False
    """Whether answers are searched for the credential, and so must be readable."""
    swaps: tuple[SwapInjector, ...] = ()
    """Those of the injectors that wait for a placeholder."""
    cookies: frozenset[bytes] = frozenset()
    """Cookies that are put."""
    path: PathInjector | None = None
    body: tuple[JsonInjector | FormInjector | SwapInjector, ...] = ()
    """Those that need the whole body. JSON and forms exclude each other."""
    simple: tuple[tuple[bytes, bytes, Template], ...] | None = field(init=False, repr=False, compare=False)
    """Name, scheme and value of each field that is put, where the injectors do nothing else; else None."""
    fates: ByName[bool | None] = field(init=False, repr=False, compare=False)
    """Whether a field of the caller's travels, going by its name alone; None where its value says, or it has a say in what
    becomes of others."""
    own: ByName[bytes | None] = field(init=False, repr=False, compare=False)
    """Names in lower case, of those that are one of `credential_headers`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "simple", _simple(self.injectors))
        object.__setattr__(self, "fates", _fates(self.strip_headers))
        object.__setattr__(self, "own", _credential_places(self.credential_headers))


def _simple(injectors: Sequence[Injector]) -> tuple[tuple[bytes, bytes, Template], ...] | None:
    found: dict[bytes, tuple[bytes, bytes, Template]] = {}
    for injector in injectors:
        match injector:
            case BearerInjector(value=value):
                name, scheme = b"Authorization", b"Bearer "
            case HeaderInjector(name=text, value=value):
                name, scheme = text.encode(), b""
            case _:
                return None
        found[name] = (name, scheme, value)
    return tuple(found.values())


@functools.lru_cache(maxsize=256)
def _fates(strip_headers: frozenset[bytes]) -> ByName[bool | None]:
    def fate(name: bytes) -> bool | None:
        key, alias = name.lower(), place(name)
        if key in _VALUE_SAYS:
            return None
        ends = alias in strip_headers or alias.startswith(OWN_PREFIX) or alias in HOP_BY_HOP
        return not (ends or (alias in FRAMING and alias != key))

    return ByName(fate)


_VALUE_SAYS: Final = frozenset({b"connection", b"te", b"upgrade"})


@functools.lru_cache(maxsize=256)
def _credential_places(places: frozenset[bytes]) -> ByName[bytes | None]:
    def read(name: bytes) -> bytes | None:
        key = name.lower()
        return key if key in places else None

    return ByName(read)


def plan_for(route: Route) -> Plan:
    """Compiles the route's injectors and its way with the caller's own credentials."""
    headers: set[bytes] = set()
    parameters: set[bytes] = set()
    for injector in route.inject:
        match injector:
            case HeaderInjector(name=name):
                headers.add(place(name.encode()))
            case BearerInjector() | BasicInjector():
                headers.add(b"authorization")
            case QueryInjector(name=name):
                parameters.add(name.encode())
            case SwapInjector(headers=names, parameters=others):
                headers.update(place(name.encode()) for name in names)
                parameters.update(name.encode() for name in others)
            case _:
                pass
    # Signatures of the caller are for this proxy alone.
    changes_body = any(isinstance(one, JsonInjector | FormInjector | SwapInjector) for one in route.inject)
    ended = {place(name) for name in ended_headers(route.verify, changes_body=changes_body)}
    ended_pairs = ended_parameters(route.verify)
    if not (route.inject or route.sign) or route.caller_credentials == "keep":
        # Without a credential of ours the caller's own may pass; overrides change what was granted, so they never do.
        swaps = tuple(injector for injector in route.inject if isinstance(injector, SwapInjector))
        return Plan(route.inject, OVERRIDES | ended, ended_pairs, frozenset(), frozenset(), reject=False, swaps=swaps)
    places = CREDENTIAL_HEADERS | headers
    known = CREDENTIAL_PARAMETERS | parameters
    # What signers replace does not travel either, but is no credential: an SDK dates each request that it signs.
    taken = taken_parameters(route.sign)
    return Plan(
        route.inject,
        places | OVERRIDES | ended | {place(name) for name in taken_headers(route.sign)},
        known | taken | ended_pairs,
        frozenset(places),
        known | (taken & {AWS_CREDENTIAL}),
        reject=route.caller_credentials == "reject",
        scrubbed=route.scrub != "none",
        swaps=tuple(injector for injector in route.inject if isinstance(injector, SwapInjector)),
        cookies=frozenset(one.name.encode() for one in route.inject if isinstance(one, CookieInjector)),
        path=next((one for one in route.inject if isinstance(one, PathInjector)), None),
        body=tuple(
            one
            for one in route.inject
            if isinstance(one, JsonInjector | FormInjector) or (isinstance(one, SwapInjector) and one.pointers)
        ),
    )


def parameter_name(pair: bytes) -> bytes:
    """The decoded name of one `name=value` pair of a query."""
    return unquote_to_bytes(pair.partition(b"=")[0].replace(b"+", b" "))


def reject_caller_credentials(plan: Plan, head: RequestHead) -> None:
    """Refuses a caller that sends a credential of its own, where the route says so. A placeholder that will be swapped
    is none.

    Raises:
        Refusal: `caller_credentials`, naming the place, never the value.
    """
    if not plan.reject:
        return
    swaps = plan.swaps
    for name, value in head.fields:
        if (
            place(name) in plan.credential_headers
            and AWS_PLACEHOLDER not in value
            and not any(_swaps(swap, name.lower()) and holds_placeholder(value, swap.placeholder) for swap in swaps)
        ):
            raise Refusal(
                Code.CALLER_CREDENTIALS,
                f"This route wants no credential from the caller; remove the {name.decode('ascii', 'replace')} field.",
            )
    for pair in _pairs(head.target):
        name = parameter_name(pair)
        own = name in plan.credential_parameters and AWS_PLACEHOLDER not in pair
        if own and swap_for(swaps, name, pair) is None:
            raise Refusal(
                Code.CALLER_CREDENTIALS, "This route wants no credential from the caller; remove it from the query."
            )
    if (elsewhere := _in_cookie_or_path(plan, head)) is not None:
        raise Refusal(
            Code.CALLER_CREDENTIALS, f"This route wants no credential from the caller; remove it from the {elsewhere}."
        )


def brought(plan: Plan, head: RequestHead) -> str | None:
    """The first place in which the caller sent a credential of its own: `header:authorization`, `query:api_key`. Never its
    value. None where it sent none, or a placeholder.
    """
    swaps, places = plan.swaps, plan.own
    for name, value in head.fields:
        key = places[name]
        if key is None or _EMPTY.fullmatch(value) or _DUMMY.search(unpacked(value)):
            continue
        if not any(_swaps(swap, key) and holds_placeholder(value, swap.placeholder) for swap in swaps):
            return f"header:{key.decode('ascii')}"
    for pair in _pairs(head.target) if plan.credential_parameters and b"?" in head.target else ():
        name = parameter_name(pair)
        own = name in plan.credential_parameters and pair.partition(b"=")[2] and not _DUMMY.search(pair)
        if own and swap_for(swaps, name, pair) is None:
            return f"query:{name.decode('utf-8', 'replace')}"
    return _in_cookie_or_path(plan, head) if plan.cookies or plan.path is not None else None


def is_dummy(value: bytes) -> bool:
    """Whether this is what `ostiary env` gives to programs that refuse to start without a key."""
    return _DUMMY.search(value) is not None


def _in_cookie_or_path(plan: Plan, head: RequestHead) -> str | None:
    """As `brought`, for the two places that few routes have."""
    for key, value in cookies(head.fields) if plan.cookies else ():
        if key in plan.cookies and value and not is_dummy(value):
            return f"cookie:{key.decode('ascii', 'replace')}"
    if plan.path is not None:
        for own in replaced(plan.path, head.target.partition(b"?")[0]):
            if own and not is_dummy(own):
                return "path"
    return None


def parameter_value(pair: bytes) -> str:
    """The decoded value of one `name=value` pair of a query."""
    return unquote_to_bytes(pair.partition(b"=")[2].replace(b"+", b" ")).decode("utf-8", "replace")


def swap_for(swaps: Sequence[SwapInjector], name: bytes, pair: bytes) -> SwapInjector | None:
    """The swap whose placeholder this query parameter is."""
    named = [swap for swap in swaps if name.decode("utf-8", "replace") in swap.parameters]
    return next((swap for swap in named if holds_placeholder(parameter_value(pair).encode(), swap.placeholder)), None)


def _pairs(target: bytes) -> Sequence[bytes]:
    _, mark, query = target.partition(b"?")
    return query.split(b"&") if mark else ()


def _swaps(injector: SwapInjector, key: bytes) -> bool:
    return any(name.lower().encode() == key for name in injector.headers)


def applicable(
    plan: Plan, head: RequestHead, in_body: Callable[[SwapInjector], bool] | None = None
) -> tuple[Injector, ...]:
    """The injectors that have something to do: all but a swap whose placeholder the caller did not send.

    Args:
        plan: of the route.
        head: of the request.
        in_body: whether a placeholder stands in the body, where it has been read.
    """
    if not plan.swaps:
        return plan.injectors
    return tuple(
        injector
        for injector in plan.injectors
        if not isinstance(injector, SwapInjector)
        or _found(injector, head)
        or (in_body is not None and in_body(injector))
    )


def _found(injector: SwapInjector, head: RequestHead) -> bool:
    names = {name.lower().encode() for name in injector.headers}
    if any(name.lower() in names and holds_placeholder(value, injector.placeholder) for name, value in head.fields):
        return True
    if not injector.parameters:
        return False
    return any(swap_for((injector,), parameter_name(pair), pair) is not None for pair in _pairs(head.target))


def references(injectors: Sequence[Injector]) -> tuple[FieldRef, ...]:
    """Every secret field that these injectors will ask for."""
    found: dict[FieldRef, None] = {}
    for injector in injectors:
        templates = (injector.username, injector.password) if isinstance(injector, BasicInjector) else (injector.value,)
        for template in templates:
            found.update(dict.fromkeys(template.references))
    return tuple(found)
