"""The way into a reverse listener: HTTP/1.1, or HTTP/2 with prior knowledge (RFC 9113 section 3.3), told apart by the
first bytes. Over TLS, ALPN has told already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode

from ostiary.engines.mitm.layers import GuardedHttpLayer
from ostiary.engines.mitm.watch import HeadDue
from ostiary.tls_rules import ALPN_HTTP2

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler

type Commands = layer.CommandGenerator[None]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def speaks_http2(held: bytes) -> bool | None:
    """Whether these first bytes are HTTP/2's; None where more are needed."""
    if held.startswith(PREFACE):
        return True
    return None if PREFACE.startswith(held) else False


def nowhere(context: Context, listener: str) -> None:
    """Tells mitmproxy that the upstream is known, which its layers insist on. The granted route says which it is; nothing
    can be dialled by what stands here.
    """
    context.server.address = (listener, 0)
    context.server.tls = True


class ReverseEntrance(layer.Layer):
    """The first layer of a connection on a reverse listener."""

    def __init__(self, context: Context, handler: ClientHandler) -> None:
        super().__init__(context)
        self.handler = handler
        self._held = b""
        self._next: layer.Layer | None = None
        nowhere(context, handler.connection.listener.name)

    def _handle_event(self, event: events.Event) -> Commands:
        if self._next is not None:
            if not (isinstance(event, HeadDue) and event.layer is self):
                yield from self._next.handle_event(event)
        elif isinstance(event, HeadDue):
            yield commands.CloseConnection(self.context.client)
        elif isinstance(event, events.Start):
            # Who connects has something to say; nothing is known of it yet that would let it wait.
            self.handler.head_due(HeadDue(self, None))
        elif isinstance(event, events.DataReceived):
            self._held += event.data
            http2 = self.context.client.alpn == ALPN_HTTP2 or speaks_http2(self._held)
            if http2 is not None:
                yield from self._enter(http2=http2)
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)

    def _enter(self, *, http2: bool) -> Commands:
        self.context.client.alpn = ALPN_HTTP2 if http2 else None
        self._next = GuardedHttpLayer(self.context, HTTPMode.transparent, self.handler)
        yield from self._next.handle_event(events.Start())
        held, self._held = self._held, b""
        yield from self._next.handle_event(events.DataReceived(self.context.client, held))
