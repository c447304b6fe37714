"""Which of Vault's addresses is asked, and when none is: a memory of what each came to, and a breaker.

Rules:
- The address that worked last is asked first. A redirect of a standby is taken as a hint to the active node, if it
  names an address of the settings; it never adds one.
- An address that failed `TRIP` times in a row is not asked while another one is left. When all have, a call fails at
  once, but for one probe at a time, after a pause with jitter that doubles to `PAUSE_MOST_S`.
- Whatever answers is well, whichever call it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

TRIP: Final = 3
PAUSE_FIRST_S: Final = 0.5
PAUSE_MOST_S: Final = 2.0
"""Short, for an outage may be over any moment, and one probe costs Vault next to nothing."""

type Origin = tuple[str, str, int]


def origin_of(url: str) -> Origin | None:
    """Scheme, host and port of a URL; None where it has none."""
    try:
        split = urlsplit(url)
        port = split.port or {"http": 80, "https": 443}.get(split.scheme, 0)
    except ValueError:
        return None
    if not split.hostname or not port or split.username is not None:
        return None
    return split.scheme, split.hostname, port


@dataclass(slots=True)
class _State:
    failures: int = 0
    retry_s: float = 0.0


class Addresses:
    """Chooses among addresses, by their index.

    Args:
        addresses: of the settings, in their order.
        jitter: gives a number in [0, 1).
    """

    def __init__(self, addresses: Sequence[str], jitter: Callable[[], float] = random.random) -> None:
        self._origins = [origin_of(address) for address in addresses]
        self._states = [_State() for _ in addresses]
        self._jitter = jitter
        self._preferred = 0

    def choose(self, asked: Collection[int], now_s: float, *, anyhow: bool = False) -> int | None:
        """The address to ask next, None for none.

        Args:
            asked: what this call has asked before.
            now_s: monotonic seconds.
            anyhow: ask whether or not the breaker is open: for the readiness probe, which has a pace of its own.
        """
        count = len(self._states)
        ring = [(self._preferred + step) % count for step in range(count)]
        left = [index for index in ring if index not in asked]
        well = [index for index in left if self._states[index].failures < TRIP]
        if well:
            return well[0]
        for index in left:
            state = self._states[index]
            if anyhow or now_s >= state.retry_s:
                # Whoever comes next waits for what this probe finds.
                state.retry_s = now_s + PAUSE_MOST_S
                return index
        return None

    def another(self, asked: Collection[int]) -> bool:
        """Whether an address is left that is worth keeping time for."""
        return any(state.failures < TRIP for index, state in enumerate(self._states) if index not in asked)

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next probe is due."""
        return max(min(state.retry_s for state in self._states) - now_s, 0.0)

    def worked(self, index: int) -> None:
        """An address served."""
        self._states[index] = _State()
        self._preferred = index

    def failed(self, index: int, now_s: float) -> None:
        """An address did not serve."""
        state = self._states[index]
        state.failures += 1
        pause_s = min(PAUSE_FIRST_S * 2 ** min(max(state.failures - TRIP, 0), 8), PAUSE_MOST_S)
        state.retry_s = now_s + pause_s * (0.5 + self._jitter() / 2)

    def hinted(self, location: str | None) -> None:
        """A standby named the active node."""
        origin = origin_of(location) if location else None
        if origin is not None and origin in self._origins:
            index = self._origins.index(origin)
            self._preferred = index
