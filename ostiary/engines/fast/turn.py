"""One request of a caller and its answer: asks the stages, reaches an upstream, passes both bodies on.

The steps, in order; a turn that is `over` takes none of them:

    begin      the stages judge the head              (`requestheaders`)
    reach      a pooled connection, or a new one
    send       the head that the stages built; the body streams behind it      (`request` at its end)
    answered   the stages judge the answer's head     (`responseheaders`)
    answer     its body streams                       (`response` at its end)
    end        the caller's next request may come

Rules:
- A head reaches an upstream only as the `HeadersToSend` that the stages built. A flow whose stages did not finish has
  none, so nothing can be sent for it, whatever a hook did.
- Before the answer has begun, whatever fails becomes an answer of ours. After it has begun, the caller's connection is
  cut, so that a part is never taken for the whole.
- A request is sent a second time only where its pooled connection turned out to be closed, not a byte of an answer was
  there, it has no body, and its method may be repeated (RFC 9110 section 9.2.2); or where its credential was rejected
  (401) and the stages have built a head with another one: then once, on another connection, with the very bytes of the
  body that left the first time. Of the first answer nothing has been passed on, and its connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mitmproxy import flow as mitm_flow
from mitmproxy import http

from addons.boundary import place_of
from addons.credentials import Openings
from addons.exchange import Exchange
from addons.head import Fields, HeadersToSend
from addons.injection import plan_for
from addons.refusal import Answer, Code, Refusal
from addons.trailers import kept_reply_trailers, kept_request_trailers
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.failures import FAILURES, cancelled
from ostiary.engines.fast.flows import new_flow
from ostiary.engines.fast.heads import answer_head, asks_for_trailers, expects_continue, keeps, own_answer, request_head
from ostiary.engines.framing import Malformed, chunk, last_chunk, reader_of
from ostiary.engines.held import HeldBody
from ostiary.engines.needs import REJECTED, credential_rejected, times_of
from policies import Grant

if TYPE_CHECKING:
    from ostiary.engines.fast.caller import Caller
    from ostiary.engines.fast.link import Link
    from ostiary.engines.mitm.dialling import Bound

_log = logging.getLogger("ostiary.engine")

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
_BROKE_OFF: Final = "The upstream broke off before it answered."


class Turn:
    """One request.

    Args:
        caller: whose it is.
        request: its head, which the edge has accepted.
        size: of its body in bytes; None where it is chunked.
    """

    __slots__ = (
        "_again",
        "_answer_chunked",
        "_answer_passed_on",
        "_dialling",
        "_framed",
        "_held",
        "_keep",
        "_reader",
        "_request_chunked",
        "_sent",
        "_times",
        "_written",
        "answer_open",
        "caller",
        "exchange",
        "flow",
        "link",
        "over",
        "receiving",
        "request",
    )

    def __init__(self, caller: Caller, request: http.Request, size: int | None) -> None:
        self.caller = caller
        self.request = request
        self.flow = new_flow(caller.client, caller.no_server, request)
        self.exchange: Exchange | None = None
        self.link: Link | None = None
        self.over = False
        self.receiving = size != 0
        """Whether bytes of the request's body are still to come."""
        self.answer_open = False
        """Whether the body of the answer may pass: its head has been judged and sent."""
        self._reader = reader_of(size)
        self._request_chunked = size is None
        self._sent = False
        self._written = False
        """Whether the last byte of the request is on its way."""
        self._answer_chunked = False
        self._answer_passed_on = False
        self._framed = True
        """Whether the caller can tell a part of the answer from the whole."""
        self._keep = keeps(request)
        self._times = caller.engine.parts.deadlines
        self._again: bytes | None = None
        """The head, for as long as it may have to be sent once more."""
        self._dialling: asyncio.Task[None] | None = None
        self._held: HeldBody | None = None
        """The body as it leaves, for as long as it may have to be sent once more."""

    # --- begin ---

    def begin(self) -> None:
        self.caller.hook("requestheaders", self.flow, self._judged)

    def _judged(self) -> None:
        if self.over:
            return
        engine = self.caller.engine
        exchange = self.exchange = engine.registry.find(self.flow)
        if exchange is None:
            # The very first stage failed: there is nothing to record on, and nothing may pass.
            self._end()
            self.caller.close()
            return
        if exchange.refused is not None:
            self._answer(exchange.refused)
            return
        self._times = times_of(exchange, engine.parts.deadlines)
        bound = engine.bounds.of(exchange, self._times)
        link = engine.pool.take(bound.pool_key) if not exchange.upgrade else None
        if link is not None:
            self._send(link)
        else:
            self._dialling = self.caller.loop.create_task(self._reach(bound, self._send))

    async def _reach(self, bound: Bound, then: Callable[[Link], None]) -> None:
        """Dials, then goes on with the connection."""
        try:
            link = await self.caller.engine.dial(bound)
        except FAILURES as error:  # whatever a dial meets, the request that waits for it must be told
            if cancelled():
                return  # the caller has gone; that is recorded
            self._dialling = None
            self._refuse(error)
            self.caller.flush()
            return
        self._dialling = None
        if self.over:
            link.close()
            return
        self.caller.guarded(lambda: then(link))

    # --- send ---

    def _send(self, link: Link) -> None:
        head = self._head(link)
        if link.served and not self.receiving and self.request.data.method in _REPEATABLE:
            self._again = head
        self.caller.deadline.begin_total(self._times.total_s)
        self._put(link, head)
        if not self.receiving:
            self._request_ended()
            return
        if self._known().find(Openings) is not None:
            self._held = self.caller.engine.held.begin()
        self.caller.deadline.expect(Wait.BODY, self._times.idle_s)
        if not self.caller.holds_bytes and expects_continue(self.request):
            self.caller.write(CONTINUE)
            self.caller.flush()
        self.caller.feed()

    def _head(self, link: Link) -> bytes:
        """The head that the stages have built, taken off the exchange."""
        exchange = self._known()
        ready = exchange.forget(HeadersToSend)
        if ready is None or exchange.refused is not None or exchange.settled:
            link.close()
            raise Refusal(Code.INTERNAL, "A request reached the wire without its head being built.")
        exchange.dialled_s = self.caller.engine.parts.clock.monotonic_s()
        return request_head(exchange.head.method, ready)

    def _pass(self, link: Link, data: bytes) -> None:
        """A part of the body leaves."""
        if self._held is not None:
            self._held.add(data)
        link.write(data)

    def _put(self, link: Link, head: bytes) -> None:
        self.link = link
        self.flow.server_conn = link.server
        link.begin(self)
        link.write(head)
        self._sent = True

    @property
    def takes_bytes(self) -> bool:
        """Whether bytes of the caller's are wanted now."""
        return self.receiving and self._sent and not self.over

    def receive(self, data: bytes) -> bytes:
        """Passes on what belongs to the request's body; gives back what is behind it."""
        link, reader = self.link, self._reader
        if link is None or reader is None:
            return data
        try:
            payload, rest = reader.read(data)
        except Malformed:
            self._refuse(Refusal(Code.BAD_REQUEST, "The body's framing is malformed.", close=True))
            return b""
        self.caller.deadline.touch()
        if payload:
            for piece in _pieces(self.request.stream, payload):
                self._pass(link, chunk(piece) if self._request_chunked else piece)
        if rest is None:
            return b""
        self.receiving = False
        for piece in _pieces(self.request.stream, b""):
            self._pass(link, chunk(piece) if self._request_chunked else piece)
        self._request_ended()
        return rest

    def _request_ended(self) -> None:
        self.caller.hook("request", self.flow, self._request_passed)

    def _request_passed(self) -> None:
        exchange = self._known()
        if self.over:
            return
        if exchange.refused is not None:
            self._refuse(None)
            return
        if self._request_chunked and self.link is not None:
            self._pass(self.link, last_chunk(self._request_trailers(exchange)))
        self._written = True
        if self._answer_passed_on:
            self._finish()
        elif not exchange.streaming:
            self.caller.deadline.expect(Wait.ANSWER, self._times.first_byte_s)

    def _request_trailers(self, exchange: Exchange) -> Fields:
        fields = self._reader.trailers if self._reader is not None else ()
        if not fields:
            return ()
        return kept_request_trailers(fields, plan_for(exchange.ask(Grant).route).strip_headers)

    def handshake_fields(self) -> Fields:
        """The caller's fields, against which a 101 is judged."""
        exchange = self._known()
        return exchange.head.fields if exchange.upgrade else ()

    # --- answered ---

    def answered(self, response: http.Response, size: int | None, raw: bytes) -> None:
        """The head of the answer is there.

        Args:
            response: parsed.
            size: of its body: None where it is chunked, -1 where it ends with the connection.
            raw: the head as it came, its empty line included.
        """
        self._again = None
        if response.data.status_code == REJECTED and credential_rejected(self._known()):
            self._rejected(response, size, raw)
        else:
            self._accepted(response, size, raw)

    def _rejected(self, response: http.Response, size: int | None, raw: bytes) -> None:
        """The upstream does not take the credential: the stages may have another."""
        exchange = self._known()
        exchange.rejected = True
        exchange.replayable = self._written and (self._held is None or self._held.whole)
        self.caller.deadline.expect(Wait.BODY, self._times.idle_s)

        def looked() -> None:
            if self.over:
                return
            if exchange.refused is not None:
                self._refuse(None)
            elif exchange.find(HeadersToSend) is not None:
                self._send_again()
            else:
                self._accepted(response, size, raw)

        self.caller.hook("rejected", self.flow, looked)

    def _send_again(self) -> None:
        exchange, rejected = self._known(), self.link
        self.link, self._sent = None, False
        if rejected is not None:
            # With what has come of its answer: nothing of it can reach this request any more.
            rejected.close()
        pieces = self._held.take() if self._held is not None else ()
        self._held = None

        def again(link: Link) -> None:
            self._put(link, self._head(link))
            for piece in pieces:
                link.write(piece)
            self.caller.deadline.expect(Wait.ANSWER, self._times.first_byte_s)

        bound = self.caller.engine.bounds.of(exchange, self._times)
        self._dialling = self.caller.loop.create_task(self._reach(bound, again))

    def _accepted(self, response: http.Response, size: int | None, raw: bytes) -> None:
        """This is the answer that the caller gets."""
        self._let_go()
        self.flow.response = response
        self.caller.deadline.expect(Wait.BODY, self._times.idle_s)
        before = response.data.headers.fields

        def judged() -> None:
            self._answer_judged(size, raw if response.data.headers.fields is before else None)

        self.caller.hook("responseheaders", self.flow, judged)

    def _answer_judged(self, size: int | None, raw: bytes | None) -> None:
        exchange, link, response = self._known(), self.link, self.flow.response
        if self.over or link is None or response is None:
            return
        if exchange.refused is not None:
            self._refuse(None)
            return
        chunked = size is None and self.request.data.http_version != b"HTTP/1.0"
        self._answer_chunked = chunked
        self._framed = chunked or (size is not None and size >= 0)
        if not self._framed:
            self._keep = False
        self.caller.write(answer_head(response, raw, keep=self._keep, chunked=chunked))
        if exchange.switched:
            self.caller.hook("response", self.flow, lambda: self._switch(link))
            return
        self.answer_open = True
        if link.waiting:
            link.go_on()

    def answer_data(self, payload: bytes) -> None:
        self.caller.deadline.touch()
        response = self.flow.response
        if response is None:
            return
        for piece in _pieces(response.stream, payload):
            self.caller.write(chunk(piece) if self._answer_chunked else piece)

    def answer_ended(self, trailers: Fields) -> None:
        response = self.flow.response
        if response is not None:
            for piece in _pieces(response.stream, b""):
                self.caller.write(chunk(piece) if self._answer_chunked else piece)
        self.caller.hook("response", self.flow, lambda: self._answer_passed(trailers))

    def _answer_passed(self, trailers: Fields) -> None:
        exchange = self._known()
        if self.over:
            return
        if exchange.refused is not None:
            self._refuse(None)
            return
        if self._answer_chunked:
            wanted = trailers and asks_for_trailers(self.request)
            self.caller.write(last_chunk(kept_reply_trailers(trailers) if wanted else ()))
        self._answer_passed_on = True
        if self._written or self.receiving:
            self._finish()

    # --- end ---

    def _finish(self) -> None:
        """Request and answer have passed, or the answer alone: then the caller need not send the rest."""
        link = self.link
        received = not self.receiving
        if link is not None:
            if received and link.reusable:
                link.release()
                self.caller.engine.pool.give(link, self.caller.loop.time())
            else:
                link.close()
            self.link = None
        self._end()
        if received:
            self.caller.next(keep=self._keep)
        else:
            self.caller.linger()

    def _switch(self, link: Link) -> None:
        """A WebSocket has been agreed on."""
        exchange = self._known()
        if self.over:
            return
        if exchange.refused is not None:
            self._refuse(None)
            return
        self.link = None
        self._end()
        self.caller.join(link, exchange, self._times, frames=True)
        if link.waiting:
            link.go_on()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    def _end(self) -> None:
        self.over = True
        self._again = None
        self._let_go()
        self.flow.live = False
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        if self.link is not None:
            self.link.close()
            self.link = None

    # --- what goes wrong ---

    def _answer(self, answer: Answer) -> None:
        """Gives our own answer now, whatever the caller has still to send and the upstream to say."""
        pending = self.receiving
        closes = any(name == "Connection" for name, _ in answer.headers)
        keep = self._keep and not pending and not closes
        self._end()
        to_head = self.request.data.method == b"HEAD"
        self.caller.write(own_answer(answer, close=not keep and not closes, body=not to_head))
        if pending:
            self.caller.linger()
        else:
            self.caller.next(keep=keep)

    def _refuse(self, error: BaseException | None) -> None:
        """Ends the turn by a refusal: an answer where none has begun, else a cut.

        Args:
            error: the reason; None where the exchange has been refused already.
        """
        if self.over:
            return
        exchange = self.exchange
        if exchange is None:
            if error is not None:
                _log.error("a request was cut before it was begun: %s", type(error).__name__)
            self._end()
            self.caller.close()
            return
        if error is not None:
            self.caller.engine.parts.boundary.refuse(exchange, error)
        if exchange.streaming or exchange.refused is None:
            self._cut()
        else:
            self._answer(exchange.refused)

    def _cut(self) -> None:
        """Ends an exchange whose answer has begun: no second answer can be given."""
        self._error("cut")
        self._end()
        self.caller.cut(framed=self._framed)

    def _error(self, text: str) -> None:
        self.flow.error = mitm_flow.Error(text)
        self.caller.hook("error", self.flow, lambda: None)

    def upstream_broke(self, message: str, *, lost: bool = False) -> None:
        """The upstream ended the connection or talks nonsense.

        Args:
            message: for the caller, if an answer can still be given.
            lost: whether not a byte of an answer was there.
        """
        if self.over:
            return
        link, again = self.link, self._again
        if lost and again is not None and link is not None:
            self._again = None
            self.link = None
            self._repeat(link, again)
            return
        exchange = self._known()
        if exchange.streaming:
            self.caller.engine.parts.boundary.settle(exchange, "truncated")
            self._cut()
        else:
            self._refuse(Refusal(Code.UPSTREAM_PROTOCOL, message))

    def _repeat(self, stale: Link, head: bytes) -> None:
        """Sends the request once more, on a new connection: the pooled one had been closed by its upstream."""
        self._sent = False
        self._known().retries += 1

        def again(link: Link) -> None:
            self._put(link, head)
            self.caller.deadline.expect(Wait.ANSWER, self._times.first_byte_s)

        self._dialling = self.caller.loop.create_task(self._reach(stale.bound, again))

    def expired(self, wait: Wait) -> None:
        """A deadline has passed."""
        what = {Wait.ANSWER: "did not begin to answer", Wait.TOTAL: "did not finish"}.get(wait, "fell silent")
        self._refuse(Refusal(Code.UPSTREAM_TIMEOUT, f"The upstream {what} in time."))

    def crashed(self, error: BaseException) -> None:
        """Something failed that should not: the request is refused or cut."""
        if not self.over:
            _log.error("a request failed: %s at %s", type(error).__name__, place_of(error))
            self._refuse(error)

    def caller_gone(self) -> None:
        """The caller's connection has ended."""
        if self.over:
            return
        exchange = self.exchange or self.caller.engine.registry.find(self.flow)
        if exchange is not None:
            self.caller.engine.parts.boundary.settle(exchange, "client_gone")
        self._error("the caller has gone")
        self._end()

    def _known(self) -> Exchange:
        if self.exchange is None:
            raise Refusal(Code.INTERNAL, "A request was answered before it was begun.")
        return self.exchange


def _pieces(stream: bool | Callable[[bytes], Any], data: bytes) -> tuple[bytes, ...]:
    """What a flow's `stream` makes of a piece of body; empty pieces are none."""
    if callable(stream):
        found = stream(data)
        return tuple(piece for piece in ((found,) if isinstance(found, bytes) else found) if piece)
    return (data,) if data else ()
