"""The memory store is bounded, and forgets only what has expired."""

from __future__ import annotations

import pytest

from addons.state.memory import MemoryStore
from addons.state.store import StateFull
from tests.addons.state.conftest import Turned


async def test_full_is_refused_until_something_expires() -> None:
    clock = Turned()
    store = MemoryStore(clock, capacity=100)
    for n in range(100):
        assert await store.once(f"nonce:{n}", 10 + n)
    with pytest.raises(StateFull):
        await store.once("nonce:more", 10)
    assert not any([await store.once(f"nonce:{n}", 10) for n in range(100)])
    # Each kind has its own room.
    assert (await store.add("quota:a", 1, 10)).added
    clock.now_s += 10
    assert await store.once("nonce:more", 10)
    with pytest.raises(StateFull):
        await store.once("nonce:evenmore", 10)


async def test_what_is_prolonged_again_and_again_takes_no_more_room() -> None:
    clock = Turned()
    store = MemoryStore(clock, capacity=100)
    for _ in range(1000):
        clock.now_s += 0.5
        assert (await store.take("rate:a", 1, 1000, 1)).allowed
    assert len(store._buckets._ends) <= 201
    for n in range(99):
        assert (await store.take(f"rate:{n}", 1, 10, 0.01)).allowed
    with pytest.raises(StateFull):
        await store.take("rate:more", 1, 10, 0.01)
