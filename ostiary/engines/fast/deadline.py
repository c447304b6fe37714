"""The deadlines of one caller's connection, kept by one timer.

At any moment a connection waits for one thing (`Wait`), and a request may have a total time beside it. Activity is a
timestamp; the timer is moved only when what is due comes earlier than what it is set for, and looks again when it fires
early. So a request of many steps costs a few stores, and no timer.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Callable


class Wait(enum.Enum):
    """What a connection waits for."""

    NOTHING = enum.auto()
    REQUEST = enum.auto()
    """The next request, with nothing of it there."""
    HANDSHAKE = enum.auto()
    """TLS inside an accepted CONNECT, from its first byte on to its end."""
    HEAD = enum.auto()
    """The rest of a request head."""
    BODY = enum.auto()
    """Bytes of a body, in either direction, or of a relay."""
    UPLOAD = enum.auto()
    """The rest of a body that is held until it is whole."""
    ANSWER = enum.auto()
    """The head of the answer; the request is sent."""
    LINGER = enum.auto()
    """The rest of a body that nobody wants."""
    TOTAL = enum.auto()
    """The whole of a request."""


class Deadline:
    """Watches one connection.

    Args:
        loop: of this thread.
        passed: told what was waited for when time ran out. The deadline is off then.
    """

    __slots__ = ("_handle", "_limit_s", "_loop", "_passed", "_set_s", "_since_s", "_total_s", "_wait")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[Wait], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._handle: asyncio.TimerHandle | None = None
        self._set_s = math.inf
        """What the timer is set for."""
        self._wait = Wait.NOTHING
        self._since_s = 0.0
        self._limit_s = math.inf
        self._total_s = math.inf

    def expect(self, wait: Wait, limit_s: float) -> None:
        """From now on this is waited for, so long; 0 means for ever."""
        self._wait = wait
        self._since_s = since_s = self._loop.time()
        self._limit_s = limit_s = limit_s or math.inf
        if since_s + limit_s < self._set_s:
            self._arm()

    def renew(self, wait: Wait, limit_s: float) -> None:
        """As `expect`; and a total that ran is off."""
        self._total_s = math.inf
        self.expect(wait, limit_s)

    def touch(self) -> None:
        """Bytes moved. What an answer is waited for goes by the end of the request, not by bytes."""
        if self._wait is Wait.BODY or self._wait is Wait.UPLOAD:
            self._since_s = self._loop.time()

    def begin_total(self, limit_s: float) -> None:
        """Also, from now on, all of it may take so long; 0 means for ever."""
        self._total_s = self._loop.time() + limit_s if limit_s else math.inf
        if self._total_s < self._set_s:
            self._arm()

    @property
    def waits_for(self) -> Wait:
        return self._wait

    def stop(self) -> None:
        """Off, until something is expected again."""
        self._wait = Wait.NOTHING
        self._limit_s = self._total_s = math.inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._set_s = math.inf

    def end(self) -> None:
        """Off for good: whoever was told is let go of, and may hold this without either keeping the other alive."""
        self.stop()
        self._passed = _nobody

    def _due_s(self) -> float:
        return min(self._since_s + self._limit_s, self._total_s)

    def _arm(self) -> None:
        due_s = self._since_s + self._limit_s
        due_s = min(due_s, self._total_s)
        if due_s >= self._set_s or due_s == math.inf:
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_at(due_s, self._fire)
        self._set_s = due_s

    def _fire(self) -> None:
        self._handle, self._set_s = None, math.inf
        if self._due_s() > self._loop.time() + 0.001:
            self._arm()
            return
        wait = Wait.TOTAL if self._total_s <= self._since_s + self._limit_s else self._wait
        self._wait = Wait.NOTHING
        self._limit_s = self._total_s = math.inf
        self._passed(wait)


def _nobody(_wait: Wait) -> None:
    """The connection has ended."""
