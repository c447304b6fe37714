"""mitmproxy's HTTP layer with the gate in it, and the way into a tunnel.

- `GuardedHttpLayer`: a request head reaches an upstream only as the `HeadersToSend` that the stages built, and is taken
  off the exchange as it passes. A flow whose stages did not finish has none, so nothing can be sent for it, whatever a
  hook did.
- `TunnelEntrance` lets only TLS into a tunnel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    HttpEvent,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
)
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer

from addons.egress import Destination
from addons.head import HeadersToSend
from addons.refusal import Code, Refusal
from ostiary.engines.mitm.dialling import PoolKey
from ostiary.engines.mitm.watch import Expired, HeadDue

if TYPE_CHECKING:
    from ostiary.engines.mitm.handler import ClientHandler

from ostiary.engines.mitm.bound import BoundConnection, ClosedLayer
from ostiary.engines.mitm.http1 import StrictHttp1Server, request_like
from ostiary.engines.mitm.http2 import StrictHttp2Server
from ostiary.engines.mitm.stream import GuardedStream
from ostiary.engines.mitm.upstream import UpstreamClient
from ostiary.engines.mitm.versions import for_http2

type Commands = layer.CommandGenerator[None]

MAX_CLIENT_HELLO_BYTES: Final = 64 * 1024
MAX_PAUSED_EVENTS: Final = 16
"""Pieces of bodies (at most 128 KiB each) that may wait on one connection, before no more of it is read."""


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
        if isinstance(event, HeadDue) and event.layer is self:
            yield from self._late()
        elif self._next is not None:
            yield from self._next.handle_event(event)
        elif isinstance(event, events.Start):
            self.handler.head_due(HeadDue(self, None))
        elif isinstance(event, events.DataReceived):
            self._held += event.data
            if len(self._held) < 3:
                return
            yield from self._enter()
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(self.context.client)

    def _late(self) -> Commands:
        """The handshake must be done: its bytes may come one by one as those of a head may."""
        client = self.context.client
        if not client.tls_established and client.connected:
            refusal = Refusal(Code.REQUEST_TIMEOUT, "The TLS handshake did not end in time.", close=True)
            self.handler.boundary.refuse_unparsed(self.handler.connection, refusal)
            yield commands.CloseConnection(client)

    def _enter(self) -> Commands:
        if starts_like_tls_record(self._held):
            self.context.server.tls = True
            tls = BoundedClientTls(self.context)
            tls.child_layer = GuardedHttpLayer(self.context, HTTPMode.transparent, self.handler)
            self._next = tls
        else:
            refusal = Refusal(Code.BAD_REQUEST, "Inside this tunnel the proxy expects TLS.", close=True)
            self.handler.boundary.refuse_unparsed(self.handler.connection, refusal)
            self._next = ClosedLayer(self.context)
        yield from self._next.handle_event(events.Start())
        held, self._held = self._held, b""
        yield from self._next.handle_event(events.DataReceived(self.context.client, held))


class BoundedClientTls(ClientTLSLayer):
    """TLS with the caller; a ClientHello that does not end is refused instead of kept."""

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        if not self.client_hello_parsed and len(self.recv_buffer) + len(data) > MAX_CLIENT_HELLO_BYTES:
            return False, "the ClientHello is too large"
        return (yield from super().receive_handshake_data(data))


class UpstreamTls(ServerTLSLayer):
    """TLS with an upstream. mitmproxy takes an alert for an end that it has told of, and then tells of none: a request
    would wait for its deadline. With TLS 1.3 an upstream refuses a client certificate so, after the handshake.
    """

    _told = False
    """Whether the layer above knows that the connection has ended."""

    def event_to_child(self, event: events.Event) -> Commands:
        if type(event) is events.ConnectionClosed and event.connection is self.conn:
            self._told = True
        return super().event_to_child(event)

    def receive_close(self) -> Commands:
        if not self._told:
            yield from self.event_to_child(events.ConnectionClosed(self.conn))


class GuardedHttpLayer(HttpLayer):
    """mitmproxy's HTTP layer with the gate in it."""

    def __init__(self, context: Context, mode: HTTPMode, handler: ClientHandler) -> None:
        super().__init__(context, mode)
        self.handler = handler
        self.latest: Server | None = None
        """The upstream connection used last."""

    def entrance(self) -> TunnelEntrance:
        """What an accepted CONNECT leads to."""
        return TunnelEntrance(self.context.fork(), self.handler)

    def idle(self, key: PoolKey) -> Server | None:
        """The connection used last, if it is open and of this kind. An HTTP/1 caller has one request at a time."""
        latest = self.latest
        if latest is None or not latest.connected or self.context.client.alpn == b"h2":
            return None
        return latest if self.handler.pool_key(latest) == key else None

    def _handle_event(self, event: events.Event) -> Commands:
        if type(event) is Expired:
            return self._expired(event)
        if type(event) is HeadDue:
            return self._head_due(event)
        if isinstance(event, events.Start):
            self._meet_caller()
        return cast("Commands", super()._handle_event(event))

    def _meet_caller(self) -> None:
        """Chooses what speaks with the caller."""
        caller = self.context.client
        self.handler.http_layer = self
        if caller.alpn != b"h2":
            tunnelled = self.mode is HTTPMode.transparent
            self.connections[caller] = StrictHttp1Server(self.context.fork(), self.handler, tunnelled=tunnelled)
            return
        server = self.connections[caller] = StrictHttp2Server(self.context.fork(), self.handler)
        waiting = server.h2_conn.stream_buffers
        self.handler.http2_waiting = lambda: sum(len(chunk.data) for chunks in waiting.values() for chunk in chunks)

    def paused(self) -> bool:
        """Whether more than a little of what callers have sent waits for hooks and dials."""
        waiting = sum(len(stream._paused_event_queue) for stream in self.streams.values())  # noqa: SLF001 - mitmproxy has no other way to ask
        return waiting > MAX_PAUSED_EVENTS

    def answers_paused(self) -> bool:
        """Whether more than a little of what upstreams have answered waits for hooks that judge its head."""
        waiting = 0
        for stream in self.streams.values():
            if queue := stream._paused_event_queue:  # noqa: SLF001 - as above
                waiting += sum(isinstance(event, ResponseData) for event in queue)
        return waiting > MAX_PAUSED_EVENTS

    def _head_due(self, event: HeadDue) -> Commands:
        server = self.connections.get(self.context.client)
        if server is event.layer:
            yield from self.event_to_child(server, event)

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
                    yield from self._received(received, child)
                case SendHttp(event=RequestProtocolError()) if command.connection not in self.connections:
                    pass  # given up before there was an upstream to tell
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

    def _received(self, received: HttpEvent, child: layer.Layer | HttpStream) -> Commands:
        """To the stream it is for; what comes for a stream that is done, or from an upstream connection that it has left,
        goes nowhere.
        """
        if isinstance(received, RequestHeaders):
            yield from self.make_stream(received.stream_id)
        stream = cast("GuardedStream | None", self.streams.get(received.stream_id))
        if stream is not None and (stream.left is None or stream.left is not child):
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
        elif child.context.server.alpn == b"h2":
            fields = for_http2(fields)
        if child.context.server.alpn != b"h2" and any(name.lower() == b"te" for name, _ in fields):
            # A field of one hop is named as such in HTTP/1 (RFC 9110 section 7.6.1); HTTP/2 has no such list.
            fields = (*fields, (b"Connection", b"TE"))
        http2 = seen.http_version == b"HTTP/2.0" or child.context.server.alpn == b"h2"
        authority = exchange.ask(Destination).authority.host_header if http2 else b""
        exchange.dialled_s = self.handler.parts.clock.monotonic_s()
        # A shallow copy with a few things changed. The constructor would check the type of every field anew. The method is
        # the one that was granted, whatever an addon did to the flow since.
        wire = request_like(seen)
        wire.data.method = exchange.head.method.encode("ascii")
        wire.data.authority = authority
        if child.context.server.alpn == b"h2":
            wire.data.http_version, wire.data.scheme = b"HTTP/2.0", b"https"
        wire.data.path = ready.target
        wire.data.headers = http.Headers(fields)
        return wire

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> Commands:
        """An open or opening connection for the same caller, destination and TLS identity, else a new one.

        A connection that failed is not asked again: the next request of the tunnel dials anew.
        """
        if not isinstance(event, BoundConnection):
            raise Refusal(Code.INTERNAL, "A connection was asked for without a vetted destination.")
        for connection in tuple(self.connections) if reuse and not event.anew else ():
            if not event.connection_spec_matches(connection):
                continue
            if connection in self.waiting_for_establishment:
                self.waiting_for_establishment[connection].append(event)
                return
            # An HTTP/2 caller has several requests at once, an HTTP/1 upstream takes one.
            if connection.connected and not (self.context.client.alpn == b"h2" and connection.alpn != b"h2"):
                stream = self.command_sources.pop(event)
                yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, (connection, None)))
                return
        context = self.context.fork()
        context.server = Server(address=event.address, transport_protocol="tcp")
        context.server.sni = event.bound.destination.authority.host
        self.handler.bind(context.server, event.bound)
        first: layer.Layer = UpstreamClient(context, self.handler.http2_uploads)
        if event.tls:
            first, client = UpstreamTls(context), first
            first.child_layer = client
        self.connections[context.server] = first
        self.waiting_for_establishment[context.server].append(event)
        yield from self.event_to_child(first, events.Start())
