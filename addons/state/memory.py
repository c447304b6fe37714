"""State in the memory of one process: gone when it ends, shared with nobody. The reference for the other stores.

Bounded: when a table is full, what has expired goes; when nothing has, the call is refused with `StateFull`.
"""

from __future__ import annotations

import heapq
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from addons.state.bounds import (
    check_amount,
    check_bucket,
    check_expect,
    check_key,
    check_prefix,
    check_ttl,
    check_value,
)
from addons.state.bucket import Bucket, full_in_s, take
from addons.state.store import (
    MAX_AMOUNT,
    MAX_KEPT,
    MAX_KEPT_BYTES,
    NOTHING,
    Added,
    Item,
    Listing,
    StateConflict,
    StateFull,
    StoreName,
    Taken,
)

MAX_FACTS: Final = 200_000


class _Expiring[T]:
    """A table whose entries end, bounded."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[str, tuple[float, T]] = {}
        self._ends: list[tuple[float, str]] = []

    def get(self, key: str, now_s: float) -> T | None:
        found = self._entries.get(key)
        return found[1] if found is not None and found[0] > now_s else None

    def end_of(self, key: str) -> float:
        return self._entries[key][0]

    def set(self, key: str, value: T, ends_s: float, now_s: float) -> None:
        known = self._entries.get(key)
        if known is None or len(self._ends) > 2 * self._capacity:
            self._sweep(now_s)
        if key not in self._entries and len(self._entries) >= self._capacity:
            raise StateFull(f"{self._capacity} facts are held in memory and none has expired")
        self._entries[key] = (ends_s, value)
        if known is None or known[0] != ends_s:
            heapq.heappush(self._ends, (ends_s, key))

    def _sweep(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            ends_s, key = heapq.heappop(self._ends)
            if key in self._entries and self._entries[key][0] == ends_s:
                del self._entries[key]
        if len(self._ends) > 2 * self._capacity:
            # Ends of entries that were prolonged since.
            self._ends = [(ends_s, key) for key, (ends_s, _) in self._entries.items()]
            heapq.heapify(self._ends)


@dataclass(frozen=True, slots=True)
class _Kept:
    value: bytes
    version: int
    ends_s: float


class MemoryStore:
    """State of one process.

    Args:
        clock: seconds that only grow.
        capacity: marks, counters and buckets held, of each kind.
    """

    name: StoreName = "memory"

    def __init__(self, clock: Callable[[], float], *, capacity: int = MAX_FACTS) -> None:
        self._clock = clock
        self._marks = _Expiring[bool](capacity)
        self._counters = _Expiring[int](capacity)
        self._buckets = _Expiring[Bucket](capacity)
        self._kept: dict[str, _Kept] = {}
        self._kept_bytes = 0
        self._number = 0
        self._epoch = secrets.token_hex(8)

    async def once(self, key: str, ttl_s: float) -> bool:
        check_key(key)
        check_ttl(ttl_s)
        now_s = self._clock()
        if self._marks.get(key, now_s) is not None:
            return False
        self._marks.set(key, True, now_s + ttl_s, now_s)
        return True

    async def add(self, key: str, amount: int, ttl_s: float, limit: int | None = None) -> Added:
        check_key(key)
        check_ttl(ttl_s)
        check_amount(amount, limit)
        now_s = self._clock()
        value = self._counters.get(key, now_s)
        before = value or 0
        after = max(0, before + amount)
        if amount > 0 and after > (MAX_AMOUNT if limit is None else limit):
            return Added(before, added=False)
        if value is None and amount <= 0:
            return Added(0, added=True)
        self._counters.set(key, after, now_s + ttl_s if value is None else self._counters.end_of(key), now_s)
        return Added(after, added=True)

    async def take(self, key: str, cost: float, capacity: float, refill_per_s: float) -> Taken:
        check_key(key)
        check_bucket(cost, capacity, refill_per_s)
        now_s = self._clock()
        after, taken = take(self._buckets.get(key, now_s), cost, capacity, refill_per_s, now_s)
        if after is not None:
            self._buckets.set(key, after, now_s + full_in_s(after, capacity, refill_per_s), now_s)
        return taken

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        check_key(key)
        check_value(value)
        check_expect(expect)
        if ttl_s is not None:
            check_ttl(ttl_s)
        now_s = self._clock()
        self._require(key, expect, now_s)
        self._make_room(key, value, now_s)
        self._drop(key)
        self._number += 1
        self._kept[key] = _Kept(value, self._number, math.inf if ttl_s is None else now_s + ttl_s)
        self._kept_bytes += len(key) + len(value)
        return self._number

    async def get(self, key: str) -> Item | None:
        check_key(key)
        now_s = self._clock()
        kept = self._alive(key, now_s)
        return None if kept is None else _item(key, kept, now_s)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        check_key(key)
        check_expect(expect)
        now_s = self._clock()
        self._require(key, expect, now_s)
        if self._alive(key, now_s) is None:
            return False
        self._drop(key)
        self._number += 1
        return True

    async def items(self, prefix: str = "") -> Listing:
        check_prefix(prefix)
        now_s = self._clock()
        found = sorted(
            (key, kept) for key, kept in self._kept.items() if key.startswith(prefix) and kept.ends_s > now_s
        )
        return Listing(self._revision(), tuple(_item(key, kept, now_s) for key, kept in found))

    async def changes(self, since: str, prefix: str = "") -> Listing | None:
        check_prefix(prefix)
        return None if since == self._revision() else await self.items(prefix)

    async def probe(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def _revision(self) -> str:
        return f"{self._epoch}:{self._number}" if self._number else NOTHING

    def _alive(self, key: str, now_s: float) -> _Kept | None:
        kept = self._kept.get(key)
        return kept if kept is not None and kept.ends_s > now_s else None

    def _require(self, key: str, expect: int | None, now_s: float) -> None:
        kept = self._alive(key, now_s)
        version = 0 if kept is None else kept.version
        if expect is not None and expect != version:
            raise StateConflict(key, version)

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._kept_bytes -= len(key) + len(kept.value)

    def _make_room(self, key: str, value: bytes, now_s: float) -> None:
        def fits() -> bool:
            old = self._kept.get(key)
            freed = 0 if old is None else len(key) + len(old.value)
            count = len(self._kept) + (old is None)
            return count <= MAX_KEPT and self._kept_bytes - freed + len(key) + len(value) <= MAX_KEPT_BYTES

        if fits():
            return
        for one in [one for one, kept in self._kept.items() if kept.ends_s <= now_s]:
            self._drop(one)
        if not fits():
            raise StateFull(f"{MAX_KEPT} items or {MAX_KEPT_BYTES} bytes are kept and none has expired")


def _item(key: str, kept: _Kept, now_s: float) -> Item:
    return Item(key, kept.value, kept.version, None if kept.ends_s == math.inf else kept.ends_s - now_s)
