"""Builds the head that leaves: the caller's fields without what must not travel, then ours.

The caller's fields are stripped first and ours are put last, so nothing the caller sends (a `Connection` list, a
doubled field, another spelling) can remove, double or shadow an injected credential (G19, G20).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from addons.credentials import Credential
from addons.exchange import Authority
from addons.head import Fields, HeadersToSend, RequestHead
from addons.injection.cookies import cookie_value, with_cookies, without_cookies
from addons.injection.places import (
    FRAMING,
    HOP_BY_HOP,
    OWN_PREFIX,
    Plan,
    parameter_name,
    parameter_value,
    place,
    swap_for,
)
from addons.injection.render import (
    basic_value,
    header_value,
    holds_placeholder,
    plain_value,
    query_pair,
    swapped,
    swapped_text,
)
from addons.injection.segments import path_with
from addons.reply.readable import readable
from addons.websocket import UPGRADE_FIELDS, wants_websocket
from policies.model import (
    BasicInjector,
    BearerInjector,
    CookieInjector,
    HeaderInjector,
    Injector,
    PathInjector,
    QueryInjector,
    SwapInjector,
)
from policies.template import Template


def build_forward(plan: Plan, head: RequestHead, authority: Authority) -> HeadersToSend:
    """The head of a granted request that gets no credential of ours."""
    kept = without_cookies(_kept(plan, head), plan.cookies) if plan.cookies else _kept(plan, head)
    return HeadersToSend(_stripped_target(head.target, plan.strip_parameters), (_host(head, authority), *kept))


def build_with_credential(
    plan: Plan, injectors: Sequence[Injector], head: RequestHead, authority: Authority, credential: Credential
) -> HeadersToSend:
    """The head of a granted request with its credential.

    Args:
        plan: of the route.
        injectors: those that apply (`applicable`).
        head: what the caller sent.
        authority: the bound authority; it becomes the Host field.
        credential: opened for this request.

    Raises:
        Refusal: `secret_malformed` or `secret_missing`; nothing has been changed.
    """
    kept = _kept(plan, head)
    if plan.scrubbed:
        kept = readable(kept)
    target = head.target
    if b"?" in target:
        target = _stripped_target(target, plan.strip_parameters, plan.swaps, credential)
    if plan.simple is not None and injectors is plan.injectors and not head.http2:
        put = [(name, header_value(value, credential, scheme)) for name, scheme, value in plan.simple]
        return HeadersToSend(target, ((b"Host", authority.host_header), *kept, *put))
    added: dict[bytes, bytes] = {}
    baked: dict[bytes, bytes] = {}
    for injector in injectors:
        match injector:
            case BearerInjector(value=value):
                added[b"Authorization"] = header_value(value, credential, b"Bearer ")
            case HeaderInjector(name=name, value=value):
                added[name.encode()] = header_value(value, credential)
            case BasicInjector(username=username, password=password):
                added[b"Authorization"] = basic_value(
                    plain_value(username, credential), plain_value(password, credential)
                )
            case QueryInjector(name=name, value=value):
                target = _with_pair(target, query_pair(name, plain_value(value, credential)))
            case PathInjector():
                path, mark, query = target.partition(b"?")
                target = path_with(injector, path, lambda one: plain_value(Template((one,)), credential)) + mark + query
            case CookieInjector(name=name, value=value):
                baked[name.encode()] = cookie_value(plain_value(value, credential))
            case SwapInjector():
                added |= _swapped(injector, head, credential)
            case _:
                pass  # the body's
    if baked:
        kept = with_cookies(without_cookies(kept, plan.cookies), baked, http2=head.http2)
    if head.http2:
        added = {name.lower(): value for name, value in added.items()}
    return HeadersToSend(target, (_host(head, authority), *kept, *added.items()))


def _host(head: RequestHead, authority: Authority) -> tuple[bytes, bytes]:
    return (b"host" if head.http2 else b"Host", authority.host_header)


def _kept(plan: Plan, head: RequestHead) -> Fields:
    """The caller's fields that may travel."""
    fates = plan.fates
    found = [fates[name] for name, _ in head.fields]
    if None in found:
        return _judged(plan, head)
    return tuple(itertools.compress(head.fields, found))


def _judged(plan: Plan, head: RequestHead) -> Fields:
    """As `_kept`, where values have a say."""
    nominated = {token.strip().lower() for value in head.values(b"connection") for token in value.split(b",")}
    # Framing belongs to the message, whatever Connection says: dropping it would turn the body into the next request.
    # TE is judged by its value: trailers pass this proxy, other codings end at it.
    nominated -= {b"content-length", b"transfer-encoding", b"close", b"keep-alive", b"te"}
    kept: list[tuple[bytes, bytes]] = []
    for name, value in head.fields:
        key, alias = name.lower(), place(name)
        if alias in plan.strip_headers or key in nominated or alias.startswith(OWN_PREFIX):
            continue
        if alias in FRAMING and alias != key:
            continue
        if alias in HOP_BY_HOP and not (key == b"te" and value.lower() == b"trailers"):
            continue
        kept.append((name, value))
    if wants_websocket(head.fields):
        kept.extend(UPGRADE_FIELDS)
    return tuple(kept)


def _stripped_target(
    target: bytes,
    parameters: frozenset[bytes],
    swaps: Sequence[SwapInjector] = (),
    credential: Credential | None = None,
) -> bytes:
    """The target without these query parameters, a placeholder among them swapped; the others stay byte for byte."""
    path, mark, query = target.partition(b"?")
    if not mark or not parameters:
        return target
    pairs = query.split(b"&")
    kept: list[bytes] = []
    for pair in pairs:
        name = parameter_name(pair)
        if name not in parameters:
            kept.append(pair)
        elif credential is not None and (swap := swap_for(swaps, name, pair)) is not None:
            text = swapped_text(parameter_value(pair), swap.placeholder, swap.value, credential)
            kept.append(query_pair(name.decode(), text))
    if kept == pairs:
        return target
    return path + b"?" + b"&".join(kept) if kept else path


def _with_pair(target: bytes, pair: bytes) -> bytes:
    path, mark, query = target.partition(b"?")
    return path + b"?" + (query + b"&" + pair if mark and query else pair)


def _swapped(injector: SwapInjector, head: RequestHead, credential: Credential) -> dict[bytes, bytes]:
    names = {name.lower().encode() for name in injector.headers}
    return {
        name: swapped(value, injector.placeholder, injector.value, credential)
        for name, value in head.fields
        if name.lower() in names and holds_placeholder(value, injector.placeholder)
    }
