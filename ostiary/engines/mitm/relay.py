"""What passes once HTTP has ended: the frames of a WebSocket, and tunnels to authorities that no route names. They are
counted, and their deadlines are kept. Frames of an upstream that has seen a credential are searched for it; all else
passes unread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from addons.exchange import Exchange
from addons.parts import Deadlines
from addons.refusal import Code, Refusal
from addons.reply.frames import Frames
from addons.reply.scrub import Scrub
from ostiary.engines.mitm.watch import Expired, Watch

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler

type Commands = layer.CommandGenerator[None]


class FrameRelay(layer.Layer):
    """Passes frames on, unkept; those of the upstream without the credential."""

    def __init__(self, context: Context, exchange: Exchange, handler: ClientHandler) -> None:
        super().__init__(context)
        self._exchange = exchange
        self._handler = handler
        scrub = exchange.find(Scrub)
        self._search = Frames(scrub) if scrub is not None else None
        self._before = exchange.redactions

    def _clean(self, data: bytes) -> bytes | None:
        """What may reach the caller; None where that is the end."""
        if self._search is None:
            return data
        passes, refusal = None, None
        try:
            passes = self._search.feed(data)
        except Refusal as error:
            refusal = error
        self._exchange.redactions = self._before + self._search.redactions
        if refusal is not None:
            self._handler.boundary.refuse(self._exchange, refusal)
        return passes

    def _handle_event(self, event: events.Event) -> Commands:
        client, server = self.context.client, self.context.server
        exchange = self._exchange
        if isinstance(event, events.DataReceived):
            if event.connection is client:
                exchange.bytes_in += len(event.data)
                if exchange.payload is not None:
                    exchange.payload.update(event.data)
                yield commands.SendData(server, event.data)
            elif (passes := self._clean(event.data)) is None:
                yield commands.CloseConnection(server)
                yield commands.CloseConnection(client)
            elif passes:
                exchange.bytes_out += len(passes)
                yield commands.SendData(client, passes)
        elif isinstance(event, events.ConnectionClosed):
            # After the closing handshake either side may end first (RFC 6455 section 7.1.1): both ends are good.
            self._handler.boundary.settle(exchange, "ok")
            yield commands.CloseConnection(server if event.connection is client else client)
            yield commands.CloseConnection(event.connection)


class BlindTunnel(layer.Layer):
    """Passes a tunnel on, both directions by themselves: one side may end its own and still read the other.

    Args:
        context: of the caller's connection.
        server: the open connection to the destination.
        exchange: of the CONNECT; settled when both sides have ended.
        handler: of the caller.
        times: `idle` and `total` are kept.
    """

    def __init__(
        self, context: Context, server: Server, exchange: Exchange, handler: ClientHandler, times: Deadlines
    ) -> None:
        super().__init__(context)
        self.context.server = server
        self._exchange = exchange
        self._handler = handler
        self._watch = Watch(handler.loop, times, lambda kind: handler.post(Expired(self, 0, kind)))

    def _handle_event(self, event: events.Event) -> Commands:
        client, server = self.context.client, self.context.server
        if isinstance(event, events.DataReceived):
            self._watch.touch()
            if event.connection is client:
                self._exchange.bytes_in += len(event.data)
                yield commands.SendData(server, event.data)
            else:
                self._exchange.bytes_out += len(event.data)
                yield commands.SendData(client, event.data)
        elif isinstance(event, events.ConnectionClosed):
            other = server if event.connection is client else client
            if ConnectionState.CAN_READ in other.state and ConnectionState.CAN_WRITE in event.connection.state:
                yield commands.CloseTcpConnection(other, half_close=True)
            else:
                yield from self._end()
        elif isinstance(event, Expired) and not self._exchange.settled:
            refusal = Refusal(Code.UPSTREAM_TIMEOUT, "The tunnel fell silent.", close=True)
            self._handler.boundary.settle(self._exchange, "truncated", code=refusal.code)
            yield from self._end()

    def _end(self) -> Commands:
        self._watch.stop()
        self._handler.boundary.settle(self._exchange, "ok")
        for connection in (self.context.server, self.context.client):
            if connection.state is not ConnectionState.CLOSED:
                yield commands.CloseConnection(connection)
