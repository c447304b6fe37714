"""The upstream's side: one TLS connection, and HTTP/1 answers read strictly.

An answer that is not HTTP in the narrow reading of RFC 9112 section 4 is refused: what a lenient parser would guess, the caller's
parser might guess otherwise.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import RegisterHttpConnection
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    HttpEvent,
    RequestData,
    RequestHeaders,
    RequestProtocolError,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client, make_body_reader

from addons.websocket import NotSwitched, judge_switch
from ostiary.engines.mitm.http2 import BLANK_RESPONSE, BoundedHttp2Client
from ostiary.engines.mitm.trailing import Trailing

type Commands = layer.CommandGenerator[None]

MAX_HEAD_BYTES: Final = 256 * 1024
"""Of an answer; some APIs send large cookies and policies."""
MAX_INTERIM: Final = 32
"""Interim answers (1xx) before the final one."""
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
# One line each, from line end to line end. Blanks behind a value are taken off later, where there are any.
_FIELDS: Final = re.compile(rb"\r\n([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)(?=\r\n|\Z)")
_FRAMING: Final = re.compile(rb"\r\n(content-length|transfer-encoding):[ \t]*+([^\r\n]*+)", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")
_NO_BODY: Final = frozenset({204, 304})


class NotHttp(ValueError):
    """The bytes are no answer."""


def parse_answer(head: bytes, *, to_head: bool) -> tuple[http.Response, int | None]:
    """Takes apart the head of an answer.

    Args:
        head: without the final empty line.
        to_head: whether the request was HEAD.

    Returns:
        The answer and the size of its body: None where it is chunked, -1 where it ends with the connection.

    Raises:
        NotHttp: something in it can be read in two ways.
    """
    line_end = head.find(b"\r\n")
    if line_end < 0:
        line_end = len(head)
    status_line = _STATUS_LINE.fullmatch(head, 0, line_end)
    fields = _FIELDS.findall(head, line_end)
    # A field takes exactly one line, from line end to line end: where a line is left over, it is no field.
    if status_line is None or len(fields) != head.count(b"\r\n", line_end):
        raise NotHttp
    status = int(status_line[2])
    length: bytes | None = None
    chunked = False
    if b" \r\n" in head or b"\t\r\n" in head or head.endswith((b" ", b"\t")):
        fields = [(name, value.rstrip(b" \t")) for name, value in fields]
    for name, value in _FRAMING.findall(head, line_end):
        value = value.rstrip(b" \t")  # noqa: PLW2901 - OWS is no part of it
        if len(name) == len(b"content-length"):
            if length is not None or not _LENGTH.fullmatch(value):
                raise NotHttp
            length = value
        else:
            if value.lower() != b"chunked" or chunked or status_line[1] == b"0":
                raise NotHttp
            chunked = True
    if chunked and length is not None:
        raise NotHttp
    response = http.Response.__new__(http.Response)
    data = response.data = http.ResponseData.__new__(http.ResponseData)
    headers = http.Headers.__new__(http.Headers)
    headers.fields = tuple(fields)
    data.__dict__ = {
        **BLANK_RESPONSE.data.__dict__,
        "http_version": b"HTTP/1." + status_line[1],
        "status_code": status,
        "reason": status_line[3] or b"",
        "headers": headers,
        "timestamp_start": time.time(),  # noqa: TID251 - mitmproxy's own record
    }
    if to_head or status < 200 or status in _NO_BODY:
        return response, 0
    return response, None if chunked else -1 if length is None else int(length)


class StrictHttp1Client(Trailing, Http1Client):
    """HTTP/1 towards an upstream."""

    _interim = 0
    """Interim answers to the request under way."""

    def send(self, event: HttpEvent) -> Commands:
        if self.stream_id is None and not isinstance(event, RequestHeaders | RequestProtocolError):
            return  # what is left of a request that was given up before its head was sent
        yield from super().send(event)

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        if not isinstance(event, events.DataReceived) or self.request is None or self.stream_id is None:
            yield from super().read_headers(event)
            return
        try:
            found = self._final_head(to_head=self.request.data.method == b"HEAD")
        except NotHttp:
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(ResponseProtocolError(self.stream_id, "malformed", ErrorCode.GENERIC_SERVER_ERROR))
            return
        if found is None:
            return
        response, size = found
        if response.data.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            try:
                judge_switch(self.request.data.headers.fields, response.data.headers.fields)
            except NotSwitched:
                yield commands.CloseConnection(self.conn)
                yield ReceiveHttp(ResponseProtocolError(self.stream_id, "bad upgrade", ErrorCode.GENERIC_SERVER_ERROR))
                return
        self.response = response
        yield ReceiveHttp(ResponseHeaders(self.stream_id, response, size == 0))
        self.body_reader = make_body_reader(size)
        self.state = self.read_body
        yield from self.state(event)

    def _final_head(self, *, to_head: bool) -> tuple[http.Response, int | None] | None:
        """The head of the final answer, or of a switch of protocols; None while it has not arrived.

        Interim answers are passed over, up to a number: the engine has answered `Expect` itself, and others carry nothing a
        caller needs.

        Raises:
            NotHttp: there is none to come.
        """
        while True:
            raw = bytes(self.buf)
            end = raw.find(b"\r\n\r\n")
            if end < 0 and len(raw) <= MAX_HEAD_BYTES:
                return None
            # A head over the cap has no end worth looking for: what is cut off of it is no HTTP.
            end = end if end <= MAX_HEAD_BYTES else -1
            found = parse_answer(raw[: max(end, 0)], to_head=to_head)
            self.buf.maybe_extract_at_most(end + 4)
            status = found[0].data.status_code
            if status >= 200 or status == HTTPStatus.SWITCHING_PROTOCOLS:
                self._interim = 0
                return found
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise NotHttp

    def make_pipe(self) -> Commands:
        """After a WebSocket handshake: what has been read behind it is the first frames, byte for byte."""
        self.state = self.passthrough
        held = bytes(self.buf.maybe_extract_at_most(len(self.buf)) or b"") if len(self.buf) else b""
        if held:
            yield from self.state(events.DataReceived(self.conn, held))


def _waiting(client: BoundedHttp2Client) -> int:
    """Bytes that wait for the upstream's window, or for one of its streams to end."""
    buffered = sum(len(chunk.data) for chunks in client.h2_conn.stream_buffers.values() for chunk in chunks)
    queued = sum(
        len(event.data)
        for waiting in client.stream_queue.values()
        for event in waiting
        if isinstance(event, RequestData)
    )
    return buffered + queued


class UpstreamClient(layer.Layer):
    """Opens a connection, then speaks what was negotiated on it."""

    def __init__(self, context: Context, uploads: dict[Server, Callable[[], int]]) -> None:
        super().__init__(context)
        self._uploads = uploads

    def _handle_event(self, event: events.Event) -> Commands:
        failure = yield commands.OpenConnection(self.context.server)
        if not failure:
            child: layer.Layer
            if self.context.server.alpn == b"h2":
                child = http2 = BoundedHttp2Client(self.context)
                self._uploads[self.context.server] = lambda: _waiting(http2)
            else:
                child = StrictHttp1Client(self.context)
            self._handle_event = child.handle_event  # type: ignore[method-assign]  # as mitmproxy's own client layer does
            yield from child.handle_event(event)
        yield RegisterHttpConnection(self.context.server, failure)
