"""Stands before any state store: a deadline for every call, a circuit breaker, and metrics.

Rules:
- A call is over after `deadline_s`, whatever the store does; what it still does then is its own affair.
- After `TRIPS` failures in a row the circuit is open: calls are refused at once, so that an outage does not cost every
  request its deadline. One call after each pause goes through as a trial; pauses grow to `PAUSE_MOST_S` and are
  jittered, so that a fleet does not come back in step.
- Only `StateUnavailable` opens the circuit: full, conflict and misuse are answers of a store that works.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from addons.state.store import (
    Added,
    Item,
    Listing,
    StateConflict,
    StateError,
    StateFull,
    StateMisuse,
    StateObserver,
    StateStore,
    StateUnavailable,
    StoreName,
    Taken,
)

DEADLINE_S: Final = 0.25
TRIPS: Final = 3
PAUSE_FIRST_S: Final = 0.1
PAUSE_MOST_S: Final = 1.0


class Guarded:
    """A state store with deadline, breaker and metrics.

    Args:
        store: owned from now on.
        observer: told of every call.
        clock: seconds that only grow.
        deadline_s: of each call.
        jitter: between 0 and 1.
    """

    def __init__(
        self,
        store: StateStore,
        observer: StateObserver,
        clock: Callable[[], float] = time.monotonic,
        *,
        deadline_s: float = DEADLINE_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name: StoreName = store.name
        self._store = store
        self._observer = observer
        self._clock = clock
        self._deadline_s = deadline_s
        self._jitter = jitter
        self._failures = 0
        self._closed_until_s = 0.0
        self._trial = False
        self._why = ""

    async def once(self, key: str, ttl_s: float) -> bool:
        return await self._call("once", lambda: self._store.once(key, ttl_s))

    async def add(self, key: str, amount: int, ttl_s: float, limit: int | None = None) -> Added:
        return await self._call("add", lambda: self._store.add(key, amount, ttl_s, limit))

    async def take(self, key: str, cost: float, capacity: float, refill_per_s: float) -> Taken:
        return await self._call("take", lambda: self._store.take(key, cost, capacity, refill_per_s))

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        return await self._call("put", lambda: self._store.put(key, value, ttl_s=ttl_s, expect=expect))

    async def get(self, key: str) -> Item | None:
        return await self._call("get", lambda: self._store.get(key))

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        return await self._call("delete", lambda: self._store.delete(key, expect=expect))

    async def items(self, prefix: str = "") -> Listing:
        return await self._call("items", lambda: self._store.items(prefix))

    async def changes(self, since: str, prefix: str = "") -> Listing | None:
        return await self._call("changes", lambda: self._store.changes(since, prefix))

    async def probe(self) -> None:
        await self._call("probe", self._store.probe)

    async def close(self) -> None:
        await self._store.close()

    async def _call[T](self, operation: str, ask: Callable[[], Awaitable[T]]) -> T:
        began_s = self._clock()
        result = "ok"
        try:
            return await self._through(began_s, ask)
        except StateError as error:
            result = _result_of(error)
            raise
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        finally:
            self._observer.state_call(operation, result, self._clock() - began_s)

    async def _through[T](self, now_s: float, ask: Callable[[], Awaitable[T]]) -> T:
        trial = self._failures >= TRIPS
        if trial:
            wait_s = self._closed_until_s - now_s
            if wait_s > 0 or self._trial:
                raise StateUnavailable(self._why, retry_after_s=max(wait_s, PAUSE_FIRST_S))
            self._trial = True
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await ask()
        except TimeoutError:
            late = StateUnavailable(f"the state store ({self.name}) did not answer within {self._deadline_s:g} s")
            self._failed(late)
            raise late from None
        except StateUnavailable as error:
            self._failed(error)
            raise
        except (StateFull, StateConflict):
            self._worked()
            raise
        except StateError:
            raise
        except Exception as error:  # noqa: BLE001 - a store that raises anything else is broken: whoever asked refuses
            odd = StateUnavailable(f"the state store ({self.name}) failed: {type(error).__name__}")
            self._failed(odd)
            raise odd from None
        else:
            self._worked()
            return answer
        finally:
            if trial:
                self._trial = False

    def _worked(self) -> None:
        self._failures = 0
        self._observer.state_up(up=True)

    def _failed(self, error: StateUnavailable) -> None:
        self._failures += 1
        self._why = error.reason
        if self._failures >= TRIPS:
            pause_s = min(PAUSE_FIRST_S * 2 ** min(self._failures - TRIPS, 8), PAUSE_MOST_S)
            self._closed_until_s = self._clock() + pause_s * (0.5 + self._jitter() / 2)
            self._observer.state_up(up=False)


def _result_of(error: StateError) -> str:
    match error:
        case StateFull():
            return "full"
        case StateConflict():
            return "conflict"
        case StateMisuse():
            return "misuse"
        case _:
            return "unavailable"
