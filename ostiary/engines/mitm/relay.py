"""Bytes that pass unread: the frames of a WebSocket. They are counted, and the record closes with the first side that
ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context

from addons.exchange import Exchange

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler

type Commands = layer.CommandGenerator[None]


class FrameRelay(layer.Layer):
    """Passes frames on, untouched and unkept."""

    def __init__(self, context: Context, exchange: Exchange, handler: ClientHandler) -> None:
        super().__init__(context)
        self._exchange = exchange
        self._handler = handler

    def _handle_event(self, event: events.Event) -> Commands:
        client, server = self.context.client, self.context.server
        exchange = self._exchange
        if isinstance(event, events.DataReceived):
            if event.connection is client:
                exchange.bytes_in += len(event.data)
                if exchange.payload is not None:
                    exchange.payload.update(event.data)
                yield commands.SendData(server, event.data)
            else:
                exchange.bytes_out += len(event.data)
                yield commands.SendData(client, event.data)
        elif isinstance(event, events.ConnectionClosed):
            # After the closing handshake either side may end first (RFC 6455 section 7.1.1): both ends are good.
            self._handler.boundary.settle(exchange, "ok")
            yield commands.CloseConnection(server if event.connection is client else client)
            yield commands.CloseConnection(event.connection)
