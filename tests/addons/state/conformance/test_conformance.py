"""One suite that every store passes: what `addons/state/store.py` promises."""

from __future__ import annotations

import asyncio

import pytest

from addons.state.store import (
    MAX_AMOUNT,
    MAX_KEPT,
    MAX_VALUE_BYTES,
    NOTHING,
    Added,
    StateConflict,
    StateFull,
    StateMisuse,
    StateStore,
    Taken,
)
from tests.addons.state.conftest import Made

# --- marks ---


async def test_a_nonce_is_used_once(made: Made) -> None:
    assert await made.store.once("nonce:a", 0.2)
    assert not await made.store.once("nonce:a", 0.2)
    assert await made.store.once("nonce:b", 0.2)
    await made.passes(0.25)
    assert await made.store.once("nonce:a", 0.2)


async def test_asking_again_does_not_prolong_a_mark(made: Made) -> None:
    assert await made.store.once("nonce:a", 0.3)
    await made.passes(0.2)
    assert not await made.store.once("nonce:a", 0.3)
    await made.passes(0.15)
    assert await made.store.once("nonce:a", 0.3)


async def test_of_fifty_that_ask_at_once_one_is_first(store: StateStore) -> None:
    assert sum(await asyncio.gather(*(store.once("nonce:a", 60) for _ in range(50)))) == 1


# --- counters ---


async def test_a_counter_adds_gives_back_and_reads(store: StateStore) -> None:
    assert await store.add("quota:a", 3, 60) == Added(3, added=True)
    assert await store.add("quota:a", 4, 60) == Added(7, added=True)
    assert await store.add("quota:a", -2, 60) == Added(5, added=True)
    assert await store.add("quota:a", 0, 60) == Added(5, added=True)
    assert await store.add("quota:b", 1, 60) == Added(1, added=True)


async def test_a_counter_never_falls_below_nothing(store: StateStore) -> None:
    assert await store.add("quota:a", -5, 60) == Added(0, added=True)
    await store.add("quota:a", 2, 60)
    assert await store.add("quota:a", -5, 60) == Added(0, added=True)
    assert await store.add("quota:a", 1, 60) == Added(1, added=True)


async def test_a_limit_is_reached_and_never_passed(store: StateStore) -> None:
    assert await store.add("quota:a", 8, 60, limit=10) == Added(8, added=True)
    assert await store.add("quota:a", 3, 60, limit=10) == Added(8, added=False)
    assert await store.add("quota:a", 2, 60, limit=10) == Added(10, added=True)
    # What was settled above the limit may be given back, and nothing more is added meanwhile.
    assert await store.add("quota:a", 5, 60) == Added(15, added=True)
    assert await store.add("quota:a", 1, 60, limit=10) == Added(15, added=False)
    assert await store.add("quota:a", -1, 60, limit=10) == Added(14, added=True)


async def test_a_limit_of_nothing_allows_nothing(store: StateStore) -> None:
    assert await store.add("quota:a", 1, 60, limit=0) == Added(0, added=False)


async def test_a_window_begins_with_the_first_and_is_not_prolonged(made: Made) -> None:
    await made.store.add("quota:a", 1, 0.4, limit=2)
    await made.passes(0.25)
    await made.store.add("quota:a", 1, 0.4, limit=2)
    assert not (await made.store.add("quota:a", 1, 0.4, limit=2)).added
    await made.passes(0.2)
    assert await made.store.add("quota:a", 1, 0.4, limit=2) == Added(1, added=True)


async def test_giving_back_after_the_window_gives_nothing(made: Made) -> None:
    await made.store.add("quota:a", 5, 0.1)
    await made.passes(0.15)
    assert await made.store.add("quota:a", -5, 0.1) == Added(0, added=True)
    assert await made.store.add("quota:a", 0, 0.1) == Added(0, added=True)


async def test_fifty_parallel_reservations_never_overshoot(store: StateStore) -> None:
    taken = await asyncio.gather(*(store.add("budget:a", 7, 60, limit=100) for _ in range(50)))
    assert sum(one.added for one in taken) == 14
    assert (await store.add("budget:a", 0, 60)).value == 98
    assert all(one.value <= 100 for one in taken)


async def test_large_amounts_are_exact(store: StateStore) -> None:
    assert await store.add("quota:a", MAX_AMOUNT, 60) == Added(MAX_AMOUNT, added=True)
    assert await store.add("quota:a", 1, 60) == Added(MAX_AMOUNT, added=False)
    assert await store.add("quota:a", -1, 60) == Added(MAX_AMOUNT - 1, added=True)


# --- buckets ---


async def test_a_bucket_empties_and_says_when(made: Made) -> None:
    for _ in range(3):
        assert await made.store.take("rate:a", 1, 3, 4) == Taken(allowed=True, retry_after_s=0)
    refused = await made.store.take("rate:a", 1, 3, 4)
    assert not refused.allowed
    assert 0 < refused.retry_after_s <= 0.25
    await made.passes(refused.retry_after_s)
    assert (await made.store.take("rate:a", 1, 3, 4)).allowed


async def test_a_bucket_holds_no_more_than_it_can(made: Made) -> None:
    await made.store.take("rate:a", 2, 2, 20)
    await made.passes(1.0)
    assert (await made.store.take("rate:a", 2, 2, 20)).allowed
    assert not (await made.store.take("rate:a", 2, 2, 0.01)).allowed


async def test_costs_and_capacities_may_be_broken_numbers(store: StateStore) -> None:
    assert (await store.take("rate:a", 0.5, 1.25, 0.001)).allowed
    assert (await store.take("rate:a", 0.75, 1.25, 0.001)).allowed
    refused = await store.take("rate:a", 0.5, 1.25, 0.001)
    assert not refused.allowed
    assert refused.retry_after_s == pytest.approx(500, rel=0.02)


async def test_a_smaller_capacity_holds_at_once(store: StateStore) -> None:
    await store.take("rate:a", 1, 100, 0.001)
    assert (await store.take("rate:a", 5, 5, 0.001)).allowed
    assert not (await store.take("rate:a", 1, 5, 0.001)).allowed


async def test_fifty_parallel_takes_never_overdraw(store: StateStore) -> None:
    taken = await asyncio.gather(*(store.take("rate:a", 1, 20, 0.001) for _ in range(50)))
    assert sum(one.allowed for one in taken) == 20


# --- kept items ---


async def test_what_is_kept_is_found_and_deleted(store: StateStore) -> None:
    assert await store.get("kill:a") is None
    version = await store.put("kill:a", b"\x00\xff why\n")
    found = await store.get("kill:a")
    assert found is not None
    assert (found.key, found.value, found.version, found.ttl_left_s) == ("kill:a", b"\x00\xff why\n", version, None)
    assert await store.put("kill:a", b"") > version
    assert (await store.get("kill:a")).value == b""  # type: ignore[union-attr]  # None fails the test too
    assert await store.delete("kill:a")
    assert not await store.delete("kill:a")
    assert await store.get("kill:a") is None


async def test_kept_items_expire(made: Made) -> None:
    await made.store.put("kill:a", b"x", ttl_s=0.3)
    await made.store.put("kill:b", b"y")
    found = await made.store.get("kill:a")
    assert found is not None
    assert found.ttl_left_s is not None
    assert 0 < found.ttl_left_s <= 0.3
    await made.passes(0.35)
    assert await made.store.get("kill:a") is None
    assert not await made.store.delete("kill:a")
    assert [item.key for item in (await made.store.items()).items] == ["kill:b"]
    # An expired one is none: it may be made anew by whoever expects none.
    await made.store.put("kill:a", b"z", expect=0)


async def test_a_put_without_ttl_ends_the_old_ttl(made: Made) -> None:
    await made.store.put("kill:a", b"x", ttl_s=0.2)
    await made.store.put("kill:a", b"x")
    await made.passes(0.25)
    assert await made.store.get("kill:a") is not None


async def test_compare_and_set(store: StateStore) -> None:
    first = await store.put("rules:a", b"1", expect=0)
    with pytest.raises(StateConflict) as met:
        await store.put("rules:a", b"2", expect=0)
    assert met.value.version == first
    second = await store.put("rules:a", b"2", expect=first)
    with pytest.raises(StateConflict):
        await store.delete("rules:a", expect=first)
    assert await store.delete("rules:a", expect=second)
    with pytest.raises(StateConflict) as met:
        await store.put("rules:a", b"3", expect=second)
    assert met.value.version == 0
    # Deleted and put anew: the old version does not come back.
    assert await store.put("rules:a", b"4") > second


async def test_of_fifty_that_compare_and_set_at_once_one_wins(store: StateStore) -> None:
    version = await store.put("rules:a", b"")
    ended = await asyncio.gather(
        *(store.put("rules:a", b"%d" % n, expect=version) for n in range(50)), return_exceptions=True
    )
    assert sum(isinstance(one, int) for one in ended) == 1
    assert sum(isinstance(one, StateConflict) for one in ended) == 49


async def test_items_below_a_prefix_in_order(store: StateStore) -> None:
    for key in ("kill:b", "ip:1", "kill:a", "kill:a~", "killer:x"):
        await store.put(key, key.encode())
    assert [item.key for item in (await store.items("kill:")).items] == ["kill:a", "kill:a~", "kill:b"]
    assert [item.value for item in (await store.items("ip:")).items] == [b"ip:1"]
    assert len((await store.items()).items) == 5
    assert (await store.items("none:")).items == ()


async def test_changes_since(store: StateStore) -> None:
    empty = await store.items()
    assert (empty.revision, empty.items) == (NOTHING, ())
    assert await store.changes(empty.revision) is None
    await store.put("kill:a", b"x")
    first = await store.changes(empty.revision)
    assert first is not None
    assert [item.key for item in first.items] == ["kill:a"]
    assert await store.changes(first.revision) is None
    await store.delete("kill:a")
    second = await store.changes(first.revision)
    assert second is not None
    assert second.items == ()
    assert second.epoch == first.epoch != empty.epoch
    # What is no change: a delete of nothing, a refused put, other kinds of facts.
    await store.delete("kill:a")
    with pytest.raises(StateConflict):
        await store.put("kill:a", b"x", expect=7)
    await store.once("kill:a", 60)
    await store.add("kill:a", 1, 60)
    await store.take("kill:a", 1, 1, 1)
    assert await store.changes(second.revision) is None
    assert (await store.changes("")) == second


async def test_kinds_of_facts_share_no_names(store: StateStore) -> None:
    await store.put("x:a", b"v")
    assert await store.once("x:a", 60)
    assert await store.add("x:a", 1, 60) == Added(1, added=True)
    assert (await store.take("x:a", 1, 1, 1)).allowed
    assert (await store.get("x:a")).value == b"v"  # type: ignore[union-attr]  # None fails the test too


async def test_kept_items_are_bounded_in_number_and_expired_ones_make_room(made: Made) -> None:
    for first in range(0, MAX_KEPT - 1, 512):
        keys = [f"kill:{n}" for n in range(first, min(first + 512, MAX_KEPT - 1))]
        await asyncio.gather(*(made.store.put(key, b"", ttl_s=60) for key in keys))
    await made.store.put("kill:short", b"x", ttl_s=0.2)
    with pytest.raises(StateFull):
        await made.store.put("kill:more", b"")
    await made.store.put("kill:1", b"replaced")
    await made.passes(0.25)
    await made.store.put("kill:more", b"")
    with pytest.raises(StateFull):
        await made.store.put("kill:evenmore", b"")


async def test_kept_items_are_bounded_in_bytes(store: StateStore) -> None:
    value = bytes(MAX_VALUE_BYTES)
    for n in range(127):
        await store.put(f"kill:{n}", value)
    with pytest.raises(StateFull):
        await store.put("kill:more", value)
    await store.put("kill:1", value)
    await store.delete("kill:2")
    await store.put("kill:more", value)


# --- bounds ---


@pytest.mark.parametrize(
    "key", ["", "a", "a:", ":a", "A:b", "a:b c", "a:b\n", "a:\u00e9", "a:" + "x" * 511, "a:\x7f", "a b:c"]
)
async def test_keys_out_of_bounds(store: StateStore, key: str) -> None:
    for asked in (
        store.once(key, 1),
        store.add(key, 1, 1),
        store.take(key, 1, 1, 1),
        store.put(key, b""),
        store.get(key),
        store.delete(key),
    ):
        with pytest.raises(StateMisuse):
            await asked


async def test_values_and_numbers_out_of_bounds(store: StateStore) -> None:
    nan, inf = float("nan"), float("inf")
    for asked in (
        store.put("a:b", bytes(MAX_VALUE_BYTES + 1)),
        store.put("a:b", b"", ttl_s=0),
        store.put("a:b", b"", expect=-1),
        store.once("a:b", nan),
        store.once("a:b", -1),
        store.once("a:b", inf),
        store.add("a:b", 1, 0),
        store.add("a:b", MAX_AMOUNT + 1, 1),
        store.add("a:b", 1, 1, limit=-1),
        store.take("a:b", 2, 1, 1),
        store.take("a:b", 0, 1, 1),
        store.take("a:b", 1, 1, 0),
        store.take("a:b", 1, inf, 1),
        store.take("a:b", nan, 1, 1),
        store.items("k\u00e9"),
    ):
        with pytest.raises(StateMisuse):
            await asked
    assert await store.get("a:b") is None
    longest = "a:" + "x" * 510
    await store.put(longest, bytes(MAX_VALUE_BYTES))
    assert len((await store.get(longest)).value) == MAX_VALUE_BYTES  # type: ignore[union-attr]  # None fails the test too


async def test_probe(store: StateStore) -> None:
    await store.probe()
