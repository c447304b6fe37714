"""One connection to an upstream: sends what a turn gives it, reads answers strictly, and knows whether it may be used
again.

    its bytes   come while                           and are
    relay       two connections are joined           passed on (`relay.py`)
    early       a blind tunnel has no relay yet      kept, until `hand_on`
    heads       the turn has no answer yet           read up to the one that answers; interim ones are dropped
    held        `waiting`: a stage judges that head  kept unread, until `go_on`
    body        `answer_open`                        given to the turn, up to the end that the framing says
    unasked     there is neither turn nor relay      the end of the connection

Rules:
- A connection carries one request at a time. A byte that no request waits for ends it: an answer can never reach
  another request (RFC 9112 section 9.2).
- It may be used again only after an answer that was read to its end, framed by itself, with nothing behind it, to a
  request that was sent to its end (RFC 9112 section 9.3).
- Heads are read by the grammar that mitmproxy's engine uses too (`parse_answer`).
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from mitmproxy.connection import ConnectionState, Server

from addons.refusal import Code, Refusal
from addons.websocket import NotSwitched, judge_switch
from ostiary.engines.fast import answering, ending
from ostiary.engines.fast.failures import FAILURES
from ostiary.engines.fast.heads import binds, says_close
from ostiary.engines.fast.sessions import session_of
from ostiary.engines.framing import BodyReader, Malformed, reader_of
from ostiary.engines.mitm.dialling import Bound
from ostiary.engines.mitm.upstream import MAX_HEAD_BYTES, MAX_INTERIM, NotHttp, parse_answer

if TYPE_CHECKING:
    from ostiary.engines.fast.engine import FastEngine
    from ostiary.engines.fast.relay import Relay
    from ostiary.engines.fast.turn import Turn

_log = logging.getLogger("ostiary.engine")

WRITE_HIGH_BYTES: Final = 256 * 1024


class Link(asyncio.Protocol):
    """A connection to an upstream.

    Args:
        engine: told of its end.
        bound: what it was dialled for.
        blind: for a tunnel that is passed on unopened, where the upstream may speak first.
    """

    def __init__(self, engine: FastEngine, bound: Bound, *, blind: bool = False) -> None:
        self.engine = engine
        self.bound = bound
        self.server = Server(
            address=(bound.destination.authority.host, bound.destination.authority.port), transport_protocol="tcp"
        )
        self.transport: asyncio.Transport | None = None
        self._below: asyncio.Transport | None = None
        self._paused = False
        self.turn: Turn | None = None
        self.relay: Relay | None = None
        self._early: list[bytes] | None = [] if blind else None
        """What has come before the relay that passes it on; None where nothing may."""
        self._said_all = False
        """Whether the upstream's end has come before it as well."""
        self.pooled = False
        self.idle_since_s = 0.0
        self.proven_s = 0.0
        """When the upstream's certificate was proven, by this handshake or by the one whose session it resumed."""
        self.served = 0
        """Requests that were sent on it."""
        self.waiting = False
        """Whether bytes are held until a stage has judged the head of the answer."""
        self._ended_behind: bool | None = None
        """Whether the connection has ended meanwhile, and how: cleanly, or not."""
        self._buffer = b""
        self._reader: BodyReader | None = None
        self._interim = 0
        self._answered = False
        self._complete = False
        self._reusable = False
        self._binding = False
        """Whether the request authenticates the connection: it is then nobody else's."""
        self._closed = False
        self._counted = False

    # --- life ---

    def attach(self, transport: asyncio.Transport, below: asyncio.Transport | None = None) -> None:
        """The connection is ready: dialled, and its TLS verified where it has TLS.

        Args:
            transport: to write to.
            below: that of the socket, where TLS lies between.

        Raises:
            Refusal: it has ended meanwhile. It is not counted then: nobody would be told of its end.
        """
        if self._closed:
            raise Refusal(Code.UPSTREAM_UNREACHABLE, f"{self.bound.destination.authority} broke off the connection.")
        self.transport = transport
        self._below = below or transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.server.state = ConnectionState.OPEN
        self.server.peername = transport.get_extra_info("peername")
        self.server.sockname = transport.get_extra_info("sockname")
        self.engine.parts.metrics.upstream_connection(self.bound.destination.authority.host, "open", 1)
        self._counted = True

    def catch_up(self, said: bytes, *, ended: bool) -> None:
        """Takes what came before this was the connection's protocol."""
        if said:
            self.data_received(said)
        if ended and not self.eof_received():
            self.close()

    def hand_on(self) -> None:
        """The relay is ready: it gets what has waited for it."""
        early, self._early = self._early, None
        if early is None or self.relay is None:
            return
        for data in early:
            self.relay.from_upstream(data)
        if self._closed:
            self.relay.lost(from_caller=False)
            return
        if self._paused:
            self.resume_reading()
        if self._said_all and self.relay is not None:
            self.relay.upstream_ended()

    @property
    def alive(self) -> bool:
        """Whether it has not ended, attached or not."""
        return not self._closed

    @property
    def usable(self) -> bool:
        return not self._closed and self.transport is not None and not self.transport.is_closing()

    def begin(self, turn: Turn, head: bytes) -> None:
        """The next request of this connection; its head leaves."""
        self.turn = turn
        self.served += 1
        self._buffer, self._reader = b"", None
        self._answered = self._complete = self._reusable = self.waiting = False
        self._ended_behind = None
        self._interim = 0
        self._binding = binds(head)
        if self.transport is not None and not self._closed:
            self.transport.write(head)

    def release(self) -> bool:
        """The request has ended; whether another may follow it."""
        transport = self.transport
        if not self._reusable or self._closed or transport is None or transport.is_closing():
            return False
        if self._paused:
            # By a caller that was slow to take the answer; it is another's connection next.
            self.resume_reading()
        self.turn = None
        self._reader = None
        return True

    def close(self) -> None:
        """Ends the connection without waiting for anybody."""
        if not self._closed:
            self._closed = True
            self.turn = self.relay = None
            if self.transport is not None:
                self.transport.abort()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self._closed:
            self.transport.write(data)

    def pause_reading(self) -> None:
        """Stops reading the socket, not TLS: what TLS has read already is lost where the socket ends meanwhile."""
        if self._below is not None and not self._below.is_closing():
            self._paused = True
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._below is not None and not self._below.is_closing():
            self._paused = False
            self._below.resume_reading()

    # --- asyncio's protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Plain connections are attached by whoever dials, as those with TLS are."""

    def data_received(self, data: bytes) -> None:
        if self.relay is not None:
            self.relay.from_upstream(data)
            return
        turn = self.turn
        if turn is None and self._early is not None:
            self._early.append(data)
            self.pause_reading()
            return
        if turn is None:
            if not self._closed:
                _log.warning("an upstream connection was closed: it sent what no request waited for")
            self.close()
            return
        try:
            self._read(turn, data)
        except (NotHttp, Malformed, NotSwitched):
            answering.broke(turn, "The upstream's answer is not valid HTTP.")
        except FAILURES as error:  # what fails here must not leave the request alive
            self._crash(turn, error)
        turn.caller.flush()

    @staticmethod
    def _crash(turn: Turn, error: BaseException) -> None:
        turn.caller.guarded(partial(ending.crashed, turn, error))

    def eof_received(self) -> bool:
        if self.relay is not None:
            return self.relay.upstream_ended()
        self._said_all = self._early is not None
        return self._said_all

    def connection_lost(self, exc: Exception | None) -> None:
        if self._counted:
            self._counted = False
            self.engine.release_socket()
            self.engine.parts.metrics.upstream_connection(self.bound.destination.authority.host, "open", -1)
        self.server.state = ConnectionState.CLOSED
        closed, self._closed = self._closed, True
        if self.pooled:
            self.engine.pool.forget(self)
        if closed:
            return
        if self.relay is not None:
            self.relay.lost(from_caller=False)
        elif self.turn is not None:
            turn = self.turn
            try:
                self._lost(turn, clean=exc is None)
            except FAILURES as error:  # as above
                self._crash(turn, error)
            turn.caller.flush()

    def pause_writing(self) -> None:
        owner = self.turn or self.relay
        if owner is not None:
            owner.caller.pause_reading()
            owner.caller.backlog()

    def resume_writing(self) -> None:
        if self.turn is not None:
            self.turn.caller.resume_reading()
        elif self.relay is not None:
            self.relay.caller.resume_reading()

    # --- answers ---

    def _read(self, turn: Turn, data: bytes) -> None:
        if not self._answered:
            data = self._buffer + data if self._buffer else data
            self._buffer = b""
            found = self._head(turn, data)
            if found is None:
                return
            data = found
            if self.relay is not None:
                # Frames that came with the handshake's answer.
                if data:
                    self.relay.from_upstream(data)
                return
            if turn.over:
                return
        if not turn.answer_open:
            # A stage is still judging the head: what follows it waits.
            self._buffer += data
            self.waiting = True
            self.pause_reading()
            return
        self._body(turn, data)

    def go_on(self) -> None:
        """The head of the answer has been judged."""
        held, self._buffer = self._buffer, b""
        self.waiting = False
        self.resume_reading()
        if self.relay is not None:
            if held:
                self.relay.from_upstream(held)
            if self._ended_behind is not None and self.relay is not None:
                self.relay.lost(from_caller=False)
            return
        turn = self.turn
        if turn is not None and not turn.over:
            try:
                self._body(turn, held)
                if self._ended_behind is not None and not self._complete and not turn.over:
                    self._ended_early(turn, clean=self._ended_behind)
            except Malformed:
                answering.broke(turn, "The upstream's answer is not valid HTTP.")

    def surplus(self) -> None:
        """The answer has ended and passed: what has been held since then is none of it."""
        self.waiting = False
        if self._buffer:
            self._buffer, self._reusable = b"", False

    def _head(self, turn: Turn, data: bytes) -> bytes | None:
        """Reads heads up to the one that answers; gives what is behind it, or None while it is not there."""
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0 or end > MAX_HEAD_BYTES:
                if len(data) > MAX_HEAD_BYTES:
                    raise NotHttp
                self._buffer = data
                return None
            response, size = parse_answer(data[:end], to_head=turn.request.data.method == b"HEAD")
            status = response.data.status_code
            raw, data = data[: end + 4], data[end + 4 :]
            if status >= HTTPStatus.OK:
                break
            if status == HTTPStatus.SWITCHING_PROTOCOLS:
                judge_switch(answering.handshake_fields(turn), response.data.headers.fields)
                break
            # `Expect` has been answered by us; other interim answers carry nothing a caller needs.
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise NotHttp
        self._answered = True
        if self.served == 1:
            self._keep_session()
        self._reader = reader_of(size) if size != 0 else None
        keeps = response.data.http_version == b"HTTP/1.1" and size != -1 and status != HTTPStatus.SWITCHING_PROTOCOLS
        self._reusable = keeps and not says_close(response.data.headers.fields) and not (self._binding or binds(raw))
        answering.answered(turn, response, size, raw)
        return data

    def _keep_session(self) -> None:
        """By the first answer an upstream has given the sessions that it gives."""
        if self.transport is not None and self.proven_s:
            found = session_of(self.transport.get_extra_info("ssl_object"), self.proven_s)
            if found is not None:
                self.engine.sessions.keep(self.bound.pool_key, found)

    def _body(self, turn: Turn, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            self._complete = True
            if data:
                self._reusable = False
            answering.ended(turn, ())
            return
        if not data:
            return
        payload, rest = reader.read(data)
        if payload:
            answering.data(turn, payload)
        if rest is not None and not turn.over:
            self._complete = True
            if rest:
                self._reusable = False
            answering.ended(turn, reader.trailers)

    def _lost(self, turn: Turn, *, clean: bool) -> None:
        if self._answered and not turn.answer_open:
            # A stage is still judging the head: what is held behind it may be the whole answer.
            self._ended_behind = clean
        else:
            self._ended_early(turn, clean=clean)

    def _ended_early(self, turn: Turn, *, clean: bool) -> None:
        if self._answered and clean and self._reader is not None and self._reader.until_close:
            answering.ended(turn, ())
            return
        nothing = not (self._answered or self._buffer or self._interim)
        answering.broke(turn, "The upstream broke off before it answered.", lost=nothing)
