"""Dials vetted addresses, and carries the reason of a failed dial through mitmproxy's layers, which pass on nothing but
text.

Failures of ours travel as `ostiary|code|sentence`; any other text at that point is mitmproxy telling that TLS with the
upstream failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from addons.egress import Destination
from addons.exchange import Authority
from addons.refusal import Code, Refusal
from policies.model import Http2

_MARK: Final = "ostiary"


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
    return Refusal(Code.UPSTREAM_TLS, f"The upstream's certificate or TLS is not acceptable: {_tls_reason(text)}.")


def _tls_reason(text: str) -> str:
    """OpenSSL's reason in a few words; its texts hold neither secrets nor addresses."""
    reason = text.partition("Certificate verify failed: ")[2] or text
    return "".join(char for char in reason if char.isprintable())[:120].rstrip(".") or "handshake failed"


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
