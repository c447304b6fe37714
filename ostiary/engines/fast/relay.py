"""What passes between a caller and an upstream: the frames of a WebSocket, and tunnels that are not opened. They are
counted, and their deadlines are kept. Frames of an upstream that has seen a credential are searched for it; all else
passes unread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from addons.exchange import Exchange
from addons.parts import Deadlines
from addons.refusal import Code, Refusal
from addons.reply.frames import Frames
from addons.reply.scrub import Scrub
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.link import Link

if TYPE_CHECKING:
    from ostiary.engines.fast.caller import Caller


LAST_BYTES_S: Final = 5.0
"""How long what was written to the upstream may take to leave once the relay has ended."""


class Relay:
    """Joins two connections.

    Args:
        caller: its end.
        link: the other.
        exchange: of the handshake or the CONNECT; settled at the end.
        times: `idle` and `total` are kept.
        frames: of a WebSocket: when either side ends, both do. A tunnel's sides end each by itself.
    """

    def __init__(self, caller: Caller, link: Link, exchange: Exchange, times: Deadlines, *, frames: bool) -> None:
        self.caller = caller
        self.link = link
        self._exchange = exchange
        self._frames = frames
        scrub = exchange.find(Scrub) if frames else None
        self._search = Frames(scrub) if scrub is not None else None
        self._before = exchange.redactions
        self._ended_sides: set[str] = set()
        link.relay, link.turn = self, None
        caller.deadline.expect(Wait.BODY, times.idle_s)
        if not frames:
            caller.deadline.begin_total(times.total_s)

    def from_caller(self, data: bytes) -> None:
        self.caller.deadline.touch()
        exchange = self._exchange
        exchange.bytes_in += len(data)
        if exchange.payload is not None:
            exchange.payload.update(data)
        self.link.write(data)

    def from_upstream(self, data: bytes) -> None:
        self.caller.deadline.touch()
        if self._search is not None:
            try:
                data = self._search.feed(data)
            except Refusal as refusal:
                self._exchange.redactions = self._before + self._search.redactions
                self.caller.engine.parts.boundary.refuse(self._exchange, refusal)
                self._finish()
                return
            self._exchange.redactions = self._before + self._search.redactions
        if data:
            self._exchange.bytes_out += len(data)
            self.caller.write(data)
            self.caller.flush()

    def upstream_ended(self) -> bool:
        """The upstream will send no more; whether its connection stays open to be written to."""
        return self._ended("upstream")

    def caller_ended(self) -> bool:
        """The caller will send no more; whether its connection stays open to be written to."""
        return self._ended("caller")

    def _ended(self, side: str) -> bool:
        self._ended_sides.add(side)
        transport = self.caller.transport if side == "upstream" else self.link.transport
        if self._frames or len(self._ended_sides) == 2 or transport is None or not transport.can_write_eof():
            # After the closing handshake either side of a WebSocket may end first (RFC 6455 section 7.1.1).
            self._finish()
            return False
        transport.write_eof()
        return True

    def lost(self, *, from_caller: bool) -> None:
        """One of the connections is gone."""
        gone = from_caller and not self._frames and "caller" not in self._ended_sides
        self.caller.engine.parts.boundary.settle(self._exchange, "client_gone" if gone else "ok")
        self._finish()

    def expired(self) -> None:
        boundary = self.caller.engine.parts.boundary
        if self._frames:
            boundary.refuse(self._exchange, Refusal(Code.UPSTREAM_TIMEOUT, "The WebSocket fell silent."))
        else:
            boundary.settle(self._exchange, "truncated", code=Code.UPSTREAM_TIMEOUT)
        self._finish()

    def _finish(self) -> None:
        self.caller.engine.parts.boundary.settle(self._exchange, "ok")
        if self.link.usable and self.link.transport is not None:
            self.link.resume_reading()
            self.link.transport.close()
            if self.link.transport.get_write_buffer_size():
                # A peer that never reads would keep the connection for ever.
                self.caller.loop.call_later(LAST_BYTES_S, self.link.transport.abort)
        self.link.relay = None
        self.caller.close()
