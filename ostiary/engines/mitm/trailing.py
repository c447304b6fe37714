"""HTTP/1 with trailers, which mitmproxy's own cannot: it fails on the first one.

Rules: a chunked body's last lines are read up to a cap and passed on as trailers; trailers are written behind a chunked
body and nowhere else; a chunk without content is never written, since that is how a chunked body ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from h11._readers import ChunkedReader
from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    HttpEvent,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseTrailers,
)

from addons.head import Fields
from addons.trailers import lines
from ostiary.engines.mitm.chunks import StrictChunks

if TYPE_CHECKING:
    from mitmproxy.proxy.layers.http._http1 import Http1Connection as _Base
else:
    _Base = object

type Commands = layer.CommandGenerator[None]

_LAST_CHUNK: Final = b"0\r\n\r\n"


class Trailing(_Base):
    """Put before mitmproxy's HTTP/1 server or client."""

    _to_send: Fields = ()
    _reader: Any = None

    @property
    def body_reader(self) -> Any:
        return self._reader

    @body_reader.setter
    def body_reader(self, reader: Any) -> None:
        self._reader = StrictChunks() if isinstance(reader, ChunkedReader) else reader

    def may_send(self) -> bool:
        """Whether the peer wants trailers."""
        return True

    def read_body(self, event: events.Event) -> Commands:
        for command in super().read_body(event):
            if isinstance(command, ReceiveHttp) and isinstance(
                command.event, RequestEndOfMessage | ResponseEndOfMessage
            ):
                reader = self._reader
                if isinstance(reader, StrictChunks) and reader.trailers:
                    fields = reader.trailers
                    kind = RequestTrailers if isinstance(command.event, RequestEndOfMessage) else ResponseTrailers
                    yield ReceiveHttp(kind(command.event.stream_id, http.Headers(fields)))
            yield command

    def send(self, event: HttpEvent) -> Commands:
        if isinstance(event, RequestTrailers | ResponseTrailers):
            self._to_send = event.trailers.fields if self.may_send() else ()
            return
        if isinstance(event, RequestData | ResponseData) and not event.data:
            return
        if isinstance(event, RequestHeaders | ResponseHeaders):
            self._to_send = ()
        for command in super().send(event):
            if isinstance(command, commands.SendData) and command.data == _LAST_CHUNK and self._to_send:
                yield commands.SendData(command.connection, b"0\r\n" + lines(self._to_send))
                self._to_send = ()
            else:
                yield command
