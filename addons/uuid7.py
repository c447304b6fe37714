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
        self._pool = ""

    def __call__(self) -> str:
        # 48 bits of milliseconds and 12 bits of the fraction (section 6.2, method 3); a tie or a clock that steps back
        # counts on from the last.
        now = self._now_ns()
        stamp = (now // 1_000_000 << 12) | (now % 1_000_000 * 4096 // 1_000_000)
        self._last = stamp = max(stamp, self._last + 1)
        if not self._pool:
            # One system call for 64 ids.
            self._pool = self._random(512).hex()
        tail, self._pool = self._pool[:16], self._pool[16:]
        # Version 7 before the twelve bits of the fraction, variant 10 before the random ones (section 4).
        head = f"{stamp >> 12:012x}"
        return f"{head[:8]}-{head[8:]}-7{stamp & 0xFFF:03x}-{'89ab'[int(tail[0], 16) & 3]}{tail[1:4]}-{tail[4:]}"


uuid7: Final = Uuid7(time.time_ns, os.urandom)
"""Ids of this process's event loop."""
