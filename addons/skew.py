"""The clocks of upstreams, read from the `Date` of their answers (RFC 9110 section 6.6.1) and held against ours.

A clock that is wrong here makes signatures stale, certificates not yet valid and records misleading, and nothing else
would say so. An answer that a cache gave has its `Age`, and its `Date` says nothing; each host is looked at once a minute.
"""

from __future__ import annotations

import calendar
import email.utils
import logging
from collections.abc import Callable
from typing import Final

from addons.head import Fields

_log = logging.getLogger("ostiary.clock")

MAX_SKEW_S: Final = 60.0
"""What is told aloud. Signatures of AWS may be 300 to 900 s off, tokens 30 s."""
LOOK_S: Final = 60.0
MAX_HOSTS: Final = 1000


class Clocks:
    """What is known of the clocks of upstreams.

    Args:
        wall_s: our clock, in seconds since the epoch.
        tell: called with host and seconds by which our clock is ahead, at each look.
    """

    def __init__(self, wall_s: Callable[[], float], tell: Callable[[str, float], None]) -> None:
        self._wall_s = wall_s
        self._tell = tell
        self._next_s: dict[str, float] = {}

    def look(self, host: str, fields: Fields, now_s: float) -> None:
        """Compares, where this host's turn has come. Never raises.

        Args:
            host: of the upstream.
            fields: of its answer.
            now_s: monotonic seconds.
        """
        if now_s < self._next_s.get(host, 0.0):
            return
        if len(self._next_s) >= MAX_HOSTS:
            self._next_s.clear()
        self._next_s[host] = now_s + LOOK_S
        said = {name.lower(): value for name, value in fields}
        date = _seconds(said.get(b"date", b""))
        if date is None or b"age" in said:
            return
        ahead_s = self._wall_s() - date
        self._tell(host, ahead_s)
        if abs(ahead_s) > MAX_SKEW_S:
            way = "ahead of" if ahead_s > 0 else "behind"
            _log.warning(
                "this machine's clock is %d s %s that of %s: set it by NTP, or tell them", abs(ahead_s), way, host
            )


def _seconds(date: bytes) -> float | None:
    """A date of HTTP in seconds since the epoch; None where it is none."""
    try:
        found = email.utils.parsedate_tz(date.decode("ascii"))
        return None if found is None else float(calendar.timegm((*found[:6], 0, 0, 0)) - (found[9] or 0))
    except (ValueError, OverflowError, IndexError):
        return None
