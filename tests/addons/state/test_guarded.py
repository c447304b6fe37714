"""Deadline, breaker and metrics before any store."""

from __future__ import annotations

import asyncio

import pytest

from addons.state.guarded import PAUSE_MOST_S, TRIPS, Guarded
from addons.state.memory import MemoryStore
from addons.state.store import StateConflict, StateFull, StateMisuse, StateUnavailable
from tests.addons.state.conftest import Heard, Turned


class Moody(MemoryStore):
    """A store that can be told to fail."""

    def __init__(self, clock: Turned) -> None:
        super().__init__(clock)
        self.mood: Exception | None = None
        self.silent = False
        self.asked = 0

    async def once(self, key: str, ttl_s: float) -> bool:
        self.asked += 1
        if self.silent:
            await asyncio.sleep(3600)
        if self.mood is not None:
            raise self.mood
        return await super().once(key, ttl_s)


def make(jitter: float = 1.0, deadline_s: float = 0.25) -> tuple[Moody, Guarded, Heard, Turned]:
    clock, heard = Turned(), Heard()
    store = Moody(clock)
    return store, Guarded(store, heard, clock, deadline_s=deadline_s, jitter=lambda: jitter), heard, clock


async def fail(guarded: Guarded, times: int = 1) -> StateUnavailable:
    for _ in range(times):
        with pytest.raises(StateUnavailable) as met:
            await guarded.once("nonce:x", 60)
    return met.value


async def test_l1_a_silent_store_is_given_its_deadline_and_no_more() -> None:
    store, guarded, heard, _ = make(deadline_s=0.05)
    store.silent = True
    async with asyncio.timeout(1):
        assert "did not answer within 0.05 s" in (await fail(guarded)).reason
    assert heard.calls == [("once", "unavailable")]


async def test_l1_an_open_circuit_asks_once_a_pause() -> None:
    store, guarded, heard, clock = make()
    store.mood = StateUnavailable("down")
    await fail(guarded, TRIPS)
    assert (store.asked, heard.ups) == (TRIPS, [False])
    told = await fail(guarded, 50)
    assert store.asked == TRIPS
    assert told.reason == "down"
    assert told.retry_after_s == pytest.approx(0.1)
    clock.now_s += 0.101
    await fail(guarded, 2)
    assert store.asked == TRIPS + 1
    # Pauses grow, up to a bound.
    for _ in range(20):
        clock.now_s += PAUSE_MOST_S + 0.001
        await fail(guarded, 2)
    assert store.asked == TRIPS + 21
    store.mood = None
    clock.now_s += PAUSE_MOST_S + 0.001
    assert await guarded.once("nonce:a", 60)
    assert heard.ups[-1] is True
    assert await guarded.once("nonce:b", 60)


async def test_l1_of_a_crowd_one_makes_the_trial() -> None:
    store, guarded, _, clock = make(deadline_s=0.05)
    store.mood = StateUnavailable("down")
    await fail(guarded, TRIPS)
    store.mood, store.silent = None, True
    clock.now_s += 5
    ended = await asyncio.gather(*(guarded.once(f"nonce:{n}", 60) for n in range(50)), return_exceptions=True)
    assert all(isinstance(one, StateUnavailable) for one in ended)
    assert store.asked == TRIPS + 1


async def test_a_cancelled_trial_lets_the_next_one_try() -> None:
    store, guarded, heard, clock = make()
    store.mood = StateUnavailable("down")
    await fail(guarded, TRIPS)
    store.mood, store.silent = None, True
    clock.now_s += 5
    trial = asyncio.create_task(guarded.once("nonce:a", 60))
    await asyncio.sleep(0)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert heard.calls[-1] == ("once", "cancelled")
    store.silent = False
    assert await guarded.once("nonce:a", 60)


async def test_pauses_are_jittered() -> None:
    waits = set()
    for jitter in (0.0, 0.5, 1.0):
        store, guarded, _, _ = make(jitter)
        store.mood = StateUnavailable("down")
        await fail(guarded, TRIPS)
        waits.add(round(guarded._closed_until_s - Turned().now_s, 3))
    assert waits == {0.05, 0.075, 0.1}


@pytest.mark.parametrize(
    ("mood", "result"),
    [(StateFull("full"), "full"), (StateConflict("a:b", 3), "conflict"), (StateMisuse("wrong"), "misuse")],
)
async def test_answers_of_a_store_that_works_open_no_circuit(mood: Exception, result: str) -> None:
    store, guarded, heard, _ = make()
    store.mood = mood
    for _ in range(2 * TRIPS):
        with pytest.raises(type(mood)):
            await guarded.once("nonce:a", 60)
    assert store.asked == 2 * TRIPS
    assert heard.calls == [("once", result)] * 2 * TRIPS
    assert False not in heard.ups


async def test_whatever_else_a_store_raises_is_an_outage_without_its_text() -> None:
    store, guarded, heard, _ = make()
    store.mood = ValueError("hunter2")
    told = await fail(guarded)
    assert told.reason.endswith("failed: ValueError")
    assert told.__suppress_context__
    assert heard.calls == [("once", "unavailable")]


async def test_every_call_is_counted() -> None:
    _, guarded, heard, _ = make()
    await guarded.once("nonce:a", 60)
    await guarded.add("quota:a", 1, 60)
    await guarded.take("rate:a", 1, 1, 1)
    await guarded.put("kill:a", b"")
    await guarded.get("kill:a")
    await guarded.items()
    await guarded.changes("")
    await guarded.delete("kill:a")
    await guarded.probe()
    await guarded.close()
    names = ("once", "add", "take", "put", "get", "items", "changes", "delete", "probe")
    assert heard.calls == [(name, "ok") for name in names]
