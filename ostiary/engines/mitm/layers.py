"""mitmproxy's HTTP layers, closed where they are open by default.

- `GuardedHttpLayer` is the gate: a request head reaches an upstream only as the `HeadersToSend` that the stages built,
  and is taken off the exchange as it passes. A flow whose stages did not finish has none, so nothing can be sent for
  it, whatever a hook did.
- `GuardedStream` answers a refusal at once, before a body is read, before `100 Continue`; what a caller still sends is
  discarded up to a cap.
- `StrictHttp1Server` lets the edge judge the raw head before mitmproxy parses it.
- `TunnelEntrance` lets only TLS into a tunnel.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    HttpEvent,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server, make_body_reader
from mitmproxy.proxy.layers.tls import ClientTLSLayer

from addons.edge import judge_head, judge_partial
from addons.egress import Destination
from addons.exchange import Exchange
from addons.head import HeadersToSend
from addons.parts import Deadlines
from addons.refusal import Answer, Code, Refusal
from ostiary.engines.mitm.dialling import Bound, PoolKey, parse_failure
from ostiary.engines.mitm.watch import Expired, Watch

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler

type Commands = layer.CommandGenerator[None]

MAX_DISCARDED_BYTES: Final = 64 * 1024
"""What a refused caller may still send before its connection is closed."""
LINGER_S: Final = 2.0
"""How long a refused caller may take to send it: closing at once would reset the connection before the answer is
read."""


def response_of(answer: Answer, *, http2: bool) -> http.Response:
    """One of our own answers as mitmproxy has it."""
    fields = [
        (name.lower().encode() if http2 else name.encode(), value.encode())
        for name, value in answer.headers
        if not (http2 and name == "Connection")
    ]
    return http.Response(
        b"HTTP/2.0" if http2 else b"HTTP/1.1",
        answer.status,
        b"" if http2 else _reason(answer.status),
        http.Headers(fields),
        answer.body,
        None,
        0.0,
        0.0,
    )


def _reason(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()


class ClosedLayer(layer.Layer):
    """Closes the caller's connection and swallows the rest."""

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.DataReceived):
            yield commands.CloseConnection(self.context.client)


class TunnelEntrance(layer.Layer):
    """The first layer inside an accepted CONNECT: TLS goes on, anything else is closed (raw bytes, plain HTTP on a TLS
    route).
    """

    def __init__(self, context: Context, handler: ClientHandler) -> None:
        super().__init__(context)
        self.handler = handler
        self._held = b""
        self._next: layer.Layer | None = None

    def _handle_event(self, event: events.Event) -> Commands:
        if self._next is not None:
            yield from self._next.handle_event(event)
        elif isinstance(event, events.DataReceived):
            self._held += event.data
            if len(self._held) < 3:
                return
            yield from self._enter()
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)

    def _enter(self) -> Commands:
        if starts_like_tls_record(self._held):
            self.context.server.tls = True
            tls = ClientTLSLayer(self.context)
            tls.child_layer = GuardedHttpLayer(self.context, HTTPMode.transparent, self.handler)
            self._next = tls
        else:
            refusal = Refusal(Code.BAD_REQUEST, "Inside this tunnel the proxy expects TLS.", close=True)
            self.handler.boundary.refuse_unparsed(self.handler.connection, refusal)
            self._next = ClosedLayer(self.context)
        yield from self._next.handle_event(events.Start())
        held, self._held = self._held, b""
        yield from self._next.handle_event(events.DataReceived(self.context.client, held))


class _HeadDeadline(commands.RequestWakeup):
    """Asks to be woken when a head must be complete."""


class StrictHttp1Server(Http1Server):
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

    def _late(self, event: events.Wakeup) -> Commands:
        if event.command is self._deadline and self.state == self.read_headers and len(self.buf):
            yield from self._refuse(
                Refusal(Code.REQUEST_TIMEOUT, "The request head did not arrive in time.", close=True)
            )

    def make_pipe(self) -> Commands:
        """After an accepted CONNECT: hands the connection to the tunnel, with what has already been read of it."""
        held = self.buf.maybe_extract_at_most(len(self.buf)) if len(self.buf) else b""
        self.state = self.done
        if self.handler.entrance is None:
            yield commands.CloseConnection(self.conn)
            return
        # Some clients send superfluous line ends after CONNECT.
        self.handler.splice(self.handler.entrance, bytes(held or b"").lstrip(b"\r\n"))

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
                if self._deadline is None and len(raw) > lead:
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
        head = f"HTTP/1.1 {answer.status} {_reason(answer.status).decode()}\r\n" + "".join(
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


class GuardedHttpLayer(HttpLayer):
    """mitmproxy's HTTP layer with the gate in it."""

    def __init__(self, context: Context, mode: HTTPMode, handler: ClientHandler) -> None:
        super().__init__(context, mode)
        self.handler = handler
        self.latest: Server | None = None
        """The upstream connection used last."""

    def idle(self, key: PoolKey) -> Server | None:
        """The connection used last, if it is open and of this kind. An HTTP/1 caller has one request at a time."""
        latest = self.latest
        if latest is None or not latest.connected or self.context.client.alpn == b"h2":
            return None
        return latest if self.handler.pool_key(latest) == key else None

    def _handle_event(self, event: events.Event) -> Commands:
        if type(event) is Expired:
            return self._expired(event)
        if isinstance(event, events.Start) and self.context.client.alpn != b"h2":
            tunnelled = self.mode is HTTPMode.transparent
            self.connections[self.context.client] = StrictHttp1Server(
                self.context.fork(), self.handler, tunnelled=tunnelled
            )
        return cast("Commands", super()._handle_event(event))

    def _expired(self, event: Expired) -> Commands:
        stream = self.streams.get(event.stream_id) if event.layer is self else None
        if stream is not None:
            yield from self.event_to_child(stream, event)

    def make_stream(self, stream_id: int) -> Commands:
        self.streams[stream_id] = GuardedStream(self.context.fork(), stream_id, self)
        yield from self.event_to_child(self.streams[stream_id], events.Start())

    def event_to_child(self, child: layer.Layer | HttpStream, event: events.Event) -> Commands:
        """Passes an event down and routes what comes back, as the base class does, with two differences.

        A head on its way to an upstream is replaced by the one that the stages built. A hook that completes at once is
        answered here: on its way out and back it would pass every layer twice, four times a request.
        """
        if type(event) is RequestHeaders and type(child) is not GuardedStream:
            event = RequestHeaders(event.stream_id, self._outgoing(event, child), event.end_stream)
        for command in child.handle_event(event):
            if isinstance(command, commands.StartHook) and self.handler.hook_now(command):
                if command.blocking:
                    yield from self.event_to_child(child, events.HookCompleted(command))
                continue
            if command.blocking or isinstance(command, commands.RequestWakeup):
                self.command_sources[command] = child
            match command:
                case ReceiveHttp(event=received):
                    yield from self._received(received)
                case SendHttp():
                    yield from self.event_to_child(self.connections[command.connection], command.event)
                case DropStream():
                    self.streams.pop(command.stream_id, None)
                case GetHttpConnection():
                    yield from self.get_connection(command)
                case RegisterHttpConnection():
                    yield from self.register_connection(command)
                case commands.OpenConnection():
                    self.connections[command.connection] = child
                    yield command
                case _:
                    yield command

    def _received(self, received: HttpEvent) -> Commands:
        """To the stream it is for; what comes for a stream that is done goes nowhere."""
        if isinstance(received, RequestHeaders):
            yield from self.make_stream(received.stream_id)
        stream = self.streams.get(received.stream_id)
        if stream is not None:
            yield from self.event_to_child(stream, received)

    def _outgoing(self, event: RequestHeaders, child: layer.Layer | HttpStream) -> http.Request:
        flow = self.streams[event.stream_id].flow
        exchange = self.handler.registry.exchange(flow)
        ready = exchange.forget(HeadersToSend)
        if ready is None or exchange.refused is not None or exchange.settled:
            raise Refusal(Code.INTERNAL, "A request reached the wire without its head being built.")
        seen = flow.request.data
        fields = ready.fields
        if seen.http_version == b"HTTP/2.0" and child.context.server.alpn != b"h2":
            # HTTP/2 needs no framing field, HTTP/1 does: without one the body would be read as the next request.
            if not event.end_stream and not any(name == b"content-length" for name, _ in fields):
                fields = (*fields, (b"transfer-encoding", b"chunked"))
        elif seen.http_version == b"HTTP/2.0":
            fields = tuple(field for field in fields if field[0] != b"host")
        authority = exchange.ask(Destination).authority.host_header if seen.http_version == b"HTTP/2.0" else b""
        exchange.dialled_s = self.handler.parts.clock.monotonic_s()
        # A shallow copy with four things changed. The constructor would check the type of every field anew.
        wire = request_like(seen)
        wire.data.authority = authority
        wire.data.path = ready.target
        wire.data.headers = http.Headers(fields)
        return wire

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> Commands:
        for command in super().get_connection(event, reuse=reuse):
            if isinstance(command, commands.OpenConnection) and isinstance(event, BoundConnection):
                self.handler.bind(command.connection, event.bound)
            yield command


@dataclass
class BoundConnection(GetHttpConnection):
    """A connection to a vetted destination, shared only by requests with the same pool key."""

    bound: Bound = field(kw_only=True)
    handler: ClientHandler = field(kw_only=True)

    def __hash__(self) -> int:
        return id(self)

    def connection_spec_matches(self, connection: Any) -> bool:
        # The context's own placeholder connection was never bound, so it never matches and is never dialled.
        return super().connection_spec_matches(connection) and self.handler.pool_key(connection) == self.bound.pool_key


class GuardedStream(HttpStream):
    """One request: refuses early, and watches the clock."""

    def __init__(self, context: Context, stream_id: int, http_layer: GuardedHttpLayer) -> None:
        super().__init__(context, stream_id)
        self.http_layer = http_layer
        self.handler = http_layer.handler
        self.watch: Watch | None = None
        self._discarded = 0
        self._body_pending = False

    # --- events ---

    def _handle_event(self, event: events.Event) -> Commands:
        if type(event) is Expired:
            return self._expired(event)
        if self.watch is not None:
            self.watch.touch()
        if type(event) is RequestHeaders:
            self._body_pending = not event.end_stream
        elif type(event) is RequestEndOfMessage:
            self._body_pending = False
            if self.watch is not None:
                self.watch.request_sent()
        return cast("Commands", super()._handle_event(event))

    def _exchange(self) -> Exchange | None:
        flow = getattr(self, "flow", None)
        return None if flow is None else self.handler.registry.find(flow)

    def _end_watch(self) -> None:
        if self.watch is not None:
            self.watch.stop()
            self.watch = None

    # --- the caller's side ---

    def handle_connect_regular(self) -> Commands:
        # Not given to this stream to carry: the handler splices it in once the answer is out.
        self.child_layer = ClosedLayer(self.context.fork())
        self.handler.entrance = TunnelEntrance(self.context.fork(), self.handler)
        yield from self.handle_connect_finish()
        if self.flow.response is not None and not 200 <= self.flow.response.status_code < 300:
            yield from self._drop()

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        if request:
            if self.mode is HTTPMode.transparent and self.flow.request.data.http_version != b"HTTP/2.0":
                return False  # the edge has judged it, and more strictly
            return (yield from super().check_invalid(request=True))
        error = _invalid_answer(self.flow)
        if error is None:
            return False
        self._refuse(Refusal(Code.UPSTREAM_PROTOCOL, "The upstream's answer is not valid HTTP."))
        return (yield from self.check_killed(emit_error_hook=False))

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        """Asked by mitmproxy after every hook: the place where a refusal is answered at once."""
        exchange = self._exchange()
        if exchange is None or exchange.refused is None or exchange.connect or exchange.streaming:
            if exchange is not None and exchange.refused is not None and exchange.streaming:
                yield from self._cut()
                return True
            return (yield from super().check_killed(emit_error_hook))
        yield from self._answer(exchange.refused)
        return True

    def _refuse(self, refusal: Refusal) -> None:
        exchange = self._exchange()
        if exchange is not None:
            self.handler.boundary.refuse(exchange, refusal)

    def _answer(self, answer: Answer) -> Commands:
        """Gives our own answer now, whatever the caller has still to send and the upstream to say."""
        self._end_watch()
        http2 = self.flow.request.data.http_version == b"HTTP/2.0"
        pending = self._body_pending
        if pending and not http2 and not any(name == "Connection" for name, _ in answer.headers):
            answer = Answer(answer.status, (*answer.headers, ("Connection", "close")), answer.body)
        response = response_of(answer, http2=http2)
        self.flow.response = response
        yield from self._abandon_upstream()
        yield SendHttp(ResponseHeaders(self.stream_id, response, end_stream=False), self.context.client)
        if self.flow.request.data.method != b"HEAD":
            yield SendHttp(ResponseData(self.stream_id, answer.body), self.context.client)
        self.flow.live = False
        self.server_state = self.state_errored
        if pending:
            self.client_state = self.state_discard
            self.handler.later(LINGER_S, Expired(self.http_layer, self.stream_id, "linger"))
            yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
        else:
            self.client_state = self.state_errored
            yield from self._drop()
            yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def state_discard(self, event: events.Event) -> Commands:
        """Swallows the rest of a refused body, up to a cap."""
        if isinstance(event, RequestData):
            self._discarded += len(event.data)
            if self._discarded > MAX_DISCARDED_BYTES:
                yield from self._hang_up()
        elif isinstance(event, RequestEndOfMessage):
            self.client_state = self.state_errored
            yield from self._drop()

    def _hang_up(self) -> Commands:
        if self.flow.request.data.http_version == b"HTTP/2.0":
            yield SendHttp(ResponseProtocolError(self.stream_id, "refused", ErrorCode.CANCEL), self.context.client)
        else:
            yield commands.CloseConnection(self.context.client)
        self.client_state = self.state_errored
        yield from self._drop()

    def _cut(self) -> Commands:
        """Ends an exchange whose answer has begun: no second answer can be given."""
        self._end_watch()
        yield from self._abandon_upstream()
        yield SendHttp(ResponseProtocolError(self.stream_id, "cut", ErrorCode.CANCEL), self.context.client)
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        yield from self._drop()

    def _abandon_upstream(self) -> Commands:
        """Closes the upstream connection (HTTP/1) or resets the stream (HTTP/2), if this request ever reached one."""
        exchange = self._exchange()
        if (
            exchange is not None
            and exchange.dialled_s is not None
            and self.context.server in self.http_layer.connections
        ):
            yield SendHttp(RequestProtocolError(self.stream_id, "abandoned", ErrorCode.CANCEL), self.context.server)

    def _drop(self) -> Commands:
        self._end_watch()
        yield DropStream(self.stream_id)

    # --- the upstream's side ---

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        exchange = self.handler.registry.exchange(self.flow)
        times = self.handler.times_of(exchange)
        bound = Bound(exchange.ask(Destination), self.handler.pool_key_for(exchange), times.connect_s)
        if (known := self.http_layer.idle(bound.pool_key)) is not None:
            self._reached(known, times)
            return True
        connection, failure = yield BoundConnection(
            (self.flow.request.data.host, self.flow.request.data.port),
            tls=True,
            via=None,
            transport_protocol="tcp",
            bound=bound,
            handler=self.handler,
        )
        if failure is not None:
            self._refuse(parse_failure(failure))
            yield from self._answer(cast("Answer", exchange.refused))
            return False
        self.http_layer.latest = connection
        self._reached(connection, times)
        return True

    def _reached(self, connection: Server, times: Deadlines) -> None:
        self.context.server = self.flow.server_conn = connection
        self.watch = Watch(
            self.handler.loop, times, lambda kind: self.handler.post(Expired(self.http_layer, self.stream_id, kind))
        )
        if not self._body_pending:
            self.watch.request_sent()

    def state_wait_for_response_headers(self, event: HttpEvent) -> Commands:
        if self.watch is not None:
            self.watch.answered()
        return cast("Commands", super().state_wait_for_response_headers(event))

    def flow_done(self) -> Commands:
        self._end_watch()
        return super().flow_done()

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> Commands:
        exchange = self._exchange()
        if isinstance(event, RequestProtocolError):
            self._end_watch()
            if exchange is not None and not exchange.connect:
                self.handler.boundary.settle(exchange, "client_gone")
        elif exchange is not None and not exchange.streaming and not exchange.settled and not exchange.connect:
            # The upstream failed before it answered: ours is the answer.
            self._refuse(parse_failure(event.message) if event.code is ErrorCode.CONNECT_FAILED else _broken())
            exchange_answer = exchange.refused
            if exchange_answer is not None:
                yield from self._answer(exchange_answer)
                return
        else:
            self._end_watch()
        yield from super().handle_protocol_error(event)

    def _expired(self, event: Expired) -> Commands:
        exchange = self._exchange()
        if event.kind == "linger":
            if self.client_state == self.state_discard:
                yield from self._hang_up()
            return
        if exchange is None or exchange.settled:
            return
        what = {"first_byte": "did not begin to answer", "idle": "fell silent", "total": "did not finish"}[event.kind]
        self._refuse(Refusal(Code.UPSTREAM_TIMEOUT, f"The upstream {what} in time."))
        if exchange.streaming:
            yield from self._cut()
        elif exchange.refused is not None:
            yield from self._answer(exchange.refused)


def _broken() -> Refusal:
    return Refusal(Code.UPSTREAM_PROTOCOL, "The upstream broke off before it answered.")


def _invalid_answer(flow: http.HTTPFlow) -> str | None:
    if flow.response is None:
        return "no answer"
    try:
        validate_headers(flow.response)
    except ValueError as error:
        return str(error)
    return None
