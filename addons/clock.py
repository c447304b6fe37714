"""Time as a parameter: rules take a `Clock`, so that tests can move it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings: one that only ever grows, one that people can read."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; for deadlines, ages and durations."""

    def wall_s(self) -> float:
        """Seconds since the Unix epoch; for records and certificates."""


class SystemClock:
    """The clocks of this machine."""

    monotonic_s = staticmethod(time.monotonic)
    wall_s = staticmethod(time.time)  # noqa: TID251 - the one place where the wall clock is read
