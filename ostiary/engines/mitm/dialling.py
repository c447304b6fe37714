"""Dials vetted addresses, and carries the reason of a failed dial through mitmproxy's layers, which pass on nothing but
text.

Failures of ours travel as `ostiary|code|sentence`; any other text at that point is mitmproxy telling that TLS with the
upstream failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from addons.client_certificate import ClientCertificate
from addons.egress import Destination
from addons.exchange import Authority
from addons.refusal import Code, Refusal
from policies.model import Http2

_MARK: Final = "ostiary"
NOT_PINNED: Final = "The upstream proves its name with none of the keys that this route pins."
_UNSPECIFIED: Final = "unspecified certificate verification error"
"""OpenSSL's word for a chain that it takes and our callback does not."""


def failure_text(refusal: Refusal) -> str:
    """A refusal as text for a connection's error."""
    return f"{_MARK}|{refusal.code.value}|{refusal.message}"


def parse_failure(text: str) -> Refusal:
    """The refusal behind the error of a connection."""
    # mitmproxy puts its own words before an error of ours in some places.
    found = text.find(f"{_MARK}|")
    if found >= 0:
        _, code, message = text[found:].split("|", 2)
        return Refusal(Code(code), message)
    if _UNSPECIFIED in text:
        return Refusal(Code.UPSTREAM_TLS, NOT_PINNED)
    return Refusal(Code.UPSTREAM_TLS, f"The upstream's certificate or TLS is not acceptable: {_tls_reason(text)}.")


def _tls_reason(text: str) -> str:
    """OpenSSL's reason in a few words; its texts hold neither secrets nor addresses."""
    reason = text.partition("Certificate verify failed: ")[2] or text
    return "".join(char for char in reason if char.isprintable())[:120].rstrip(".") or "handshake failed"


@dataclass(frozen=True, slots=True)
class TlsTerms:
    """What TLS with an upstream shows and asks for, beyond the roots' name."""

    identity: str = ""
    """Of the client certificate, its version included; empty where none is shown."""
    pins: frozenset[bytes] = frozenset()
    """SHA-256 of keys, one of which the upstream's chain must have; none: any."""
    roots: str = ""
    """SHA-256 of the route's own roots."""


@dataclass(frozen=True, slots=True)
class PoolKey:
    """Requests share an upstream connection only where all of this is the same."""

    workload: str
    authority: Authority
    addresses: tuple[tuple[str, int], ...]
    ca_file: Path | None
    upgrade: bool = False
    """For a WebSocket: HTTP/1.1 alone is offered, and the connection is nobody else's afterwards."""
    http2: Http2 = "auto"
    """What the route says of HTTP/2: connections that were negotiated under different words are not shared."""
    tls: TlsTerms | None = None
    """None: nothing but what the process asks of every upstream."""

    def offers_http2(self, *, caller_speaks_it: bool) -> bool:
        """Whether HTTP/2 is offered to the upstream."""
        return not self.upgrade and (self.http2 == "prefer" or (self.http2 == "auto" and caller_speaks_it))

    def __hash__(self) -> int:
        # What differs between two keys differs here nearly always; hashing all of it would cost more than comparing.
        return hash((self.workload, self.addresses))


@dataclass(frozen=True, slots=True)
class Bound:
    """What a new upstream connection is for."""

    destination: Destination
    pool_key: PoolKey
    connect_timeout_s: float
    certificate: ClientCertificate | None = field(default=None, repr=False)
    """What TLS shows."""


async def dial(bound: Bound) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to the first vetted address that answers, inside one deadline.

    Raises:
        Refusal: `upstream_unreachable` or `upstream_timeout`.
    """
    authority = bound.destination.authority
    try:
        async with asyncio.timeout(bound.connect_timeout_s or None):
            for host, port in bound.destination.addresses:
                try:
                    return await asyncio.open_connection(host, port)
                except OSError:
                    continue
    except TimeoutError:
        raise Refusal(Code.UPSTREAM_TIMEOUT, f"{authority} did not accept a connection in time.") from None
    raise Refusal(Code.UPSTREAM_UNREACHABLE, f"{authority} accepts no connection.")
