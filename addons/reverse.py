"""Reverse listeners: what a request must call them by, and what of an answer is said in their name.

A client whose base URL is a listener of ours speaks HTTP to it as to any server; so can every page in a browser on the
same machine. Rules:
- Host (and `:authority`) is the listener's own: with DNS rebinding a page's own name leads to our address. A Unix socket
  is out of every browser's reach, and clients put anything there.
- Origin, where sent, is the very origin that the request is addressed to; Sec-Fetch-Site says `same-origin` or `none`.
  `same-site` is refused like `cross-site`: a site is blind to ports, so a page of any other local server would pass.
- What leaves carries the upstream's authority: as Host, and as Origin in the place of our own.
- `Location` and `Content-Location` that name the upstream's own origin name ours when they reach the caller, so that it
  comes back here for what they point at. Any other place is passed on as it is, and never followed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from addons.authority import read_authority
from addons.exchange import Authority, Reverse
from addons.head import Fields, RequestHead
from addons.refusal import Code, Refusal
from policies.model import Route

_OWN_SITES: Final = frozenset({b"same-origin", b"none"})
_PLACES: Final = frozenset({b"location", b"content-location"})
_URL: Final = re.compile(rb"(?:(https?):)?//([^/?#]*)([\x21-\x7e]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CalledAs:
    """The origin that a request was addressed to, as its caller wrote it (`http://127.0.0.1:9001`)."""

    origin: bytes


def called_as(reverse: Reverse, head: RequestHead, *, pseudo_authority: str | None) -> CalledAs:
    """Checks that a request calls the listener by a name of its own and comes from no page of another site.

    Args:
        reverse: of the listener.
        head: the request.
        pseudo_authority: `:authority` of an HTTP/2 request, None for HTTP/1.

    Raises:
        Refusal: `bad_request`, `authority_mismatch` or `access_denied`.
    """
    hosts = head.values(b"host")
    if len(hosts) > 1:
        raise Refusal(Code.BAD_REQUEST, "A request must have one Host field.", close=True)
    named = [host.decode("ascii", "replace") for host in hosts]
    if pseudo_authority:
        named.append(pseudo_authority)
    if not named:
        raise Refusal(Code.BAD_REQUEST, "The request names no host.", close=True)
    read = {read_authority(text, default_port=reverse.default_port) for text in named}
    if len(read) > 1:
        raise Refusal(Code.AUTHORITY_MISMATCH, "Host and :authority differ.", close=True)
    if not is_own(reverse, next(iter(read))):
        raise Refusal(
            Code.AUTHORITY_MISMATCH,
            "Call this listener by the address that it is bound to, or by a name under hosts of its settings.",
            close=True,
        )
    called = CalledAs(f"{reverse.scheme}://{named[-1]}".encode())
    _judge_page(head, called)
    return called


def is_own(reverse: Reverse, authority: Authority) -> bool:
    """Whether the listener is called by this host and port."""
    return (
        reverse.addresses is None
        or authority.host in reverse.names
        or (authority.host, authority.port) in reverse.addresses
    )


def _judge_page(head: RequestHead, called: CalledAs) -> None:
    own = called.origin.lower()
    if any(value.lower() != own for value in head.values(b"origin")) or any(
        value.lower() not in _OWN_SITES for value in head.values(b"sec-fetch-site")
    ):
        raise Refusal(Code.ACCESS_DENIED, "The request says that a page of another site has sent it.", close=True)


def authority_of(route: Route) -> Authority:
    """The upstream that a reverse listener leads to by this route.

    Raises:
        LookupError: the route is not for reverse listeners.
    """
    upstream = route.upstream
    if upstream is None:
        raise LookupError(f"route {route.name} leads from no listener")
    return Authority(upstream.host, upstream.port, cleartext=upstream.cleartext)


def for_upstream(head: RequestHead, upstream: Authority) -> RequestHead:
    """The head with the upstream's origin in the place of ours. `called_as` has let no other pass."""
    if not head.values(b"origin"):
        return head
    own = _origin(upstream)
    return head._replace(
        fields=tuple((name, own if name.lower() == b"origin" else value) for name, value in head.fields)
    )


def _origin(authority: Authority) -> bytes:
    return (b"http://" if authority.cleartext else b"https://") + authority.host_header


def for_caller(fields: Fields, upstream: Authority, called: CalledAs) -> Fields:
    """An answer's fields with our origin in the place of the upstream's. The very same tuple where nothing changes."""
    if not any(len(name) in {8, 16} and name.lower() in _PLACES for name, _ in fields):
        return fields
    changed = tuple(
        (name, _translated(value, upstream, called) if name.lower() in _PLACES else value) for name, value in fields
    )
    return fields if changed == fields else changed


def _translated(value: bytes, upstream: Authority, called: CalledAs) -> bytes:
    found = _URL.fullmatch(value)
    if found is None:
        return value  # relative already, or nothing that a client could read in one way
    scheme, written, rest = found.groups()
    cleartext = upstream.cleartext if scheme is None else scheme.lower() == b"http"
    try:
        read = read_authority(written.decode("ascii", "replace"), default_port=80 if cleartext else 443)
    except Refusal:
        return value
    if cleartext != upstream.cleartext or (read.host, read.port) != (upstream.host, upstream.port):
        return value
    return called.origin + rest
