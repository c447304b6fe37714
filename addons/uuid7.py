"""UUID version 7 (RFC 9562 section 5.7): milliseconds, then a counter that keeps ids of one process in order, then
random bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final


class Uuid7:
    """Makes ids. Not thread-safe: each thread that needs ids has its own.

    Args:
        now_ns: nanoseconds since the Unix epoch.
        random: gives that many random bytes.
    """

    def __init__(self, now_ns: Callable[[], int], random: Callable[[int], bytes]) -> None:
        self._now_ns = now_ns
        self._random = random
        self._last = 0
        self._millisecond = -1
        self._head = ""
        self._tails: list[str] = []

    def __call__(self) -> str:
        # 48 bits of milliseconds and 12 bits of the fraction (section 6.2, method 3); a tie or a clock that steps back
        # counts on from the last.
        now = self._now_ns()
        stamp = now // 1_000_000 << 12 | now % 1_000_000 * 4096 // 1_000_000
        if stamp <= self._last:
            stamp = self._last + 1
        self._last = stamp
        tails = self._tails or self._more()
        # Version 7 stands before the twelve bits of the fraction (section 4).
        millisecond = stamp >> 12
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._head = f"{millisecond >> 16:08x}-{millisecond & 0xFFFF:04x}-7"
        return f"{self._head}{stamp & 0xFFF:03x}{tails.pop()}"

    def _more(self) -> list[str]:
        """Random ends of 64 ids by one system call, variant 10 in front (section 4)."""
        digits = self._random(512).hex()
        for at in range(0, len(digits), 16):
            variant = "89ab"[int(digits[at], 16) & 3]
            self._tails.append(f"-{variant}{digits[at + 1 : at + 4]}-{digits[at + 4 : at + 16]}")
        return self._tails


uuid7: Final = Uuid7(time.time_ns, os.urandom)
"""Ids of this process's event loop."""
