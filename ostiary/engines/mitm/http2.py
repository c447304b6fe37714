"""HTTP/2 towards the caller: metered, and judged before mitmproxy takes it apart.

What the h2 library leaves open is closed here: floods of small frames, header blocks that do not end, compression tables
of the peer's choosing, CONNECT inside a tunnel, framing fields that do not fit the stream.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import h2.errors
import h2.events
from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http2 import (
    Http2Client,
    Http2Server,
    StreamState,
    parse_h2_request_headers,
    parse_h2_response_headers,
)

from addons.edge import judge_http2_framing
from addons.refusal import Code, Refusal
from ostiary.engines.mitm.frames import Flooded, FrameMeter
from ostiary.engines.mitm.http1 import blank_request
from ostiary.engines.mitm.watch import HeadDue

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler

type Commands = layer.CommandGenerator[None]

MAX_STREAMS: Final = 100
"""Open at once on one connection of a caller."""
MAX_TABLE_BYTES: Final = 4096
"""Of our own compression table. A peer may allow more; each entry would be looked through for each field we send."""
BLANK_RESPONSE: Final = http.Response(
    b"HTTP/1.1", 200, b"", http.Headers(), None, None, timestamp_start=0.0, timestamp_end=None
)
"""To fill in."""


class StrictHttp2Server(Http2Server):
    """HTTP/2 towards the caller."""

    def __init__(self, context: Context, handler: ClientHandler) -> None:
        super().__init__(context)
        self.handler = handler
        self._meter = FrameMeter(handler.parts.heads.header_bytes)
        self._watched_s: float | None = None
        local = self.h2_conn.local_settings
        local.max_concurrent_streams = MAX_STREAMS
        local.max_header_list_size = handler.parts.heads.header_bytes
        # As mitmproxy does after its own: unacknowledged settings would not be those that are sent.
        local.acknowledge()
        self.h2_conn.decoder.max_header_list_size = handler.parts.heads.header_bytes

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, HeadDue):
            if event.mark == self._meter.block_since_s and self.conn.connected:
                yield from self._refuse(Code.REQUEST_TIMEOUT, h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            return
        if isinstance(event, events.DataReceived):
            try:
                self._meter.received(event.data, self.handler.loop.time())
            except Flooded:
                yield from self._refuse(Code.OVERLOADED, h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return
            since_s = self._meter.block_since_s
            if since_s is not None and since_s != self._watched_s:
                self._watched_s = since_s
                self.handler.head_due(HeadDue(self, since_s))
        for command in super()._handle_event(event):
            if isinstance(command, commands.SendData):
                self._meter.sent(command.data)
            yield command

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            bound_table(self)
        elif isinstance(event, h2.events.RequestReceived):
            try:
                judge_http2_framing(tuple(event.headers or ()), ends=event.stream_ended is not None)
            except Refusal:
                yield from self._refuse(Code.BAD_REQUEST, h2.errors.ErrorCodes.PROTOCOL_ERROR)
                return True
            return (yield from self._begin(event))
        return (yield from super().handle_h2_event(event))

    def _begin(self, event: h2.events.RequestReceived) -> layer.CommandGenerator[bool]:
        """Begins a stream as mitmproxy does, without its constructor, which would check the type of every field."""
        request = blank_request()
        data = request.data
        try:
            data.host, data.port, data.method, data.scheme, data.authority, data.path, data.headers = (
                parse_h2_request_headers(event.headers or ())
            )
        except ValueError:
            yield from self._refuse(Code.BAD_REQUEST, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return True
        data.http_version = b"HTTP/2.0"
        data.timestamp_start = time.time()  # noqa: TID251 - mitmproxy's own record
        self.streams[event.stream_id] = StreamState.HEADERS_RECEIVED
        yield ReceiveHttp(RequestHeaders(event.stream_id, request, end_stream=event.stream_ended is not None))
        return False

    def protocol_error(self, message: str, error_code: int = h2.errors.ErrorCodes.PROTOCOL_ERROR) -> Commands:  # noqa: ARG002 - mitmproxy's text may quote what was sent
        yield from self._refuse(Code.BAD_REQUEST, error_code)

    def _refuse(self, code: Code, error_code: int) -> Commands:
        """Ends the connection, and with it all that is open on it."""
        self.handler.boundary.refuse_unparsed(
            self.handler.connection, Refusal(code, "The HTTP/2 connection breaks its bounds.", close=True)
        )
        self.h2_conn.close_connection(error_code)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self.close_connection("refused")


class BoundedHttp2Client(Http2Client):
    """HTTP/2 towards an upstream."""

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            bound_table(self)
        if (
            isinstance(event, h2.events.ResponseReceived)
            and self.streams.get(event.stream_id) is StreamState.EXPECTING_HEADERS
        ):
            return (yield from self._answered(event))
        # mitmproxy forgets a stream once its answer is complete, and a reset that comes in one piece with it.
        if (
            isinstance(event, h2.events.StreamReset)
            and event.stream_id not in self.streams
            and event.stream_id in self.their_stream_id
        ):
            yield ReceiveHttp(ResponseProtocolError(event.stream_id, "reset", ErrorCode.CANCEL))
            return False
        return (yield from super().handle_h2_event(event))

    def _answered(self, event: h2.events.ResponseReceived) -> layer.CommandGenerator[bool]:
        """The head of an answer as mitmproxy reads it, without its constructor."""
        response = http.Response.__new__(http.Response)
        data = response.data = http.ResponseData.__new__(http.ResponseData)
        data.__dict__.update(BLANK_RESPONSE.data.__dict__)
        try:
            data.status_code, data.headers = parse_h2_response_headers(event.headers or ())
        except ValueError:
            yield from self.protocol_error("Invalid HTTP/2 response headers")
            return True
        data.http_version = b"HTTP/2.0"
        data.timestamp_start = time.time()  # noqa: TID251 - mitmproxy's own record
        self.streams[event.stream_id] = StreamState.HEADERS_RECEIVED
        yield ReceiveHttp(ResponseHeaders(event.stream_id, response, event.stream_ended is not None))
        return False


def bound_table(connection: Http2Server | Http2Client) -> None:
    """Keeps our compression table small, whatever the peer allows."""
    encoder = connection.h2_conn.encoder
    encoder.header_table_size = min(encoder.header_table_size, MAX_TABLE_BYTES)
