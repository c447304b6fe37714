"""Connections as mitmproxy's HTTP layer asks for them, held to what was vetted; and the end of a caller's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import GetHttpConnection

from ostiary.engines.mitm.dialling import Bound

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler


class ClosedLayer(layer.Layer):
    """Closes the caller's connection and swallows the rest."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            yield commands.CloseConnection(self.context.client)


@dataclass
class BoundConnection(GetHttpConnection):
    """A connection to a vetted destination, shared only by requests with the same pool key."""

    bound: Bound = field(kw_only=True)
    handler: ClientHandler = field(kw_only=True)
    anew: bool = field(default=False, kw_only=True)
    """Whether it must be dialled, whatever is open."""

    def __hash__(self) -> int:
        return id(self)

    def connection_spec_matches(self, connection: Any) -> bool:
        # The context's own placeholder connection was never bound, so it never matches and is never dialled.
        return super().connection_spec_matches(connection) and self.handler.pool_key(connection) == self.bound.pool_key
