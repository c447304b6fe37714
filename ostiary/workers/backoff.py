"""How long the place of a worker that has fallen stays empty: hardly at all at first, longer the more often it falls.

One that had served for a while fell for a reason of its own and is replaced at once; one that falls again and again has
a reason that stays, and starting it without pause would take the processor from those that serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_S: Final = 0.25
MOST_S: Final = 30.0
STEADY_S: Final = 60.0
"""Who has served for this long begins anew."""


@dataclass(slots=True)
class BackOff:
    """Of one place. Times are monotonic seconds, passed in."""

    _falls: int = 0
    _serving_since_s: float | None = None

    def serving(self, now_s: float) -> None:
        """The worker accepts."""
        self._serving_since_s = now_s

    def fallen(self, now_s: float) -> float:
        """The worker has ended; gives the pause before the next, seconds."""
        if self._serving_since_s is not None and now_s - self._serving_since_s >= STEADY_S:
            self._falls = 0
        self._serving_since_s = None
        pause_s: float = min(FIRST_S * 2.0 ** min(self._falls, 16), MOST_S)
        self._falls += 1
        return pause_s
