"""HTTP/1 towards the caller, behind the strict edge: a raw head is judged before anything takes it apart.

What the edge has accepted leaves nothing to doubt, so a request inside a tunnel is built here without the checks and
look-ups of mitmproxy's own parser.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server, make_body_reader

from addons.edge import judge_head, judge_partial
from addons.refusal import Code, Refusal

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler

from ostiary.engines.mitm.answers import phrase
from ostiary.engines.mitm.trailing import Trailing

type Commands = layer.CommandGenerator[None]

MAX_AHEAD_BYTES: Final = 256 * 1024
"""What a caller may send ahead of the answer it waits for (pipelining)."""


class _HeadDeadline(commands.RequestWakeup):
    """Asks to be woken when a head must be complete."""


class StrictHttp1Server(Trailing, Http1Server):
    """HTTP/1 towards the caller, behind the strict edge."""

    def __init__(self, context: Context, handler: ClientHandler, *, tunnelled: bool) -> None:
        super().__init__(context)
        self.handler = handler
        self._tunnelled = tunnelled
        self._deadline: _HeadDeadline | None = None

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Wakeup):
            return self._late(event)
        return super()._handle_event(event)

    def may_send(self) -> bool:
        return self.request is not None and self.request.data.headers.get("te", "").lower() == "trailers"

    def _late(self, event: events.Wakeup) -> Commands:
        if event.command is self._deadline and self.state == self.read_headers and len(self.buf):
            yield from self._refuse(
                Refusal(Code.REQUEST_TIMEOUT, "The request head did not arrive in time.", close=True)
            )

    def make_pipe(self) -> Commands:
        """After an accepted CONNECT: hands the connection to the tunnel, with what has already been read of it. After a
        WebSocket handshake: frames pass.
        """
        held = self.buf.maybe_extract_at_most(len(self.buf)) if len(self.buf) else b""
        if self.response is not None and self.response.data.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self.state = self.passthrough
            if held:
                yield from self.state(events.DataReceived(self.conn, bytes(held)))
            return
        self.state = self.done
        if self.handler.entrance is None:
            yield commands.CloseConnection(self.conn)
            return
        # Some clients send superfluous line ends after CONNECT.
        self.handler.splice(self.handler.entrance, bytes(held or b"").lstrip(b"\r\n"))

    def wait(self, event: events.Event) -> Commands:
        """While an answer is under way: what the caller sends ahead is kept for its turn, up to a cap."""
        if isinstance(event, events.DataReceived) and len(self.buf) > MAX_AHEAD_BYTES:
            yield commands.CloseConnection(self.conn)
            yield ReceiveHttp(RequestProtocolError(self.stream_id, "flood", ErrorCode.CLIENT_DISCONNECTED))
            self.state = self.done
            return
        if self.buf:
            self.handler.sent_ahead = lambda: len(self.buf)
            self.handler.backlog()
        yield from super().wait(event)

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        if isinstance(event, events.DataReceived):
            raw = bytes(self.buf)
            # Empty lines before a request line are legal (RFC 9112 section 2.2) and mean nothing.
            lead = len(raw) - len(raw.lstrip(b"\r\n"))
            end = raw.find(b"\r\n\r\n", lead)
            limits = self.handler.parts.heads
            try:
                if end < 0:
                    judge_partial(raw[lead:], limits)
                else:
                    judge_head(raw[lead : end + 4], tunnelled=self._tunnelled, limits=limits)
            except Refusal as refusal:
                yield from self._refuse(refusal)
                return
            if end < 0:
                if self._deadline is None and len(raw) > lead and self.handler.header_timeout_s:
                    self._deadline = _HeadDeadline(self.handler.header_timeout_s)
                    yield self._deadline
                return
            if lead:
                self.buf.maybe_extract_at_most(lead)
            self._deadline = None
            if self._tunnelled:
                self.buf.maybe_extract_at_most(end + 4 - lead)
                yield from self._begin(raw[lead:end], event)
                return
        yield from super().read_headers(event)

    def _begin(self, head: bytes, event: events.ConnectionEvent) -> Commands:
        """Begins a request inside a tunnel. The edge has judged its head, so nothing is left to doubt or to look up."""
        request, size = parse_head(head)
        self.request = request
        yield ReceiveHttp(RequestHeaders(self.stream_id, request, size == 0))
        if size == 0:
            yield ReceiveHttp(RequestEndOfMessage(self.stream_id))
            yield from self.mark_done(request=True)
        else:
            self.body_reader = make_body_reader(size)
            self.state = self.read_body
            yield from self.state(event)

    def _refuse(self, refusal: Refusal) -> Commands:
        answer = self.handler.boundary.refuse_unparsed(self.handler.connection, refusal)
        head = f"HTTP/1.1 {answer.status} {phrase(answer.status).decode()}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in answer.headers
        )
        yield commands.SendData(self.conn, head.encode() + b"\r\n" + answer.body)
        yield commands.CloseConnection(self.conn)
        self.state = self.done


_BLANK: Final = http.Request(
    "", 0, b"GET", b"", b"", b"/", b"HTTP/1.1", http.Headers(), None, None, timestamp_start=0.0, timestamp_end=None
)


def blank_request() -> http.Request:
    """A request to fill in. mitmproxy's constructor would check the type of every field, which costs as much as parsing."""
    return request_like(_BLANK.data)


def request_like(data: http.RequestData) -> http.Request:
    """A request with a shallow copy of these parts."""
    request = http.Request.__new__(http.Request)
    request.data = http.RequestData.__new__(http.RequestData)
    request.data.__dict__.update(data.__dict__)
    return request


def parse_head(head: bytes) -> tuple[http.Request, int | None]:
    """Takes apart a head that the edge has accepted.

    Returns:
        The request, and the size of its body: None where it is chunked.
    """
    lines = head.split(b"\r\n")
    method, target, version = lines[0].split(b" ")
    fields: list[tuple[bytes, bytes]] = []
    size: int | None = 0
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        fields.append((name, value))
        if len(name) in _FRAMING_LENGTHS:
            match name.lower():
                case b"content-length":
                    size = int(value)
                case b"transfer-encoding":
                    size = None
    request = blank_request()
    data = request.data
    data.method, data.path, data.http_version = method, target, version
    data.headers = http.Headers(fields)
    data.timestamp_start = data.timestamp_end = time.time()  # noqa: TID251 - mitmproxy's own record
    return request, size


_FRAMING_LENGTHS: Final = frozenset({len(b"content-length"), len(b"transfer-encoding")})
