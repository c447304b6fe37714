"""The deadlines of one request, kept by one timer.

mitmproxy has a single inactivity timeout that any byte resets. Here: `idle` while bytes should move, `first_byte` from
the end of the request to the head of the answer, `total` from the moment the upstream is reached. Activity is a
timestamp; the timer is re-armed only when it fires, so a chunk costs one store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mitmproxy.proxy import events
from mitmproxy.proxy.layer import Layer

from addons.parts import Deadlines

type Kind = Literal["first_byte", "idle", "total", "linger", "upload"]


@dataclass
class Expired(events.Event):
    """A deadline of one stream has passed."""

    layer: Layer
    stream_id: int
    kind: Kind


@dataclass
class HeadDue(events.Event):
    """What a caller has begun (a head, a header block, a handshake) must be complete."""

    layer: Layer
    mark: object
    """What had begun."""


class Watch:
    """Watches one request.

    Args:
        loop: of this thread.
        times: seconds; 0 means no deadline of that kind.
        expired: told once which deadline passed.
    """

    __slots__ = ("_active_s", "_expired", "_handle", "_loop", "_phase", "_started_s", "_times", "_waiting_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, times: Deadlines, expired: Callable[[Kind], None]) -> None:
        self._loop = loop
        self._times = times
        self._expired = expired
        self._started_s = self._active_s = self._waiting_s = loop.time()
        self._phase: Kind = "idle"
        self._handle: asyncio.TimerHandle | None = None
        self._arm()

    def touch(self) -> None:
        """Bytes moved."""
        self._active_s = self._loop.time()

    def request_sent(self) -> None:
        """The request is complete: from now on the upstream has to answer."""
        if self._phase == "idle" and self._waiting_s == self._started_s:
            self._phase = "first_byte"
            self._waiting_s = self._loop.time()
            self._arm()

    def answered(self) -> None:
        """The head of the answer is there."""
        self._phase = "idle"
        self._waiting_s = -1.0
        self._active_s = self._loop.time()
        self._arm()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> tuple[float, Kind] | None:
        phase_s = self._times.first_byte_s if self._phase == "first_byte" else self._times.idle_s
        since_s = self._waiting_s if self._phase == "first_byte" else self._active_s
        dues: list[tuple[float, Kind]] = []
        if phase_s:
            dues.append((since_s + phase_s, self._phase))
        if self._times.total_s:
            dues.append((self._started_s + self._times.total_s, "total"))
        return min(dues, default=None)

    def _arm(self) -> None:
        due = self._due()
        if due is None:
            self.stop()
            return
        # A timer that fires early finds that it is early and re-arms: cheaper than moving it at every step.
        if self._handle is not None and self._handle.when() <= due[0]:
            return
        self.stop()
        self._handle = self._loop.call_at(due[0], self._fire)

    def _fire(self) -> None:
        self._handle = None
        due = self._due()
        if due is not None and due[0] <= self._loop.time() + 0.001:
            self._expired(due[1])
        else:
            self._arm()
