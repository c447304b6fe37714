"""Limits while the state store is down: each rule says whether a process then decides alone, on its share, or denies.

Nonces and revocation checks have no place here: `Counters` has no `once`, so that nobody can decide them alone. Whoever
asks the store itself gets `StateUnavailable` and refuses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, final

from addons.state.memory import MemoryStore
from addons.state.store import Added, StateFull, StateObserver, StateStore, StateUnavailable, Taken


@final
@dataclass(frozen=True, slots=True)
class Deny:
    """Without the store, no."""


@final
@dataclass(frozen=True, slots=True)
class LocalShare:
    """Without the store, one of `processes` equal shares of the limit, rounded down: together never more than the whole.
    What the store had counted before is not known and begins anew.
    """

    processes: int = 1

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError("a share is of one process at least")


type Outage = Deny | LocalShare
DENY: Final = Deny()


class Counters:
    """The two calls that limits are made of, with a rule for outages.

    Args:
        store: shared, behind its guard.
        observer: told of what was decided alone.
        clock: seconds that only grow.
    """

    def __init__(self, store: StateStore, observer: StateObserver, clock: Callable[[], float]) -> None:
        self._store = store
        self._observer = observer
        self._local = MemoryStore(clock)

    async def add(self, key: str, amount: int, ttl_s: float, limit: int | None = None, *, outage: Outage) -> Added:
        """As `StateStore.add`.

        Raises:
            StateUnavailable: the store is down, and `outage` is `Deny` or there is no limit to have a share of.
            StateError: as the store raises it.
        """
        try:
            return await self._store.add(key, amount, ttl_s, limit)
        except StateUnavailable:
            if isinstance(outage, Deny) or limit is None:
                self._observer.state_local("add", "denied")
                raise
        added = await self._alone("add", lambda: self._local.add(key, amount, ttl_s, limit // outage.processes))
        self._observer.state_local("add", "allowed" if added.added else "limited")
        return added

    async def take(self, key: str, cost: float, capacity: float, refill_per_s: float, *, outage: Outage) -> Taken:
        """As `StateStore.take`. A share that can never hold `cost` does not allow it, and says to ask again later.

        Raises:
            StateUnavailable: the store is down, and `outage` is `Deny`.
            StateError: as the store raises it.
        """
        try:
            return await self._store.take(key, cost, capacity, refill_per_s)
        except StateUnavailable as error:
            if isinstance(outage, Deny):
                self._observer.state_local("take", "denied")
                raise
            retry_s = error.retry_after_s
        share, pace = capacity / outage.processes, refill_per_s / outage.processes
        if cost > share:
            taken = Taken(allowed=False, retry_after_s=retry_s)
        else:
            taken = await self._alone("take", lambda: self._local.take(key, cost, share, pace))
        self._observer.state_local("take", "allowed" if taken.allowed else "limited")
        return taken

    async def _alone[T](self, operation: str, decide: Callable[[], Awaitable[T]]) -> T:
        try:
            return await decide()
        except StateFull:
            self._observer.state_local(operation, "denied")
            raise
