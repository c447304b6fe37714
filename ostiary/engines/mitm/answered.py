"""A request that we answer ourselves, or cut: nothing more is asked of its upstream, and what its caller still sends is
discarded up to a cap.

An answer is given at once, before a body is read. Once one has begun no second can be given: then the exchange is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import DropStream, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)

from addons.exchange import Exchange
from addons.grpc import for_grpc, speaks_grpc
from addons.refusal import Answer, Refusal
from ostiary.engines.held import HeldBody
from ostiary.engines.mitm.answers import response_of
from ostiary.engines.mitm.watch import Expired, Watch

if TYPE_CHECKING:
    from ostiary.engines.mitm.layers import GuardedHttpLayer

type Commands = layer.CommandGenerator[None]

MAX_DISCARDED_BYTES: Final = 64 * 1024
"""What a refused caller may still send before its connection is closed."""
LINGER_S: Final = 2.0
"""How long a refused caller may take to send it: closing at once would reset the connection before the answer is
read."""


class AnsweredStream(HttpStream):
    """What one request needs to be refused, answered and cut."""

    def __init__(self, context: Context, stream_id: int, http_layer: GuardedHttpLayer) -> None:
        super().__init__(context, stream_id)
        self.http_layer = http_layer
        self.handler = http_layer.handler
        self.watch: Watch | None = None
        self._held: HeldBody | None = None
        """The body as it leaves, for as long as it may have to be sent once more."""
        self._discarded = 0
        self._body_pending = False

    def _exchange(self) -> Exchange | None:
        flow = getattr(self, "flow", None)
        return None if flow is None else self.handler.registry.find(flow)

    def _end_watch(self) -> None:
        self._let_go()
        if self.watch is not None:
            self.watch.stop()
            self.watch = None

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    def _refuse(self, refusal: Refusal) -> None:
        exchange = self._exchange()
        if exchange is None:
            return
        if not self.context.client.connected:
            # Dials and handshakes are given up when the caller goes: the record must not blame the upstream.
            self.handler.boundary.settle(exchange, "client_gone")
        self.handler.boundary.refuse(exchange, refusal)

    def _answer(self, answer: Answer) -> Commands:
        """Gives our own answer now, whatever the caller has still to send and the upstream to say."""
        self._end_watch()
        http2 = self.flow.request.data.http_version == b"HTTP/2.0"
        pending = self._body_pending
        if pending and not http2 and not any(name == "Connection" for name, _ in answer.headers):
            answer = Answer(answer.status, (*answer.headers, ("Connection", "close")), answer.body)
        if http2 and speaks_grpc(self.flow.request.data.headers.fields):
            answer = for_grpc(answer)
        response = response_of(answer, http2=http2)
        self.flow.response = response
        yield from self._abandon_upstream()
        bare = not answer.body
        yield SendHttp(ResponseHeaders(self.stream_id, response, end_stream=bare), self.context.client)
        if self.flow.request.data.method != b"HEAD" and not bare:
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

    def _stop_listening(self) -> None:
        """The upstream has answered in full and wants no more of the request (RFC 9113 section 8.1). The caller has the answer's
        end; what it still sends is discarded.
        """
        self.client_state = self.state_discard
        self.handler.later(LINGER_S, Expired(self.http_layer, self.stream_id, "linger"))
