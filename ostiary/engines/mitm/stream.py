"""One request: refuses early, reaches upstreams through vetted destinations alone, and watches the clock.

A refusal is answered at once, before a body is read and before `100 Continue`; what a caller still sends is discarded up
to a cap. Once an answer has begun no second one can be given: then the exchange is cut.

A request whose credential was rejected (401) and whose stages have another is sent once more, on a connection of its own,
with the very bytes of the body that left the first time. What still comes of the first answer goes nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    HTTPMode,
    HttpStream,
    SendHttp,
)
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    HttpEvent,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook

from addons.bodies import HeldBody as WholeBody
from addons.credentials import Openings
from addons.egress import Destination
from addons.exchange import Exchange, WorkloadIdentity
from addons.head import Challenge, HeadersToSend
from addons.parts import Deadlines
from addons.refusal import Code, Refusal
from addons.stages.scrub import clean_trailers
from addons.trailers import kept_reply_trailers
from ostiary.engines.held import HeldBody
from ostiary.engines.mitm.answered import AnsweredStream
from ostiary.engines.mitm.bound import BoundConnection, ClosedLayer
from ostiary.engines.mitm.dialling import Bound, PoolKey, parse_failure
from ostiary.engines.mitm.growing import grow
from ostiary.engines.mitm.relay import BlindTunnel, FrameRelay
from ostiary.engines.mitm.watch import Expired, Watch
from ostiary.engines.needs import REJECTED, credential_rejected, request_trailers
from policies import Passage

if TYPE_CHECKING:
    from ostiary.engines.mitm.layers import GuardedHttpLayer

from ostiary.engines.mitm.answers import invalid_answer, response_of
from ostiary.engines.mitm.versions import lower_case

type Commands = layer.CommandGenerator[None]

_OF_AN_ATTEMPT: Final = (
    ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError, Expired,
)  # fmt: skip


@dataclass
class RejectedHook(commands.StartHook):
    """The `rejected` hook of our stages."""

    flow: http.HTTPFlow


class GuardedStream(AnsweredStream):
    """One request: refuses early, and watches the clock."""

    def __init__(self, context: Context, stream_id: int, http_layer: GuardedHttpLayer) -> None:
        super().__init__(context, stream_id, http_layer)
        self.left: layer.Layer | HttpStream | None = None
        """The upstream connection whose answer was given up."""
        self._gathered = False
        """Whether the body was held until it was whole."""

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
        elif isinstance(event, RequestTrailers | ResponseTrailers):
            self._clean(event)
        elif type(event) is ResponseData and not event.data:
            return _nothing()  # an empty frame of HTTP/2: stages take an empty piece for the end of the body
        return cast("Commands", super()._handle_event(event))

    def _clean(self, event: RequestTrailers | ResponseTrailers) -> None:
        """Trailers pass without what only a head may say."""
        exchange = self._exchange()
        fields = event.trailers.fields
        if isinstance(event, ResponseTrailers):
            kept = clean_trailers(exchange, kept_reply_trailers(fields))
            http2 = self.context.client.alpn == b"h2"
        else:
            kept = request_trailers(exchange, fields)
            http2 = self.context.server.alpn == b"h2"
        event.trailers = http.Headers(lower_case(kept) if http2 else kept)

    # --- the caller's side ---

    def handle_connect_regular(self) -> Commands:
        exchange = self._exchange()
        if exchange is not None and exchange.refused is None and exchange.find(Passage) is not None:
            yield from self._pass_on(exchange)
            return
        # Not given to this stream to carry: the handler splices it in once the answer is out.
        self.child_layer = ClosedLayer(self.context.fork())
        self.handler.entrance = self.http_layer.entrance()
        yield from self.handle_connect_finish()
        if self.flow.response is not None and not 200 <= self.flow.response.status_code < 300:
            yield from self._drop()

    def _pass_on(self, exchange: Exchange) -> Commands:
        """A tunnel that is passed on unopened: dialled before it is accepted, so that a failure can be told."""
        times = self.handler.parts.deadlines
        destination = exchange.ask(Destination)
        key = PoolKey(exchange.ask(WorkloadIdentity).workload, destination.authority, destination.addresses, None)
        server = Server(address=(destination.authority.host, destination.authority.port), transport_protocol="tcp")
        self.handler.bind(server, Bound(destination, key, times.connect_s))
        failure = yield commands.OpenConnection(server)
        if failure is not None:
            self._refuse(parse_failure(failure))
            if exchange.refused is not None:
                self.flow.response = response_of(exchange.refused, http2=False)
        else:
            exchange.dialled_s = self.handler.parts.clock.monotonic_s()
            self.child_layer = ClosedLayer(self.context.fork())
            self.handler.entrance = BlindTunnel(self.context.fork(), server, exchange, self.handler, times)
        yield from self.handle_connect_finish()
        if failure is not None:
            yield from self._drop()

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        if request:
            if self.mode is HTTPMode.transparent:
                return False  # the edge has judged it, and more strictly; an HTTP/2 head is judged by the first stage
            return (yield from super().check_invalid(request=True))
        response = self.flow.response
        if response is not None and (response.data.http_version != b"HTTP/2.0" or invalid_answer(self.flow) is None):
            return False  # an HTTP/1 answer has been read strictly
        self._refuse(Refusal(Code.UPSTREAM_PROTOCOL, "The upstream's answer is not valid HTTP."))
        return (yield from self.check_killed(emit_error_hook=False))

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        """Asked by mitmproxy after every hook: the place where a refusal is answered at once."""
        exchange = self._exchange()
        if self._body_pending and self.watch is None and _holds(exchange):
            self._watch_upload(self.handler.times_of(self.handler.registry.exchange(self.flow)))
        if exchange is None or exchange.refused is None or exchange.connect or exchange.streaming:
            if exchange is not None and exchange.refused is not None and exchange.streaming:
                yield from self._cut()
                return True
            if exchange is not None and any(isinstance(one, RequestProtocolError) for one in self._paused_event_queue):
                # A stream that was reset while a hook waited: nobody hears what its upstream still says.
                self.handler.boundary.settle(exchange, "client_gone")
                yield from super().check_killed(emit_error_hook)
                yield from self._abandon_upstream()
                yield from self._drop()
                return True
            return (yield from super().check_killed(emit_error_hook))
        yield from self._answer(exchange.refused)
        return True

    # --- a body that is held until it is whole ---

    def _watch_upload(self, times: Deadlines) -> None:
        times = Deadlines(times.connect_s, 0.0, times.idle_s, times.total_s)
        late = Expired(self.http_layer, self.stream_id, "upload")
        self.watch = Watch(self.handler.loop, times, lambda _: self.handler.post(late))

    def state_consume_request_body(self, event: events.Event) -> Commands:
        """As mitmproxy does it, but the body goes where the stages look for it, and leaves as they have left it."""
        exchange = self._exchange()
        held = None if exchange is None else exchange.find(WholeBody)
        if exchange is None or held is None:
            yield from super().state_consume_request_body(event)
        elif isinstance(event, RequestData):
            yield from self._or_refused(self._gather(held, event.data))
        elif isinstance(event, RequestEndOfMessage):
            self._end_watch()
            self.client_state = self.state_done
            yield HttpRequestHook(self.flow)
            if not (yield from self.check_killed(emit_error_hook=True)):
                yield from self._send_gathered(exchange)

    def _gather(self, held: WholeBody, data: bytes) -> Commands:
        held.add(data)
        self.handler.backlog()
        yield from ()

    def _or_refused(self, steps: Commands) -> Commands:
        try:
            yield from steps
        except Refusal as refusal:
            self._refuse(refusal)
            yield from self.check_killed(emit_error_hook=True)

    def _send_gathered(self, exchange: Exchange) -> Commands:
        ready = exchange.find(HeadersToSend)
        if ready is None or ready.body is None:
            raise Refusal(Code.INTERNAL, "A body was held and not handed on.")
        if not (yield from self.make_server_connection()):
            return
        body, self._gathered = ready.body, True
        yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=not body), self.context.server)
        if body:
            yield SendHttp(RequestData(self.stream_id, body), self.context.server)
        yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)

    # --- the upstream's side ---

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        exchange = self.handler.registry.exchange(self.flow)
        times = self.handler.times_of(exchange)
        bound = self.handler.bound_for(exchange)
        if (known := self.http_layer.idle(bound.pool_key)) is not None:
            self._reached(known, times)
            self._hold(exchange)
            return True
        connection = yield from self._reach(bound)
        if connection is None:
            return False
        self._reached(connection, times)
        self._hold(exchange)
        return True

    def _hold(self, exchange: Exchange) -> None:
        if self._body_pending and exchange.find(Openings) is not None:
            self._held = self.handler.engine.held.begin()

    def _reach(self, bound: Bound, *, anew: bool = False) -> layer.CommandGenerator[Server | None]:
        """A connection for this request; None where there is none, and that has been answered."""
        connection, failure = yield BoundConnection(
            (self.flow.request.data.host, self.flow.request.data.port),
            tls=not bound.destination.authority.cleartext,
            via=None,
            transport_protocol="tcp",
            bound=bound,
            handler=self.handler,
            anew=anew,
        )
        if failure is not None:
            self._refuse(parse_failure(failure))
            exchange = self._exchange()
            if exchange is not None and exchange.refused is not None:
                yield from self._answer(exchange.refused)
            return None
        self.http_layer.latest = connection
        return cast("Server", connection)

    def _reached(self, connection: Server, times: Deadlines) -> None:
        self.context.server = self.flow.server_conn = connection
        self.watch = Watch(
            self.handler.loop, times, lambda kind: self.handler.post(Expired(self.http_layer, self.stream_id, kind))
        )
        if not self._body_pending:
            self.watch.request_sent()

    def state_stream_request_body(self, event: HttpEvent) -> Commands:
        # What cannot be signed as it passes is refused: the upstream can tell the part it has from the whole.
        passed = cast("Commands", super().state_stream_request_body(event))
        return self._or_refused(passed if self._held is None else self._holding(passed, self._held))

    def _holding(self, passed: Commands, held: HeldBody) -> Commands:
        """Keeps what leaves of a body. Trailers are not kept."""
        reply: Any = None
        while True:
            try:
                command = passed.send(reply)
            except StopIteration:
                return
            if isinstance(command, SendHttp):
                if isinstance(command.event, RequestData):
                    held.add(command.event.data)
                elif isinstance(command.event, RequestTrailers):
                    held.release()
            reply = yield command

    def state_wait_for_response_headers(self, event: HttpEvent) -> Commands:
        if self.watch is not None:
            self.watch.answered()
        exchange = self._exchange()
        if (
            isinstance(event, ResponseHeaders)
            and event.response.data.status_code == REJECTED
            and exchange is not None
            and credential_rejected(exchange)
        ):
            return self._rejected(event, exchange)
        self._let_go()
        return cast("Commands", super().state_wait_for_response_headers(event))

    # --- a credential that is not taken ---

    def _rejected(self, event: ResponseHeaders, exchange: Exchange) -> Commands:
        """The stages may have another."""
        exchange.rejected = True
        exchange.put(Challenge(event.response.data.headers.fields))
        ended = not self._body_pending and self.client_state == self.state_done
        # A body that the stages have built is not built a second time.
        exchange.replayable = ended and not self._gathered and (self._held is None or self._held.whole)
        yield RejectedHook(self.flow)
        if (yield from self.check_killed(emit_error_hook=True)):
            return
        if exchange.find(HeadersToSend) is not None:
            yield from self._send_again(exchange)
        else:
            self._let_go()
            yield from super().state_wait_for_response_headers(event)

    def _send_again(self, exchange: Exchange) -> Commands:
        held, self._held = self._held, None  # counted until it leaves
        self._end_watch()
        self.left = self.http_layer.connections.get(self.context.server)
        yield from self._abandon_upstream()
        kept = [waiting for waiting in self._paused_event_queue if not isinstance(waiting, _OF_AN_ATTEMPT)]
        self._paused_event_queue.clear()
        self._paused_event_queue.extend(kept)
        times = self.handler.times_of(exchange)
        bound = self.handler.bound_for(exchange)
        connection = yield from self._reach(bound, anew=True)
        if connection is None:
            return
        self._reached(connection, times)
        body = held.take() if held is not None else b""
        yield SendHttp(RequestHeaders(self.stream_id, self.flow.request, end_stream=not body), connection)
        if body:
            yield SendHttp(RequestData(self.stream_id, body), connection)
        yield SendHttp(RequestEndOfMessage(self.stream_id), connection)

    def state_stream_response_body(self, event: events.Event) -> Commands:
        exchange = self._exchange()
        stream = self.flow.response.stream if self.flow.response is not None else False
        if isinstance(event, ResponseData) and exchange is not None and exchange.reframed and callable(stream):
            yield from grow(stream(event.data), self.stream_id, self.flow, self.context, self._paused_event_queue)
        else:
            yield from super().state_stream_response_body(event)
        if exchange is not None and exchange.refused is not None and self.server_state != self.state_errored:
            # A stage lets no more of it pass.
            yield from self._cut()

    def send_response(self, already_streamed: bool = False) -> Commands:
        yield from super().send_response(already_streamed)
        http2 = self.flow.request.data.http_version == b"HTTP/2.0"
        if http2 and self.server_state == self.state_done and self.client_state == self.state_stream_request_body:
            # An answer may end before its request does. A caller that waits for the end must not wait for its own.
            yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def flow_done(self) -> Commands:
        exchange = self._exchange()
        if exchange is not None and exchange.switched:
            return self._switch(exchange)
        self._end_watch()
        return super().flow_done()

    def _switch(self, exchange: Exchange) -> Commands:
        """A WebSocket has been agreed on: from here on bytes pass in both directions until one side ends."""
        self.child_layer = FrameRelay(self.context, exchange, self.handler)
        self._handle_event = self._relay  # type: ignore[method-assign]  # as mitmproxy does for its own tunnels
        yield from self.child_layer.handle_event(events.Start())
        # Only now: frames may be there already.
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def _relay(self, event: events.Event) -> Commands:
        exchange = self._exchange()
        if type(event) is Expired:
            if exchange is not None and not exchange.settled:
                self._refuse(Refusal(Code.UPSTREAM_TIMEOUT, "The WebSocket fell silent."))
                yield from self._cut()
            return
        if self.watch is not None:
            self.watch.touch()
        if isinstance(event, RequestProtocolError | ResponseProtocolError):
            # One side is gone without a word; the other has nothing to wait for.
            if exchange is not None:
                self.handler.boundary.settle(exchange, "ok" if self.context.client.connected else "client_gone")
            yield from self._cut()
            return
        yield from self.passthrough(event)
        if exchange is not None and exchange.settled:
            yield from self._drop()

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> Commands:
        exchange = self._exchange()
        if isinstance(event, RequestProtocolError):
            self._end_watch()
            if exchange is not None and (not exchange.connect or exchange.find(Passage) is not None):
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
            if self.server_state == self.state_done and self.client_state == self.state_stream_request_body:
                http2 = self.flow.request.data.http_version == b"HTTP/2.0"
                if not http2 and self.context.server.alpn == b"h2":
                    yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
                if http2 or self.context.server.alpn == b"h2":
                    self._stop_listening()
                    return
        yield from super().handle_protocol_error(event)

    def _expired(self, event: Expired) -> Commands:
        exchange = self._exchange()
        if event.kind == "linger":
            if self.client_state == self.state_discard:
                yield from self._hang_up()
            return
        if exchange is None or exchange.settled:
            return
        if event.kind == "upload":
            self._refuse(Refusal(Code.REQUEST_TIMEOUT, "The body did not arrive in time.", close=True))
            yield from self.check_killed(emit_error_hook=True)
            return
        what = {"first_byte": "did not begin to answer", "idle": "fell silent", "total": "did not finish"}[event.kind]
        self._refuse(Refusal(Code.UPSTREAM_TIMEOUT, f"The upstream {what} in time."))
        if exchange.streaming:
            yield from self._cut()
        elif exchange.refused is not None:
            yield from self._answer(exchange.refused)


def _holds(exchange: Exchange | None) -> bool:
    """Whether a body is read here before anything leaves."""
    return exchange is not None and exchange.refused is None and exchange.find(WholeBody) is not None


def _nothing() -> Commands:
    yield from ()


def _broken() -> Refusal:
    return Refusal(Code.UPSTREAM_PROTOCOL, "The upstream broke off before it answered.")
