"""A budget of failed proofs for each source: within it a connection stays usable after 407, beyond it each guess costs a connection.

A caller key has 256 random bits, so nothing can be guessed; the budget keeps a source that tries all the same from doing it
cheaply. It never refuses a right proof: several workloads may share one address.
"""

from __future__ import annotations

from collections import OrderedDict

from addons.clock import Clock


class FailureBudget:
    """Counts failed proofs.

    Args:
        clock: for the window.
        allowed: failures in one window that cost nothing more.
        window_s: its length, seconds.
        capacity: sources remembered; the one that failed longest ago is forgotten first.
    """

    def __init__(self, clock: Clock, *, allowed: int = 20, window_s: float = 10.0, capacity: int = 10_000) -> None:
        self._clock = clock
        self._allowed = allowed
        self._window_s = window_s
        self._capacity = capacity
        self._failed: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def spend(self, source: str) -> bool:
        """Counts one failure; True while the budget lasts."""
        now_s = self._clock.monotonic_s()
        since_s, count = self._failed.pop(source, (now_s, 0))
        if now_s - since_s > self._window_s:
            since_s, count = now_s, 0
        self._failed[source] = (since_s, count + 1)
        if len(self._failed) > self._capacity:
            self._failed.popitem(last=False)
        return count < self._allowed
