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
    HttpEvent,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server, make_body_reader

from addons.edge import Head, judge_head, judge_partial
from addons.refusal import Code, Refusal
from ostiary.engines.mitm.watch import HeadDue

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler

from ostiary.engines.mitm.answers import phrase
from ostiary.engines.mitm.trailing import Trailing
from ostiary.engines.mitm.versions import for_http1, has_body

type Commands = layer.CommandGenerator[None]

MAX_AHEAD_BYTES: Final = 256 * 1024
"""What a caller may send ahead of the answer it waits for (pipelining)."""


NEXT: Final = object()
"""Marks the turn of a request that was sent ahead."""
MAX_LEAD_BYTES: Final = 64
"""Empty lines before a request line."""


class StrictHttp1Server(Trailing, Http1Server):
    """HTTP/1 towards the caller, behind the strict edge."""

    def __init__(self, context: Context, handler: ClientHandler, *, tunnelled: bool) -> None:
        super().__init__(context)
        self.handler = handler
        self._tunnelled = tunnelled
        self._fresh = not tunnelled or handler.connection.listener.reverse is not None
        """Whether nothing came before on this connection."""
        self._heads = 0
        """Heads that have begun; the mark of their deadline."""
        self._begun = False
        self._lead_bytes = 0

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, HeadDue):
            return self._late(event)
        if isinstance(event, events.Start) and self._fresh:
            # Who connects has something to say; nothing is known of it yet that would let it wait.
            self._await_head()
        return super()._handle_event(event)

    def may_send(self) -> bool:
        return self.request is not None and self.request.data.headers.get("te", "").lower() == "trailers"

    def send(self, event: HttpEvent) -> Commands:
        if isinstance(event, ResponseHeaders) and event.response.data.http_version == b"HTTP/2.0" and self.request:
            answer = for_http1(event.response, self.request, ends=event.end_stream)
            event = ResponseHeaders(event.stream_id, answer, event.end_stream)
        elif isinstance(event, ResponseData) and self._answered_without_body():
            return  # an HTTP/2 upstream that sends content where none may be: here it would be read as the next answer
        yield from super().send(event)

    def _answered_without_body(self) -> bool:
        return (
            self.request is not None
            and self.response is not None
            and not has_body(self.request.data.method, self.response.data.status_code)
            and self.response.data.status_code != HTTPStatus.SWITCHING_PROTOCOLS
        )

    def _await_head(self) -> None:
        self.handler.head_due(HeadDue(self, self._heads))

    def _late(self, event: HeadDue) -> Commands:
        if event.mark is NEXT:
            if self.state == self.read_headers:
                yield from self._read_head(events.DataReceived(self.conn, b""))
            return
        if event.mark != self._heads or self.state != self.read_headers:
            return
        if self._begun:
            yield from self._refuse(
                Refusal(Code.REQUEST_TIMEOUT, "The request head did not arrive in time.", close=True)
            )
        elif not self._heads:
            yield commands.CloseConnection(self.conn)
            self.state = self.done

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
        if isinstance(event, events.DataReceived) and not event.data:
            # So mitmproxy goes on to a request that was sent ahead, in the middle of ending the one before: the upstream
            # connection of that one is free only once this is done.
            if self.buf:
                self.handler.post(HeadDue(self, NEXT))
            return
        yield from self._read_head(event)

    def _read_head(self, event: events.ConnectionEvent) -> Commands:
        if isinstance(event, events.DataReceived):
            limits = self.handler.parts.heads
            try:
                raw = self._without_lead()
                end = raw.find(b"\r\n\r\n")
                if end < 0:
                    judge_partial(raw, limits)
                else:
                    head = judge_head(raw[: end + 4], tunnelled=self._tunnelled, limits=limits)
            except Refusal as refusal:
                yield from self._refuse(refusal)
                return
            if end < 0:
                if raw and not self._begun:
                    self._begun = True
                    if not self._fresh or self._heads:
                        self._await_head()
                return
            self._heads += 1
            self._begun, self._lead_bytes = False, 0
            if self._tunnelled:
                self.buf.maybe_extract_at_most(end + 4)
                yield from self._begin(head, event)
                return
        yield from super().read_headers(event)

    def _without_lead(self) -> bytes:
        """What has been read, without empty lines before a request line: they are legal (RFC 9112 section 2.2) and mean
        nothing.

        Raises:
            Refusal: `bad_request`; there are too many.
        """
        raw = bytes(self.buf)
        stripped = raw.lstrip(b"\r\n")
        if lead := len(raw) - len(stripped):
            self.buf.maybe_extract_at_most(lead)
            self._lead_bytes += lead
        if self._lead_bytes > MAX_LEAD_BYTES:
            raise Refusal(Code.BAD_REQUEST, "Too many empty lines stand before the request.", close=True)
        return stripped

    def _begin(self, head: Head, event: events.ConnectionEvent) -> Commands:
        """Begins a request inside a tunnel. The edge has judged its head, so nothing is left to doubt or to look up."""
        request, size = request_of(head), head.size
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


def request_of(head: Head) -> http.Request:
    """A head that the edge has accepted, as mitmproxy has it, whose constructors would check every field once more."""
    request = http.Request.__new__(http.Request)
    data = request.data = http.RequestData.__new__(http.RequestData)
    headers = http.Headers.__new__(http.Headers)
    headers.fields = head.fields
    data.__dict__ = {
        **_BLANK.data.__dict__,
        "method": head.method,
        "path": head.target,
        "http_version": head.version,
        "headers": headers,
        "timestamp_start": (now := time.time()),  # noqa: TID251 - mitmproxy's own record
        "timestamp_end": now,
    }
    return request
