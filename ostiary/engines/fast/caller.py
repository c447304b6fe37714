"""One caller's connection: says what its bytes are in each phase (`phase.py`), and gives each request its turn.

    bytes     by phase: to the reader of heads, the turn, the relay, the opening of a tunnel, or to `ahead`
    turn      a request with its answer (`turn.py`); requests that are sent ahead are served in order, one at a time
    opening   of a tunnel (`opening.py`), from its CONNECT to its TLS
    relay     of a WebSocket, or of a tunnel that is not opened (`relay.py`)

Whatever fails in a step ends the request or, where no request is, the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from addons.exchange import Exchange, Listener
from addons.parts import Deadlines
from addons.refusal import Answer, Code, Refusal
from ostiary.engines.fast import asking, ending, reverse
from ostiary.engines.fast.accepted import Accepted
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.failures import FAILURES
from ostiary.engines.fast.flows import no_server
from ostiary.engines.fast.heads import own_answer
from ostiary.engines.fast.link import Link
from ostiary.engines.fast.opening import Opening
from ostiary.engines.fast.phase import Phase
from ostiary.engines.fast.reading import HeadReader
from ostiary.engines.fast.relay import Relay
from ostiary.engines.fast.turn import Turn
from ostiary.engines.mitm.answered import LINGER_S, MAX_DISCARDED_BYTES
from ostiary.engines.mitm.http1 import MAX_AHEAD_BYTES

if TYPE_CHECKING:
    from ostiary.engines.fast.engine import FastEngine

MAX_HELD_BYTES: Final = 64 * 1024
"""Of a body whose upstream is not reached yet; then the caller is not read."""


class Caller(Accepted):
    """A caller's connection.

    Args:
        engine: whose listener accepted it.
        listener: where it came in.
        below: the socket's transport, where TLS ended at the listener.
    """

    def __init__(self, engine: FastEngine, listener: Listener, below: asyncio.Transport | None = None) -> None:
        super().__init__(engine, listener, below)
        self.no_server = no_server()
        """What a flow has for a server before one is reached."""
        self._reader = HeadReader(engine.parts.heads, reverse=listener.reverse is not None)
        self._turn: Turn | None = None
        self._relay: Relay | None = None
        self._opening: Opening | None = None
        """From a CONNECT until its tunnel is open."""
        self._discarded = 0
        self._advancing = False
        self._half_closed = False

    # --- asyncio's protocol ---

    def data_received(self, data: bytes) -> None:
        # As `guarded`, without a step of its own for each piece.
        try:
            self._TAKES[self.phase](self, data)
        except FAILURES as error:  # what fails must not leave the connection half alive
            self.crashed(error)
        self.flush()

    def eof_received(self) -> bool:
        """The caller will send no more. What it has asked for is still answered."""
        if self._relay is not None:
            return self._relay.caller_ended()
        turn = self._turn
        if turn is not None and not turn.receiving:
            self._half_closed = True
            return True
        return False

    def gone(self) -> None:
        self._opening = None
        turn, self._turn = self._turn, None
        relay, self._relay = self._relay, None
        if turn is not None:
            ending.caller_gone(turn)
        if relay is not None:
            relay.lost(from_caller=True)

    def upstream(self) -> Link | None:
        if self._relay is not None:
            return self._relay.link
        return self._turn.link if self._turn is not None else None

    def request_failed(self, error: BaseException) -> bool:
        turn = self._turn
        if turn is None or turn.over:
            return False
        ending.crashed(turn, error)
        return True

    # --- bytes, by phase ---

    def received(self, data: bytes) -> None:
        """Gives bytes to whoever the phase says."""
        self._TAKES[self.phase](self, data)

    def _take_head(self, data: bytes) -> None:
        self.ahead = self.ahead + data if self.ahead else data
        self.advance()

    def _take_for_turn(self, data: bytes) -> None:
        turn = self._turn
        while data and turn is not None and turn is self._turn and turn.takes_bytes:
            data = asking.receive(turn, data)
        if not data or self.phase is Phase.CLOSED:
            return
        if self.phase is not Phase.TURN:
            self.received(data)
        else:
            self._keep(data)

    def _take_for_relay(self, data: bytes) -> None:
        if self._relay is not None:
            self._relay.from_caller(data)

    def _take_entrance(self, data: bytes) -> None:
        self.ahead += data
        if self.listener.reverse is not None:
            reverse.enter(self)
        elif self._opening is not None:
            self._opening.enter()

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > MAX_DISCARDED_BYTES:
            self.drop()

    def _ignore(self, data: bytes) -> None:
        pass

    def _keep(self, data: bytes) -> None:
        """Keeps what cannot be used yet: the body of a request that is being judged, and what comes behind it."""
        self.ahead = self.ahead + data if self.ahead else data
        receiving = self._turn is not None and self._turn.receiving
        if receiving or self.phase is Phase.WAITING:
            if len(self.ahead) > MAX_HELD_BYTES:
                self.pause_reading()
                self.backlog()
        elif len(self.ahead) > MAX_AHEAD_BYTES:
            self.drop()
        else:
            self.backlog()

    _TAKES: ClassVar[dict[Phase, Callable[[Caller, bytes], None]]] = {
        Phase.HEAD: _take_head,
        Phase.WAITING: _keep,
        Phase.ENTRANCE: _take_entrance,
        Phase.TURN: _take_for_turn,
        Phase.RELAY: _take_for_relay,
        Phase.LINGER: _discard,
        Phase.HANDED: _ignore,
        Phase.CLOSED: _ignore,
    }
    """Who is given the bytes of each phase."""

    # --- requests ---

    def advance(self) -> None:
        """Reads as many requests as are there and may be served now."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self.phase is Phase.HEAD and self.ahead:
                if not self._next_head():
                    break
        finally:
            self._advancing = False
        if self._half_closed and self.phase is Phase.HEAD:
            self.close()  # all that was asked for is answered

    def _next_head(self) -> bool:
        """Serves one request; false where its head is not there yet."""
        try:
            request, size, self.ahead = self._reader.read(self.ahead, self.connection.tunnel)
        except Refusal as refusal:
            self._refuse_bytes(refusal)
            return False
        if request is None:
            if self.ahead and self.deadline.waits_for is not Wait.HEAD:
                self.deadline.expect(Wait.HEAD, self.engine.header_timeout_s)
            return False
        self.deadline.expect(Wait.NOTHING, 0)
        if request.data.method == b"CONNECT":
            self.enter(Phase.WAITING)
            opening = self._opening = Opening(self)
            opening.connect(request)
        else:
            self.enter(Phase.TURN)
            turn = self._turn = Turn(self, request, size)
            asking.begin(turn)
        return True

    def _refuse_bytes(self, refusal: Refusal) -> None:
        """Answers bytes that never became a request, and closes."""
        self.say(self.engine.parts.boundary.refuse_unparsed(self.connection, refusal))
        self.close()

    def say(self, answer: Answer) -> None:
        """Writes an answer of ours that belongs to no turn."""
        self.write(own_answer(answer))

    @property
    def holds_bytes(self) -> bool:
        """Whether the caller has already sent something of what comes next."""
        return bool(self.ahead)

    def feed(self) -> None:
        """The upstream is reached: what has been held of the body goes on."""
        held, self.ahead = self.ahead, b""
        if held:
            self._take_for_turn(held)
        self.resume_reading()

    # --- how a turn or an opening ends ---

    def next(self, *, keep: bool) -> None:
        """The turn has ended, its request and its answer passed."""
        self._turn = None
        if not keep or (self._half_closed and not self.ahead):
            self.close()
        else:
            self.await_request()

    def await_request(self) -> None:
        """The next request may come, or is there already."""
        if self.phase is Phase.CLOSED:
            return
        self.enter(Phase.HEAD)
        self.deadline.renew(Wait.REQUEST, self.engine.idle_s)
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
        if self.phase is Phase.CLOSED:
            return
        self.enter(Phase.LINGER)
        self.deadline.begin_total(0)
        self._discarded = len(self.ahead)
        self.ahead = b""
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
            self.drop()

    def join(self, link: Link, exchange: Exchange, times: Deadlines, *, frames: bool) -> None:
        """From here on bytes pass in both directions until one side ends."""
        self._turn = self._opening = None
        if self.phase is Phase.CLOSED:
            link.close()
            return
        self.enter(Phase.RELAY)
        self._relay = Relay(self, link, exchange, times, frames=frames)
        held, self.ahead = self.ahead, b""
        if held:
            self._relay.from_caller(held)
        if self.paused:
            self.resume_reading()
        self.flush()
        link.hand_on()

    def opened(self) -> None:
        """The tunnel is open, and what opened it has done with it."""
        self._opening = None

    # --- deadlines ---

    def passed(self, wait: Wait) -> None:
        self.guarded(lambda: self._expired(wait))

    def _expired(self, wait: Wait) -> None:
        if self._relay is not None:
            self._relay.expired()
        elif self._turn is not None:
            ending.expired(self._turn, wait)
        elif wait is Wait.HEAD:
            self._refuse_bytes(Refusal(Code.REQUEST_TIMEOUT, "The request head did not arrive in time.", close=True))
        elif wait is Wait.LINGER:
            self.drop()
        elif wait is Wait.HANDSHAKE and self._opening is not None:
            self._opening.late()
        else:
            self.close()
