"""L1, as far as limits go: a share of one's own, or no; and nothing but limits is decided alone."""

from __future__ import annotations

import pytest

from addons.state.memory import MemoryStore
from addons.state.outage import DENY, Counters, LocalShare
from addons.state.store import Added, StateFull, StateUnavailable, Taken
from tests.addons.state.conftest import Heard, Turned


class Down(MemoryStore):
    """A store that is down while told so."""

    down = True

    async def add(self, key: str, amount: int, ttl_s: float, limit: int | None = None) -> Added:
        if self.down:
            raise StateUnavailable("down", retry_after_s=0.7)
        return await super().add(key, amount, ttl_s, limit)

    async def take(self, key: str, cost: float, capacity: float, refill_per_s: float) -> Taken:
        if self.down:
            raise StateUnavailable("down", retry_after_s=0.7)
        return await super().take(key, cost, capacity, refill_per_s)


def make() -> tuple[Down, Counters, Heard, Turned]:
    clock, heard = Turned(), Heard()
    store = Down(clock)
    return store, Counters(store, heard, clock), heard, clock


async def test_l1_who_denies_denies() -> None:
    _, counters, heard, _ = make()
    with pytest.raises(StateUnavailable):
        await counters.add("quota:a", 1, 60, 10, outage=DENY)
    with pytest.raises(StateUnavailable):
        await counters.take("rate:a", 1, 10, 1, outage=DENY)
    assert heard.local == [("add", "denied"), ("take", "denied")]


@pytest.mark.parametrize("processes", [1, 3, 4, 7, 20])
async def test_l1_shares_of_all_processes_are_never_more_than_the_whole(processes: int) -> None:
    added = taken = 0
    for _ in range(processes):
        _, counters, _, _ = make()
        for _ in range(20):
            added += (await counters.add("quota:a", 1, 60, 10, outage=LocalShare(processes))).added
            taken += (await counters.take("rate:a", 1, 10, 0.001, outage=LocalShare(processes))).allowed
    assert added == 10 // processes * processes
    assert taken <= 10


async def test_l1_a_share_refills_at_its_own_pace() -> None:
    _, counters, heard, clock = make()
    share = LocalShare(2)
    assert (await counters.take("rate:a", 2, 4, 1, outage=share)).allowed
    assert await counters.take("rate:a", 1, 4, 1, outage=share) == Taken(allowed=False, retry_after_s=2.0)
    clock.now_s += 2
    assert (await counters.take("rate:a", 1, 4, 1, outage=share)).allowed
    # What a share can never hold is not allowed; whoever asks may come again.
    assert await counters.take("rate:a", 3, 4, 1, outage=share) == Taken(allowed=False, retry_after_s=0.7)
    assert heard.local == [("take", "allowed"), ("take", "limited"), ("take", "allowed"), ("take", "limited")]


async def test_l1_without_a_limit_there_is_no_share() -> None:
    _, counters, _, _ = make()
    with pytest.raises(StateUnavailable):
        await counters.add("usage:a", 1, 60, outage=LocalShare(2))


async def test_l1_a_store_that_works_is_asked() -> None:
    store, counters, heard, _ = make()
    store.down = False
    assert await counters.add("quota:a", 10, 60, 10, outage=LocalShare(5)) == Added(10, added=True)
    assert (await counters.take("rate:a", 10, 10, 1, outage=DENY)).allowed
    assert heard.local == []


async def test_l1_a_share_that_is_full_denies() -> None:
    _, counters, heard, clock = make()
    counters._local = MemoryStore(clock, capacity=1)
    await counters.add("quota:a", 1, 60, 10, outage=LocalShare())
    with pytest.raises(StateFull):
        await counters.add("quota:b", 1, 60, 10, outage=LocalShare())
    assert heard.local[-1] == ("add", "denied")


def test_l1_a_nonce_is_never_decided_alone() -> None:
    public = {name for name in dir(Counters) if not name.startswith("_")}
    assert public == {"add", "take"}
    with pytest.raises(ValueError, match="one process"):
        LocalShare(0)
