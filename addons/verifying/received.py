"""The request as the caller sent it, for whoever judges its signature: before anything of ours has changed it."""

from __future__ import annotations

from dataclasses import dataclass

from addons.authority import read_authority
from addons.exchange import Authority, Exchange
from addons.head import RequestHead
from addons.reverse import CalledAs
from addons.signing.outgoing import Outgoing, one_cookie
from policies import Grant


@dataclass(frozen=True, slots=True)
class SentHead:
    """The head as it came, kept where a stage before the check changes it."""

    head: RequestHead


@dataclass(frozen=True, slots=True)
class Verified:
    """The signature of this request holds, and its nonce is used up."""


def keep_sent(exchange: Exchange) -> None:
    """Keeps the head of a request that will be checked, before a stage changes it for the first time."""
    if exchange.ask(Grant).route.verify is not None and exchange.find(SentHead) is None:
        exchange.put(SentHead(exchange.head))


def received(exchange: Exchange, body: bytes) -> Outgoing:
    """What was signed, as signers write it: method, target, authority, fields and body of the caller.

    Args:
        exchange: granted.
        body: all of it.
    """
    kept = exchange.find(SentHead)
    head = exchange.head if kept is None else kept.head
    scheme, host = _called(exchange)
    fields = one_cookie(head.fields) if head.http2 else head.fields
    return Outgoing(head.method, scheme, host, head.target, fields, body, head, http2=head.http2)


def _called(exchange: Exchange) -> tuple[str, bytes]:
    """Scheme and host as the caller wrote them; the port stands there where it is not the scheme's own."""
    called = exchange.find(CalledAs)
    if called is None:
        authority = exchange.ask(Authority)
        return ("http" if authority.cleartext else "https"), authority.host_header
    scheme, _, written = called.origin.decode("ascii", "replace").partition("://")
    port = 443 if scheme == "https" else 80
    try:
        read = read_authority(written, default_port=port)
    except Exception:  # noqa: BLE001 - on a Unix socket a client may write anything: it is signed as it was written
        return scheme, written.encode("ascii", "replace")
    return scheme, Authority(read.host, read.port, cleartext=scheme == "http").host_header
