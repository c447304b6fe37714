"""The cache: what it may serve and when, driven by a virtual clock, and against a model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vault.cache import NEGATIVE_TTL_S, SecretCache
from vault.observer import ReadResult, Silent
from vault.secret import Secret
from vault.store import (
    Described,
    SealedSecret,
    SecretDenied,
    SecretMalformed,
    SecretMissing,
    SecretRef,
    SecretUnavailable,
    SecretVersion,
    StoreError,
)

REF = SecretRef("secret/a")


class Fake:
    """A store with a script and a gate."""

    name: Literal["vault", "sealed"] = "sealed"

    def __init__(self) -> None:
        self.version = 1
        self.failure: StoreError | Exception | None = None
        self.gate: asyncio.Event | None = None
        self.fetches: Counter[SecretRef] = Counter()
        self.flying: Counter[SecretRef] = Counter()
        self.most = 0

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        self.fetches[ref] += 1
        self.flying[ref] += 1
        self.most = max(self.most, self.flying[ref])
        version, failure = self.version, self.failure
        try:
            if self.gate is not None:
                await self.gate.wait()
            if failure is not None:
                raise failure
            return SecretVersion({"key": Secret(f"v{version}")}, str(version))
        finally:
            self.flying[ref] -= 1

    async def probe(self) -> None: ...

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        return frozenset({"key"})

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool:
        return False

    async def describe(self, ref: SecretRef) -> Described:
        return Described(frozenset({"key"}), "1")

    async def close(self) -> None: ...


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def parts() -> tuple[Fake, Clock, SecretCache]:
    store, clock = Fake(), Clock()
    return store, clock, SecretCache(store, clock, jitter=lambda: 1.0)


async def read(cache: SecretCache, ttl: float = 10.0, stale: float = 60.0, *, bypass: bool = False) -> SealedSecret:
    return await cache.read(REF, ttl_s=ttl, max_stale_s=stale, bypass=bypass)


async def test_a_hit_inside_ttl_and_a_miss_after(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    assert (await read(cache)).cache == "miss"
    clock.now += 7.9
    assert (await read(cache)).cache == "hit"
    clock.now += 2.2
    store.version = 2
    found = await read(cache)
    assert (found.cache, found.version) == ("miss", "2")
    assert store.fetches[REF] == 2


async def test_refresh_ahead_in_the_background(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache)
    store.version = 2
    clock.now += 8.5
    assert (await read(cache)).version == "1"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    found = await read(cache)
    assert (found.cache, found.version) == ("hit", "2")
    assert store.fetches[REF] == 2


async def test_a_hundred_cold_waiters_cost_one_fetch(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, _, cache = parts
    store.gate = asyncio.Event()
    waiters = [asyncio.create_task(read(cache)) for _ in range(100)]
    await asyncio.sleep(0.01)
    waiters[0].cancel()
    store.gate.set()
    found = await asyncio.gather(*waiters[1:])
    assert {one.version for one in found} == {"1"}
    assert waiters[0].cancelled()
    assert store.fetches[REF] == 1


async def test_ttl_zero_reads_what_was_written_before_it_began(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    store.gate = asyncio.Event()
    first = asyncio.create_task(read(cache, ttl=0))
    await asyncio.sleep(0.01)
    store.version = 2
    clock.now += 0.5
    second = asyncio.create_task(read(cache, ttl=0))
    await asyncio.sleep(0.01)
    store.gate.set()
    assert (await first).version == "1"
    assert (await second).version == "2"


async def test_bypass_goes_past_memory(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache)
    store.version = 2
    clock.now += 0.1
    found = await read(cache, bypass=True)
    assert (found.cache, found.version) == ("bypass", "2")
    assert (await read(cache)).version == "2"


async def test_stale_only_during_an_outage_and_only_so_long(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache)
    store.failure = SecretUnavailable("secret/a", "sealed", retry_after_s=3)
    clock.now += 15
    found = await read(cache)
    assert (found.cache, found.version, found.age_s) == ("stale", "1", 15)
    clock.now += 54.9
    assert (await read(cache)).cache == "stale"
    clock.now += 0.2
    with pytest.raises(SecretUnavailable) as error:
        await read(cache)
    assert error.value.retry_after_s >= 3
    store.failure = None
    clock.now += 10
    assert (await read(cache)).cache == "miss"


@pytest.mark.parametrize(
    "failure", [SecretDenied("secret/a", "403"), SecretMissing("secret/a", "404"), SecretMalformed("secret/a", "x")]
)
async def test_revocation_beats_caching(parts: tuple[Fake, Clock, SecretCache], failure: StoreError) -> None:
    store, clock, cache = parts
    await read(cache)
    store.failure = failure
    clock.now += 11
    for _ in range(3):
        with pytest.raises(type(failure)):
            await read(cache)
    assert store.fetches[REF] == 2
    # An outage right after must not bring the dropped value back.
    store.failure = SecretUnavailable("secret/a", "down")
    clock.now += NEGATIVE_TTL_S + 0.1
    with pytest.raises(SecretUnavailable):
        await read(cache)
    store.failure = None
    clock.now += 10
    assert (await read(cache)).cache == "miss"


async def test_an_outage_does_not_cost_every_request_a_fetch(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    store.failure = SecretUnavailable("secret/a", "down")
    for _ in range(1000):
        clock.now += 0.01
        with pytest.raises(SecretUnavailable):
            await read(cache)
    assert store.fetches[REF] < 10


async def test_a_store_that_breaks_its_contract_is_an_outage(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, _, cache = parts
    store.failure = ValueError("cnry-in-an-exception")
    with pytest.raises(SecretUnavailable) as error:
        await read(cache)
    assert "cnry" not in str(error.value)


async def test_memory_is_bounded() -> None:
    store, clock = Fake(), Clock()
    cache = SecretCache(store, clock, capacity=3)
    for name in "abcde":
        await cache.read(SecretRef(f"secret/{name}"), ttl_s=100, max_stale_s=0)
    await cache.read(SecretRef("secret/e"), ttl_s=100, max_stale_s=0)
    await cache.read(SecretRef("secret/a"), ttl_s=100, max_stale_s=0)
    assert (store.fetches[SecretRef("secret/e")], store.fetches[SecretRef("secret/a")]) == (1, 2)


async def test_an_outage_inside_ttl_is_not_noticed_by_requests(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache, stale=0)
    store.failure = SecretUnavailable("secret/a", "down")
    clock.now += 8.5
    assert (await read(cache, stale=0)).cache == "hit"
    await asyncio.sleep(0.01)
    assert store.fetches[REF] == 2
    # The refresh failed. The value is young: nobody waits, nobody is told, and the store is asked again in its time.
    store.gate = asyncio.Event()
    assert (await read(cache, stale=0)).cache == "hit"
    clock.now += 1.0
    assert (await asyncio.wait_for(read(cache, stale=0), 1)).cache == "hit"
    await asyncio.sleep(0.01)
    assert store.fetches[REF] == 3
    clock.now += 0.6
    store.gate.set()
    with pytest.raises(SecretUnavailable):
        await read(cache, stale=0)


async def test_a_confirmed_outage_is_probed_behind_a_stale_answer(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache)
    store.failure = SecretUnavailable("secret/a", "down")
    clock.now += 15
    assert (await read(cache)).cache == "stale"
    # From now on the store swallows what it is asked.
    store.gate = asyncio.Event()
    clock.now += 0.6
    for _ in range(3):
        assert (await asyncio.wait_for(read(cache), 1)).cache == "stale"
    await asyncio.sleep(0.01)
    assert store.fetches[REF] == 3
    # It comes back: the probe brings the value, and the next read has it.
    store.failure, store.version = None, 2
    store.gate.set()
    await asyncio.sleep(0.01)
    clock.now += 6
    store.gate = None
    await read(cache)
    await asyncio.sleep(0.01)
    found = await read(cache)
    assert (found.cache, found.version) == ("hit", "2")


async def test_old_news_of_an_outage_is_no_news(parts: tuple[Fake, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache)
    store.failure = SecretUnavailable("secret/a", "down")
    clock.now += 15
    await read(cache)
    store.failure = SecretDenied("secret/a", "403")
    clock.now += 30
    with pytest.raises(SecretDenied):
        await read(cache)


@pytest.mark.parametrize(("asked", "silent"), [(7.0, 6.9), (86400.0, 29.9)])
async def test_retry_after_is_kept_within_a_bound(
    parts: tuple[Fake, Clock, SecretCache], asked: float, silent: float
) -> None:
    store, clock, cache = parts
    store.failure = SecretUnavailable("secret/a", "rate limited", retry_after_s=asked)
    for pause in (0, silent):
        clock.now += pause
        with pytest.raises(SecretUnavailable) as error:
            await read(cache)
        assert error.value.retry_after_s == asked
    assert store.fetches[REF] == 1
    clock.now += 0.2
    store.failure = None
    assert (await read(cache)).cache == "miss"


async def test_a_hot_entry_outlives_an_idle_one() -> None:
    store, clock = Fake(), Clock()
    cache = SecretCache(store, clock, capacity=3)
    hot = SecretRef("secret/hot")
    await cache.read(hot, ttl_s=100, max_stale_s=0)
    for name in "abcdef":
        await cache.read(SecretRef(f"secret/{name}"), ttl_s=100, max_stale_s=0)
        await cache.read(hot, ttl_s=100, max_stale_s=0)
    assert store.fetches[hot] == 1


async def test_eviction_does_not_start_a_second_flight() -> None:
    store, clock = Fake(), Clock()
    store.gate = asyncio.Event()
    cache = SecretCache(store, clock, capacity=2)
    names = [SecretRef(f"secret/{name}") for name in "abcdef"]
    readers = [asyncio.create_task(cache.read(ref, ttl_s=100, max_stale_s=0)) for ref in (*names, *names)]
    await asyncio.sleep(0.01)
    store.gate.set()
    await asyncio.gather(*readers)
    assert store.most == 1
    await cache.read(SecretRef("secret/g"), ttl_s=100, max_stale_s=0)
    await cache.read(SecretRef("secret/f"), ttl_s=100, max_stale_s=0)
    assert len(cache._entries) == 2


async def test_a_flight_that_is_cancelled_counts_as_no_success(parts: tuple[Fake, Clock, SecretCache]) -> None:
    class Counting(Silent):
        def __init__(self) -> None:
            self.results: list[str] = []

        def secret_read(self, store: str, result: ReadResult) -> None:
            self.results.append(result)

    store, clock, _ = parts
    counting = Counting()
    cache = SecretCache(store, clock, counting)
    await read(cache)
    store.gate = asyncio.Event()
    reader = asyncio.create_task(read(cache, bypass=True))
    await asyncio.sleep(0.01)
    flight = cache._entries[REF].flight
    assert flight is not None
    flight.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert counting.results == ["ok", "unavailable"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 3.0, 9.0, 30.0, 70.0])),
        st.tuples(st.just("read"), st.sampled_from([1, 5])),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("fail"), st.sampled_from(["ok", "down", "denied", "missing"])),
    ),
    min_size=15,
    max_size=60,
)
FAILURES: dict[str, Callable[[], StoreError | None]] = {
    "ok": lambda: None,
    "down": lambda: SecretUnavailable("secret/a", "down"),
    "denied": lambda: SecretDenied("secret/a", "403"),
    "missing": lambda: SecretMissing("secret/a", "404"),
}


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_against_a_model(steps: list[tuple[str, float]]) -> None:
    """Never after 403 or 404, never older than ttl + max_stale, never two flights."""

    async def play() -> None:
        store, clock = Fake(), Clock()
        cache = SecretCache(store, clock, jitter=lambda: 0.5)
        revoked_s: float | None = None
        for step, value in steps:
            match step:
                case "wait":
                    clock.now += float(value)
                case "write":
                    store.version += 1
                case "fail":
                    store.failure = FAILURES[str(value)]()
                case _:
                    results = await asyncio.gather(*(read(cache) for _ in range(int(value))), return_exceptions=True)
                    await asyncio.sleep(0)
                    for result in results:
                        if isinstance(result, SealedSecret):
                            assert result.age_s <= 70.0
                            assert (result.cache == "stale") == (result.age_s >= 10.0)
                            if result.cache == "miss":
                                assert result.version == str(store.version)
                            if revoked_s is not None and store.failure is not None:
                                # Told once that it is gone: nothing fetched before that may be served.
                                assert clock.now - result.age_s > revoked_s
                        elif isinstance(result, SecretDenied | SecretMissing):
                            revoked_s = clock.now
                        else:
                            assert isinstance(result, SecretUnavailable)
                    if store.failure is None and all(isinstance(result, SealedSecret) for result in results):
                        revoked_s = None
        assert store.most <= 1

    asyncio.run(play())


FLIGHTS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.1, 0.6, 2.5, 9.0, 30.0])),
        st.tuples(st.just("read"), st.sampled_from([0.0, 10.0])),
        st.tuples(st.just("bypass"), st.just(10.0)),
        st.tuples(st.just("cancel"), st.integers(0, 7)),
        st.tuples(st.just("land"), st.just(0)),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("fail"), st.sampled_from(["ok", "down", "denied", "missing"])),
    ),
    min_size=15,
    max_size=50,
)


@settings(max_examples=150, deadline=None)
@given(FLIGHTS)
def test_flights_that_take_time_against_a_model(steps: list[tuple[str, float]]) -> None:
    """Reads overlap slow fetches, writes, failures and callers that go away. Whatever the order: one flight, a bound on
    age, nothing from before a refusal that was told, and `ttl` 0 sees what was written before it."""

    async def settle() -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def play() -> None:
        store, clock = Fake(), Clock()
        cache = SecretCache(store, clock, jitter=lambda: 0.5)
        store.gate = asyncio.Event()
        reads: list[asyncio.Task[None]] = []
        told_s = 0.0

        async def one(ttl_s: float, *, bypass: bool) -> None:
            nonlocal told_s
            least, stale_s = store.version, 60.0
            try:
                found = await read(cache, ttl_s, stale_s, bypass=bypass)
            except (SecretDenied, SecretMissing):
                told_s = max(told_s, cache._entries[REF].failed_s)
            except SecretUnavailable:
                pass
            else:
                assert found.age_s < ttl_s + stale_s or found.cache in {"miss", "bypass"}
                assert clock.now - found.age_s >= told_s
                if found.cache in {"miss", "bypass"} and (bypass or ttl_s == 0):
                    assert int(found.version) >= least

        for step, value in steps:
            match step:
                case "wait":
                    clock.now += float(value)
                case "write":
                    store.version += 1
                case "fail":
                    store.failure = FAILURES[str(value)]()
                case "cancel":
                    if reads:
                        reads[int(value) % len(reads)].cancel()
                case "land":
                    store.gate.set()
                    await settle()
                    store.gate = asyncio.Event()
                case _:
                    reads.append(asyncio.create_task(one(float(value), bypass=step == "bypass")))
            await settle()
        # Whatever was swallowed comes back in the end, and nobody is left waiting.
        store.gate.set()
        store.gate = None
        store.failure = None
        for result in await asyncio.wait_for(asyncio.gather(*reads, return_exceptions=True), 5):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        assert store.most <= 1

    asyncio.run(play())
