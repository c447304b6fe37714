"""The threshold of a TLS listener: a caller's connection shakes hands here, and is then given to whoever serves it.

Counted as any connection from its first moment on, so that a flood of handshakes meets the same caps. The handshake has
the deadline of a head, from accept to its last byte. Whoever serves gets a connection of its own to admit: nothing that
was done here is known to it but the protocol that was agreed on.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from mitmproxy.connection import Client

from addons.boundary import place_of
from addons.exchange import Connection, Listener
from addons.refusal import Code, Refusal

if TYPE_CHECKING:
    from ostiary.engines.mitm.engine import MitmEngine

_log = logging.getLogger("ostiary.engine")
_tls_log = logging.getLogger("ostiary.tls")

UNBOUNDED_S: Final = 365 * 86_400.0
CLOSE_S: Final = 5.0
MAX_HELD_BYTES: Final = 64 * 1024


class _Accepted(Protocol):
    """What asyncio's transports and writers have in common."""

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


def agreed(accepted: _Accepted) -> bytes | None:
    """The protocol that ALPN chose at the threshold; None where none was, or there is no TLS."""
    session: ssl.SSLObject | None = accepted.get_extra_info("ssl_object")
    chosen = session.selected_alpn_protocol() if session is not None else None
    return chosen.encode() if chosen is not None else None


type Serve = Callable[[asyncio.Transport, asyncio.Transport, bytes], None]
"""Given the decrypted transport, the socket's below it, and what has been read already."""


class Threshold(asyncio.Protocol):
    """One connection until its handshake is done.

    Args:
        engine: that admits and counts it.
        listener: where it came in.
        context: gives the context of now.
        facts: what the socket says of the peer.
        client: makes what mitmproxy knows of the connection.
        serve: goes on with it.
    """

    def __init__(
        self,
        engine: MitmEngine,
        listener: Listener,
        context: Callable[[], ssl.SSLContext],
        facts: Callable[[Listener, asyncio.BaseTransport], Connection],
        client: Callable[[asyncio.BaseTransport], Client],
        serve: Serve,
    ) -> None:
        self._engine = engine
        self._listener = listener
        self._context = context
        self._facts = facts
        self._make_client = client
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._client: Client | None = None
        self._held = b""
        self._lost = False
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.connection: Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._transport is not None:
            return  # TLS on a connection that is known
        self._transport = cast("asyncio.Transport", transport)
        self.connection = self._facts(self._listener, transport)
        if not self._engine.admits(self.connection):
            self._transport.close()
            return
        self._client = self._make_client(transport)
        self._engine.enter(self._client, self)
        self._engine.parts.metrics.connection("downstream", 1)
        if self._engine.header_timeout_s:
            self._handle = self._loop.call_later(self._engine.header_timeout_s, self._late)
        self._task = self._loop.create_task(self._shake_hands(self._transport))

    def data_received(self, data: bytes) -> None:
        """Bytes that came before TLS was there to read them, or in one piece with the end of the handshake."""
        self._held += data
        if len(self._held) > MAX_HELD_BYTES:
            self.hang_up()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # why a caller goes is its own affair
        self._lost = True
        if self._task is not None:
            self._task.cancel()
        self._leave()

    def hang_up(self) -> None:
        """Closes the connection at once."""
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._leave()

    def _leave(self) -> None:
        """It is no longer counted here."""
        if self._handle is not None:
            self._handle.cancel()
        client, self._client = self._client, None
        if client is not None:
            self._engine.leave(client, self.connection)
            self._engine.parts.metrics.connection("downstream", -1)

    def _late(self) -> None:
        refusal = Refusal(Code.REQUEST_TIMEOUT, "The TLS handshake did not end in time.", close=True)
        self._engine.parts.boundary.refuse_unparsed(self.connection, refusal)
        self.hang_up()

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        if transport.is_closing():
            self.hang_up()  # lost already: TLS that were begun now would never be told
            return
        held, self._held = self._held, b""
        limit_s = self._engine.header_timeout_s
        if held:
            self._loop.call_soon(feed, transport, held)
        try:
            secured = await self._loop.start_tls(
                transport,
                self,
                self._context(),
                server_side=True,
                # The deadline is ours, and began with the connection; this one is for what neither side tells us of.
                ssl_handshake_timeout=limit_s + CLOSE_S if limit_s else UNBOUNDED_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except asyncio.CancelledError:
            return  # it has been hung up; nobody waits for this task
        except Exception as error:  # noqa: BLE001 - a handshake fails in many ways; each ends the connection
            self._failed(error)
            return
        # uvloop tells of the end of a connection whose handshake is not done nobody but this call.
        if secured is None or self._lost or secured.get_extra_info("ssl_object") is None:
            self.hang_up()
            return
        self._task = None
        self._leave()
        try:
            self._serve(secured, transport, self._held)
        except Exception as error:  # noqa: BLE001 - a connection that nobody serves must not stay open
            _log.error("a connection could not be served: %s at %s", type(error).__name__, place_of(error))
            secured.abort()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, ssl.SSLError):
            # Its reason is OpenSSL's own word, such as HTTP_REQUEST or TLSV1_ALERT_UNKNOWN_CA.
            _tls_log.warning(
                "TLS with a caller failed on listener %s (%s): does the client trust the listener's certificate, and say https://?",
                self._listener.name,
                error.reason or "no reason",
            )
            refusal = Refusal(Code.BAD_REQUEST, "This listener speaks TLS.", close=True)
            self._engine.parts.boundary.refuse_unparsed(self.connection, refusal)
        elif not isinstance(error, OSError):  # a peer that goes away, or looks whether the port is open, is none
            _log.error("TLS could not be begun: %s at %s", type(error).__name__, place_of(error))
        self.hang_up()


def feed(transport: asyncio.Transport, held: bytes) -> None:
    """Gives TLS the bytes that were read before it began."""
    protocol = transport.get_protocol()
    if not isinstance(protocol, asyncio.BufferedProtocol) and not hasattr(protocol, "get_buffer"):
        cast("asyncio.Protocol", protocol).data_received(held)
        return
    buffered = cast("asyncio.BufferedProtocol", protocol)
    while held:
        room = memoryview(cast("bytearray", buffered.get_buffer(len(held))))
        part = held[: len(room)]
        room[: len(part)] = part
        buffered.buffer_updated(len(part))
        held = held[len(part) :]
