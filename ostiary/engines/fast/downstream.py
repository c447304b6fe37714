"""The wire of a caller's connection: what leaves it, whether it is read, and the three ways in which it is closed.

    close      what was written leaves first, for so long
    drop       at once
    hang_up    at once, and what was collected is forgotten

Rules:
- What is written is collected until `flush`: a head and its body are one write, and one TLS record.
- A closed connection stays closed (`phase.py`). Once it is lost it lets go of all that knows it, so that nothing of it
  waits for the collector of cycles.
"""

from __future__ import annotations

import asyncio

from ostiary.engines.fast.deadline import Deadline, Wait
from ostiary.engines.fast.phase import CLOSE_S, FOLLOWS, Phase, WrongPhase


class Downstream(asyncio.Protocol):
    """A caller's end of the wire.

    Args:
        loop: of this thread.
        below: the socket's transport, where TLS lies between already.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, below: asyncio.Transport | None = None) -> None:
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self._below = below
        """The socket's, where TLS lies between. Reading is stopped there: what TLS has read already is lost where the
        socket ends meanwhile."""
        self.deadline = Deadline(loop, self.passed)
        self.phase = Phase.HEAD
        self.ahead = b""
        """What has been read and waits for its turn."""
        self.paused = False
        """Whether the caller is not read for now."""
        self._out: list[bytes] = []
        self._closing: asyncio.TimerHandle | None = None

    def attach(self, transport: asyncio.Transport) -> None:
        """The connection is made; more TLS may come to lie between."""
        self.transport = transport
        self._below = self._below or transport

    def passed(self, wait: Wait) -> None:
        """What was waited for did not come in time."""
        raise NotImplementedError

    def enter(self, phase: Phase) -> None:
        """Goes on to a phase.

        Raises:
            WrongPhase: it may not follow.
        """
        if phase not in FOLLOWS[self.phase]:
            raise WrongPhase(f"{phase.name} after {self.phase.name}")
        self.phase = phase

    # --- what leaves ---

    def write(self, data: bytes) -> None:
        """Collects what leaves at the next `flush`."""
        self._out.append(data)

    def flush(self) -> None:
        out, transport = self._out, self.transport
        if out:
            self._out = []
            if transport is not None and not transport.is_closing():
                transport.write(out[0] if len(out) == 1 else b"".join(out))

    # --- whether it is read ---

    def pause_reading(self) -> None:
        if self._below is not None and not self._below.is_closing():
            self.paused = True
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._below is not None and not self._below.is_closing():
            self.paused = False
            self._below.resume_reading()

    # --- how it ends ---

    def close(self) -> None:
        """Closes once what was written has left."""
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        self.ahead = b""
        self.flush()
        self.deadline.stop()
        if self.transport is not None:
            if self.paused:
                self.resume_reading()  # or the end that the caller's TLS says would not be read
            self.transport.close()
            self._closing = self.loop.call_later(CLOSE_S, self.transport.abort)

    def drop(self) -> None:
        """Closes at once; what the transport still holds is lost."""
        self.phase = Phase.CLOSED
        self.deadline.stop()
        if self.transport is not None:
            self.transport.abort()

    def hang_up(self) -> None:
        """Closes at once, and with it every upstream connection made for this caller."""
        self._out.clear()
        self.drop()

    def part(self) -> None:
        """The connection is lost: lets go of it, of its TLS and of its buffers."""
        self.deadline.end()
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self.transport = self._below = None
        self.ahead = b""
        self._out.clear()
