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
from vault.secret import Secret
from vault.store import (
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


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 3.0, 9.0, 30.0, 70.0])),
        st.tuples(st.just("read"), st.sampled_from([1, 5])),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("fail"), st.sampled_from(["ok", "down", "denied", "missing"])),
    ),
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
        written = {1: clock.now}
        revoked_s: float | None = None
        for step, value in steps:
            match step:
                case "wait":
                    clock.now += float(value)
                case "write":
                    store.version += 1
                    written[store.version] = clock.now
                case "fail":
                    store.failure = FAILURES[str(value)]()
                case _:
                    results = await asyncio.gather(*(read(cache) for _ in range(int(value))), return_exceptions=True)
                    await asyncio.sleep(0)
                    for result in results:
                        if isinstance(result, SealedSecret):
                            assert result.age_s <= 70.0
                            assert (
                                result.cache != "stale"
                                or isinstance(store.failure, SecretUnavailable)
                                or store.failure is None
                            )
                            if result.cache == "hit":
                                assert result.age_s < 10.0
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
