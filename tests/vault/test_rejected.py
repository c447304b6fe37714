"""What the cache does when an upstream rejects a credential: it looks, within bounds, and drops nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vault.test_cache import FAILURES, REF, Clock, Fake, read
from vault.cache import FRUITLESS_S, SecretCache
from vault.observer import Silent
from vault.secret import Secret
from vault.store import SealedSecret, SecretDenied, SecretMissing, SecretRef, SecretUnavailable, SecretVersion
from vault.uses import Opening


@pytest.fixture
def parts() -> tuple[Fake, Clock, SecretCache]:
    store, clock = Fake(), Clock()
    return store, clock, SecretCache(store, clock, jitter=lambda: 1.0)


async def test_a_newer_version_in_memory_costs_no_read(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    old = await read(cache)
    store.version = 2
    clock.now += 11
    await read(cache)
    found = await cache.read_other(REF, old, ttl_s=10)
    assert found is not None
    assert (found.version, found.cache, store.fetches[REF]) == ("2", "hit", 2)


async def test_one_forced_read_for_all_who_were_rejected(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    used = await read(cache)
    store.version = 2
    clock.now += 0.1
    store.gate = asyncio.Event()
    waiters = [asyncio.create_task(cache.read_other(REF, used, ttl_s=10)) for _ in range(50)]
    await asyncio.sleep(0.01)
    store.gate.set()
    found = await asyncio.gather(*waiters)
    assert {one.version for one in found if one is not None} == {"2"}
    assert None not in found
    assert store.fetches[REF] == 2
    assert (await read(cache)).version == "2"


async def test_g28_a_fruitless_read_is_the_last_for_a_while(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    used = await read(cache, ttl=1000)
    for _ in range(100):
        clock.now += 0.1
        assert await cache.read_other(REF, used, ttl_s=1000) is None
        cache.suspect(REF, used)
        await asyncio.sleep(0)
    assert store.fetches[REF] == 1 + 10.0 / FRUITLESS_S
    # What was provoked cost nobody the secret (G57).
    assert (await read(cache, ttl=1000)).cache == "hit"


async def test_no_second_read_is_forced_while_the_first_is_told(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, _, cache = parts
    used = await read(cache)
    for behind in (False, True):
        before = store.fetches[REF]
        rejected = []
        for _ in range(12):  # one at each step of the loop, through the landing
            if behind:
                cache.suspect(REF, used)
            rejected.append(asyncio.create_task(cache.read_other(REF, used, ttl_s=10)))
            await asyncio.sleep(0)
        assert await asyncio.gather(*rejected) == [None] * 12
        assert store.fetches[REF] - before == (0 if behind else 1)


async def test_a_new_version_is_not_under_the_old_ones_cooldown(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    first = await read(cache)
    assert await cache.read_other(REF, first, ttl_s=10) is None
    store.version = 2
    clock.now += 10
    second = await read(cache)
    store.version = 3
    found = await cache.read_other(REF, second, ttl_s=10)
    assert found is not None
    assert found.version == "3"


async def test_a_look_behind_the_back_helps_the_next_read(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    used = await read(cache)
    store.version = 2
    clock.now += 0.1
    store.gate = asyncio.Event()
    cache.suspect(REF, used)
    cache.suspect(REF, used)
    await asyncio.sleep(0)
    # Whoever can wait joins it instead of being told that one was begun a moment ago.
    waiter = asyncio.create_task(cache.read_other(REF, used, ttl_s=10))
    await asyncio.sleep(0.01)
    store.gate.set()
    found = await waiter
    assert found is not None
    assert found.version == "2"
    assert (await read(cache)).version == "2"
    assert store.fetches[REF] == 2


async def test_a_flight_from_before_the_rejection_is_not_enough(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    used = await read(cache)
    store.gate = asyncio.Event()
    clock.now += 8.5
    await read(cache)  # refreshes behind the answer
    await asyncio.sleep(0)
    store.version = 2
    waiters = [asyncio.create_task(cache.read_other(REF, used, ttl_s=10)) for _ in range(3)]
    await asyncio.sleep(0.01)
    store.gate.set()
    assert [found.version for found in await asyncio.gather(*waiters) if found is not None] == ["2"] * 3
    assert store.fetches[REF] == 3


async def test_a_pinned_version_has_no_other(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, _, cache = parts
    pinned = SecretRef("secret/a", version=1)
    used = await cache.read(pinned, ttl_s=10, max_stale_s=0)
    assert await cache.read_other(pinned, used, ttl_s=10) is None
    cache.suspect(pinned, used)
    await asyncio.sleep(0)
    assert store.fetches[pinned] == 1


async def test_an_outage_does_not_drop_what_was_rejected(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    used = await read(cache)
    store.failure = SecretUnavailable("secret/a", "down")
    clock.now += 1
    assert await cache.read_other(REF, used, ttl_s=10) is None
    assert (await read(cache)).cache == "hit"
    # And what the store says is gone is gone, however one came to ask.
    store.failure = SecretMissing("secret/a", "404")
    clock.now += FRUITLESS_S
    assert await cache.read_other(REF, used, ttl_s=10) is None
    with pytest.raises(SecretMissing):
        await read(cache)


async def test_kv_version_1_is_compared_by_value(parts: tuple[Fake, Clock, SecretCache]) -> None:
    class Unversioned(Fake):
        async def fetch(self, ref: SecretRef) -> SecretVersion:
            found = await super().fetch(ref)
            return SecretVersion(found.fields, "v1")

    store, clock = Unversioned(), Clock()
    cache = SecretCache(store, clock)
    used = await read(cache)
    assert await cache.read_other(REF, used, ttl_s=10) is None
    clock.now += FRUITLESS_S
    store.version = 2
    found = await cache.read_other(REF, used, ttl_s=10)
    assert found is not None
    assert found.unseal(Opened(REF.name, "v1"))["key"].reveal() == "v2"


async def test_eviction_between_a_landing_and_the_read_that_waits_for_the_next() -> None:
    store, clock = Fake(), Clock()
    cache = SecretCache(store, clock, capacity=1)
    gate = store.gate = asyncio.Event()
    reads = [asyncio.create_task(read(cache, ttl=0))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reads.append(asyncio.create_task(read(cache, ttl=0)))  # waits for the first flight, then begins its own
    await asyncio.sleep(0)
    last = store.gate = asyncio.Event()
    gate.set()
    for number in range(8):
        other = SecretRef(f"secret/{number}")
        reads.append(asyncio.create_task(cache.read(other, ttl_s=0, max_stale_s=0)))
        reads.append(asyncio.create_task(read(cache, ttl=0)))
        await asyncio.sleep(0)
    last.set()
    await asyncio.gather(*reads)
    assert store.most == 1


class Opened:
    def __init__(self, secret: str, version: str) -> None:
        self.secret = secret
        self.secret_version = version


class Evidence(Silent):
    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def secret_changed(self, name: str, before: str, version: str) -> None:
        self.told.append(("changed", before, version))

    def secret_last_used(self, name: str, version: str, last: Opening) -> None:
        self.told.append(("last", version, last.secret_version or ""))


async def test_the_last_use_of_a_version_is_told_when_it_has_ended() -> None:
    store, clock, evidence = Fake(), Clock(), Evidence()
    cache = SecretCache(store, clock, evidence)
    used, idle = await read(cache), await read(cache)
    used.unseal(Opened(REF.name, "1"))
    store.version = 2
    clock.now += 11
    newer = await read(cache)
    assert evidence.told == [("changed", "1", "2")]
    used.release()
    used.release()
    idle.release()
    assert evidence.told == [("changed", "1", "2"), ("last", "1", "1")]
    # A version that nobody used has no last use; one that is fetched again is the same.
    store.version = 3
    clock.now += 11
    await read(cache)
    clock.now += 11
    await read(cache)
    newer.release()
    assert evidence.told[2:] == [("changed", "2", "3")]


async def test_a_version_that_comes_back_has_not_changed() -> None:
    store, clock, evidence = Fake(), Clock(), Evidence()
    cache = SecretCache(store, clock, evidence)
    await read(cache)
    store.failure = SecretDenied("secret/a", "403")
    clock.now += 11
    with pytest.raises(SecretDenied):
        await read(cache)
    store.failure = None
    clock.now += 3
    await read(cache)
    assert evidence.told == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.1, 0.6, 2.5, 9.0, 30.0])),
        st.tuples(st.just("read"), st.sampled_from([0.0, 10.0])),
        st.tuples(st.just("reject"), st.integers(0, 7)),
        st.tuples(st.just("suspect"), st.integers(0, 7)),
        st.tuples(st.just("cancel"), st.integers(0, 7)),
        st.tuples(st.just("land"), st.just(0)),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("fail"), st.sampled_from(["ok", "down", "denied", "missing"])),
    ),
    min_size=15,
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_rejections_against_a_model(steps: list[tuple[str, float]]) -> None:
    """Reads, rejections, rotations, failures and callers that go away, in any order: never two flights, nothing from
    before a refusal that was told, nothing too old, no hit that waits, and a rejection never brings back what was
    rejected."""

    async def settle() -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def play() -> None:
        store, clock = Fake(), Clock()
        cache = SecretCache(store, clock, jitter=lambda: 0.5)
        store.gate = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []
        handed: list[SealedSecret] = []
        told_s = 0.0

        def judge(found: SealedSecret, ttl_s: float) -> None:
            assert found.age_s < ttl_s + 60.0 or found.cache in {"miss", "bypass"}
            assert clock.now - found.age_s >= told_s
            handed.append(found)

        async def one(ttl_s: float) -> None:
            nonlocal told_s
            try:
                judge(await read(cache, ttl_s, 60.0), ttl_s)
            except (SecretDenied, SecretMissing):
                told_s = max(told_s, cache._entries[REF].failed_s)
            except SecretUnavailable:
                pass

        async def reject(used: SealedSecret) -> None:
            found = await cache.read_other(REF, used, ttl_s=10.0)
            if found is not None:
                assert found.version != used.version
                judge(found, 10.0)

        for step, value in steps:
            entry = cache._entries.get(REF)
            match step:
                case "wait":
                    clock.now += float(value)
                case "write":
                    store.version += 1
                case "fail":
                    store.failure = FAILURES[str(value)]()
                case "cancel" if tasks:
                    tasks[int(value) % len(tasks)].cancel()
                case "land":
                    store.gate.set()
                    await settle()
                    store.gate = asyncio.Event()
                case "suspect" if handed:
                    before = entry.version if entry is not None else None
                    cache.suspect(REF, handed[int(value) % len(handed)])
                    assert entry is None or entry.version is before
                case "reject" if handed:
                    tasks.append(asyncio.create_task(reject(handed[int(value) % len(handed)])))
                case "read" if entry is not None and entry.version is not None and clock.now - entry.fetched_s < value:
                    assert ends_at_once(one(float(value)))
                case "read":
                    tasks.append(asyncio.create_task(one(float(value))))
            await settle()
        store.gate.set()
        store.gate = None
        store.failure = None
        for result in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        assert store.most <= 1

    asyncio.run(play())


def ends_at_once(work: Coroutine[Any, Any, None]) -> bool:
    """Whether it waits for nothing."""
    try:
        work.send(None)
    except StopIteration:
        return True
    work.close()
    return False


def test_a_value_is_overwritten_when_the_last_reference_goes() -> None:
    secret = Secret("cnry-wiped")
    held = secret._Secret__value  # type: ignore[attr-defined]  # the buffer itself is what is looked at
    assert held == b"cnry-wiped"
    del secret
    assert held == bytes(len("cnry-wiped"))


async def test_a_dropped_version_is_overwritten(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    used = await read(cache)
    entry = cache._entries[REF]
    assert entry.version is not None
    held = entry.version.fields["key"]._Secret__value  # type: ignore[attr-defined]  # as above
    store.version = 2
    clock.now += 11
    await read(cache)
    assert held == b"v1"  # a request may still have to put it
    del used
    assert held == b"\0\0"
