"""One caller's connection: reads heads behind the strict edge, opens tunnels, and gives each request its turn.

Requests that a caller sends ahead are served in order, one at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, cast

from mitmproxy import http
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.net.http import url

from addons.boundary import place_of
from addons.edge import judge_head, judge_partial
from addons.exchange import Connection, Exchange, Listener
from addons.parts import Deadlines
from addons.refusal import Answer, Code, Refusal
from ostiary.engines.fast.deadline import Deadline, Wait
from ostiary.engines.fast.failures import FAILURES
from ostiary.engines.fast.heads import own_answer
from ostiary.engines.fast.link import WRITE_HIGH_BYTES, Link
from ostiary.engines.fast.opening import Opening
from ostiary.engines.fast.phase import CLOSE_S, Phase
from ostiary.engines.fast.relay import Relay
from ostiary.engines.fast.turn import Turn
from ostiary.engines.mitm.engine import facts_of_peer, new_client
from ostiary.engines.mitm.handler import PIPELINE_DEADLINE_S
from ostiary.engines.mitm.http1 import MAX_AHEAD_BYTES, MAX_LEAD_BYTES, request_of
from ostiary.engines.mitm.stream import LINGER_S, MAX_DISCARDED_BYTES

if TYPE_CHECKING:
    from ostiary.engines.fast.engine import FastEngine

_log = logging.getLogger("ostiary.engine")
_tls_log = logging.getLogger("ostiary.tls")

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
MAX_HELD_BYTES: Final = 64 * 1024
"""Of a body whose upstream is not reached yet; then the caller is not read."""


class Caller(asyncio.Protocol):
    """A caller's connection.

    Args:
        engine: whose listener accepted it.
        listener: where it came in.
    """

    connection: Connection
    client: Client

    def __init__(self, engine: FastEngine, listener: Listener) -> None:
        self.engine = engine
        self.loop = engine.loop
        self.listener = listener
        self.transport: asyncio.Transport | None = None
        self.no_server = Server(address=None)
        """What a flow has for a server before one is reached."""
        self.deadline = Deadline(self.loop, self._passed)
        self.phase = Phase.HEAD
        self._entered = False
        self.ahead = b""
        self._out: list[bytes] = []
        self._turn: Turn | None = None
        self._relay: Relay | None = None
        self._discarded = 0
        self._lead_bytes = 0
        self._advancing = False
        self._half_closed = False
        self.paused = False
        """Whether the caller is not read for now."""
        self._closing: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: Opening | None = None
        """From a CONNECT until its tunnel is open."""

    # --- asyncio's protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._entered:
            return  # TLS on a connection that is known
        self.transport = cast("asyncio.Transport", transport)
        self.connection = facts_of_peer(self.listener, transport)
        if not self.engine.admits(self.connection):
            self.phase = Phase.CLOSED
            self.transport.close()
            return
        self.client = new_client(transport)
        self.engine.enter(self.client, self)
        self._entered = True
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        # Who connects has something to say; nothing is known of it yet that would let it wait.
        self.deadline.expect(Wait.REQUEST, self.engine.header_timeout_s)
        self.guarded(self._begin)

    def _begin(self) -> None:
        self.engine.parts.metrics.connection("downstream", 1)
        self.hook("client_connected", self.client, self._welcomed)

    def _welcomed(self) -> None:
        if self.client.error:
            self.close()

    def data_received(self, data: bytes) -> None:
        self.guarded(lambda: self.received(data))

    def received(self, data: bytes) -> None:
        """Gives bytes to whoever the phase says."""
        match self.phase:
            case Phase.HEAD:
                self.ahead = self.ahead + data if self.ahead else data
                self.advance()
            case Phase.TURN:
                self._during_turn(data)
            case Phase.RELAY:
                cast("Relay", self._relay).from_caller(data)
            case Phase.WAITING:
                self._keep(data)
            case Phase.ENTRANCE:
                self.ahead += data
                if self._opening is not None:
                    self._opening.enter()
            case Phase.LINGER:
                self._discarded += len(data)
                if self._discarded > MAX_DISCARDED_BYTES:
                    self._drop()
            case Phase.CLOSED | Phase.HANDED:
                pass

    def eof_received(self) -> bool:
        """The caller will send no more. What it has asked for is still answered."""
        if self._relay is not None:
            return self._relay.caller_ended()
        turn = self._turn
        if turn is not None and not turn.receiving:
            self._half_closed = True
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # why a caller goes is its own affair
        if not self._entered:
            self._part()
            return
        self.client.state = ConnectionState.CLOSED
        self.guarded(self._gone)
        self.phase = Phase.CLOSED
        for task in tuple(self._tasks):
            task.cancel()
        self.hook("client_disconnected", self.client, _nothing)
        self._leave()
        self._part()

    def handed_back(self) -> None:
        """Who served the connection instead has done with it."""
        if self.transport is not None:
            self.transport.close()
        self._leave()
        self._part()

    def _part(self) -> None:
        """Lets go of all that knows this connection: it, its TLS and their buffers must not wait for the collector of
        cycles to find them.
        """
        self.deadline.end()
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self.transport = None
        self._opening = None
        self.ahead = b""
        self._out.clear()

    def _leave(self) -> None:
        self._entered = False
        if self.engine.parts.buffers is not None:
            self.engine.parts.buffers.forget(self)
        self.engine.leave(self.client, self.connection)
        self.engine.parts.metrics.connection("downstream", -1)

    def _gone(self) -> None:
        turn, self._turn = self._turn, None
        relay, self._relay = self._relay, None
        if turn is not None:
            turn.caller_gone()
        if relay is not None:
            relay.lost(from_caller=True)

    def pause_writing(self) -> None:
        self.backlog()
        link = self._upstream()
        if link is not None:
            link.pause_reading()

    def backlog(self) -> None:
        """Something waits here: it is counted until nothing does."""
        if self.engine.parts.buffers is not None:
            self.engine.parts.buffers.watch(self)

    def held_bytes(self) -> int:
        """What waits to be written to either side, and what has been read and waits for its turn."""
        if self.phase is Phase.CLOSED:
            return 0
        held = len(self.ahead)
        link = self._upstream()
        for transport in (self.transport, link.transport if link is not None else None):
            if transport is not None:
                held += transport.get_write_buffer_size()
        return held

    def resume_writing(self) -> None:
        link = self._upstream()
        if link is not None:
            link.resume_reading()

    def _upstream(self) -> Link | None:
        if self._relay is not None:
            return self._relay.link
        return self._turn.link if self._turn is not None else None

    # --- what turns and relays ask ---

    def write(self, data: bytes) -> None:
        """Collects what leaves at the next `flush`: a head and its body are one write, and one TLS record."""
        self._out.append(data)

    def flush(self) -> None:
        if self._out:
            out, self._out = self._out, []
            if self.transport is not None and not self.transport.is_closing():
                self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def pause_reading(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    def hook(self, name: str, subject: object, then: Callable[[], None]) -> None:
        """Runs a hook, then goes on: at once where nothing in it has to wait.

        Args:
            name: of the hook.
            subject: what it is about.
            then: the next step.
        """
        rest = self.engine.dispatcher.start(name, subject)
        if rest is None:
            then()
            return
        task = asyncio.Task(rest, loop=self.loop, eager_start=True)
        if task.done():
            then()
            return
        deadline = self.loop.call_later(PIPELINE_DEADLINE_S, task.cancel)
        self._tasks.add(task)

        def completed(done: asyncio.Task[None]) -> None:
            deadline.cancel()
            self._tasks.discard(done)
            self.guarded(then)

        task.add_done_callback(completed)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs what has to wait; cancelled when the connection ends."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def opened(self) -> None:
        """The tunnel is open, and what opened it has done with it."""
        self._opening = None

    @property
    def holds_bytes(self) -> bool:
        """Whether the caller has already sent something of what comes next."""
        return bool(self.ahead)

    def feed(self) -> None:
        """The upstream is reached: what has been held of the body goes on."""
        held, self.ahead = self.ahead, b""
        if held:
            self._during_turn(held)
        self.resume_reading()

    def next(self, *, keep: bool) -> None:
        """The turn has ended, its request and its answer passed."""
        self._turn = None
        self.deadline.begin_total(0)
        if not keep or (self._half_closed and not self.ahead):
            self.close()
        else:
            self.await_request()

    def await_request(self) -> None:
        """The next request may come, or is there already."""
        self.phase = Phase.HEAD
        self.deadline.expect(Wait.REQUEST, self.engine.idle_s)
        if self.paused:
            # By an upstream that was slow to take a body, and whose connection is nobody's now; or by a CONNECT.
            self.resume_reading()
        if self.ahead:
            self.advance()

    def linger(self) -> None:
        """The answer is out and the rest of the request is not wanted: closing at once would reset the connection
        before the answer is read.
        """
        self._turn = None
        self.deadline.begin_total(0)
        self._discarded = len(self.ahead)
        self.ahead = b""
        self.phase = Phase.LINGER
        self.flush()
        self.resume_reading()
        self.deadline.expect(Wait.LINGER, LINGER_S)

    def cut(self, *, framed: bool) -> None:
        """Ends an answer in the middle. Where nothing but the end of the connection would say that it is complete, the
        connection is reset.
        """
        self._turn = None
        if framed:
            self.close()
        else:
            self.flush()
            self._drop()

    def close(self) -> None:
        """Closes once what was written has left."""
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        self.ahead = b""
        self.flush()
        self.deadline.stop()
        if self.transport is not None:
            self.transport.close()
            self._closing = self.loop.call_later(CLOSE_S, self.transport.abort)

    def _drop(self) -> None:
        self.phase = Phase.CLOSED
        self.deadline.stop()
        if self.transport is not None:
            self.transport.abort()

    def hang_up(self) -> None:
        """Closes at once, and with it every upstream connection made for this caller."""
        self._out.clear()
        self._drop()

    def join(self, link: Link, exchange: Exchange, times: Deadlines, *, frames: bool) -> None:
        """From here on bytes pass in both directions until one side ends."""
        self._turn = None
        self.phase = Phase.RELAY
        self._relay = Relay(self, link, exchange, times, frames=frames)
        held, self.ahead = self.ahead, b""
        if held:
            self._relay.from_caller(held)
        if self.paused:
            self.resume_reading()
        self.flush()

    # --- failures and deadlines ---

    def guarded(self, step: Callable[[], None]) -> None:
        """Carries out a step; what fails in it ends the request, or the connection."""
        try:
            step()
        except FAILURES as error:  # what fails must not leave the connection half alive
            self._crashed(error)
        self.flush()

    def _crashed(self, error: BaseException) -> None:
        turn = self._turn
        if turn is not None and not turn.over:
            try:
                turn.crashed(error)
            except FAILURES as again:
                error = again
            else:
                return
        _log.error("connection %s closed: %s at %s", self.connection.id, type(error).__name__, place_of(error))
        try:
            for exchange in tuple(self.connection.exchanges):
                self.engine.parts.boundary.refuse(exchange, error)
        finally:
            self.hang_up()

    def _passed(self, wait: Wait) -> None:
        self.guarded(lambda: self._expired(wait))

    def _expired(self, wait: Wait) -> None:
        if self._relay is not None:
            self._relay.expired()
        elif self._turn is not None:
            self._turn.expired(wait)
        elif wait is Wait.HEAD:
            self._refuse_bytes(Refusal(Code.REQUEST_TIMEOUT, "The request head did not arrive in time.", close=True))
        elif wait is Wait.LINGER:
            self._drop()
        elif wait is Wait.HANDSHAKE:
            if self._opening is not None:
                self._opening.late()
        else:
            self.close()

    def _refuse_bytes(self, refusal: Refusal) -> None:
        """Answers bytes that never became a request, and closes."""
        self.say(self.engine.parts.boundary.refuse_unparsed(self.connection, refusal))
        self.close()

    def say(self, answer: Answer) -> None:
        """Writes an answer of ours that belongs to no turn."""
        self.write(own_answer(answer))

    # --- heads ---

    def advance(self) -> None:
        """Reads as many requests as are there and may be served now."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self.phase is Phase.HEAD and self.ahead:
                if not self._head():
                    break
        finally:
            self._advancing = False
        if self._half_closed and self.phase is Phase.HEAD:
            self.close()  # all that was asked for is answered

    def _head(self) -> bool:
        """Reads one head; false where it is not there yet."""
        raw = self.ahead
        if raw[0] in b"\r\n":
            raw = self.ahead = self._without_lead(raw)
        end = raw.find(b"\r\n\r\n")
        tunnelled = self.connection.tunnel is not None
        try:
            if end < 0:
                judge_partial(raw, self.engine.parts.heads)
            else:
                head = judge_head(raw[: end + 4], tunnelled=tunnelled, limits=self.engine.parts.heads)
        except Refusal as refusal:
            self._refuse_bytes(refusal)
            return False
        if end < 0:
            if raw and self.deadline.waits_for is not Wait.HEAD:
                self.deadline.expect(Wait.HEAD, self.engine.header_timeout_s)
            return False
        self.ahead = raw[end + 4 :]
        self._lead_bytes = 0
        request, size = request_of(head), head.size
        self.deadline.expect(Wait.NOTHING, 0)
        if request.data.method == b"CONNECT":
            opening = self._opening = Opening(self)
            opening.connect(request)
        else:
            self._address(request)
            turn = self._turn = Turn(self, request, size)
            self.phase = Phase.TURN
            turn.begin()
        return True

    def _without_lead(self, raw: bytes) -> bytes:
        """Without empty lines before a request line: they are legal (RFC 9112 section 2.2) and mean nothing."""
        stripped = raw.lstrip(b"\r\n")
        self._lead_bytes += len(raw) - len(stripped)
        if self._lead_bytes > MAX_LEAD_BYTES:
            self._refuse_bytes(
                Refusal(Code.BAD_REQUEST, "There are too many empty lines before a request.", close=True)
            )
            return b""
        return stripped

    def _address(self, request: http.Request) -> None:
        """Tells the flow where its request goes, as mitmproxy does."""
        data, tunnel = request.data, self.connection.tunnel
        if tunnel is not None:
            data.scheme = b"https"
            data.host, data.port = tunnel.authority.host, tunnel.authority.port
            return
        scheme, host, port, path = url.parse(data.path)
        data.scheme, data.host, data.port, data.path = scheme, host.decode("ascii", "replace"), port, path

    def _during_turn(self, data: bytes) -> None:
        turn = self._turn
        while data and turn is not None and turn is self._turn and turn.takes_bytes:
            data = turn.receive(data)
        if not data or self.phase is Phase.CLOSED:
            return
        if self.phase is not Phase.TURN:
            self.received(data)
        else:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        """Keeps what cannot be used yet: the body of a request that is being judged, and what comes behind it."""
        self.ahead = self.ahead + data if self.ahead else data
        receiving = self._turn is not None and self._turn.receiving
        if receiving or self.phase is Phase.WAITING:
            if len(self.ahead) > MAX_HELD_BYTES:
                self.pause_reading()
                self.backlog()
        elif len(self.ahead) > MAX_AHEAD_BYTES:
            self._drop()
        else:
            self.backlog()


def _nothing() -> None:
    """Nothing follows."""
