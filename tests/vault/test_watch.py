"""`watch`: inside a long `ttl` the store is asked for the version alone, by one look for all, and whatever is not plainly the
same becomes a read. Against a model store by a virtual clock, and against a real OpenBao, whose own audit counts."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.openbao import OpenBao, openbao_server
from tests.vault.test_cache import FAILURES, REF, Clock, Fake
from vault.cache import SecretCache
from vault.hashicorp.config import TokenFileAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.store import (
    SealedSecret,
    SecretDenied,
    SecretMissing,
    SecretRef,
    SecretUnavailable,
    SecretVersion,
    StoreError,
)


class Watched(Fake):
    """Tells versions without values too."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool:
        self.looks += 1
        self.flying[ref] += 1
        self.most = max(self.most, self.flying[ref])
        version, failure = self.version, self.failure
        try:
            if self.gate is not None:
                await self.gate.wait()
            if isinstance(failure, SecretUnavailable):
                raise failure
            return failure is None and str(version) == known.version
        finally:
            self.flying[ref] -= 1


@pytest.fixture
def parts() -> tuple[Watched, Clock, SecretCache]:
    store, clock = Watched(), Clock()
    return store, clock, SecretCache(store, clock, jitter=lambda: 1.0)


async def read(cache: SecretCache, *, watch: float = 10.0, ttl: float = 1000.0, stale: float = 0.0) -> SealedSecret:
    return await cache.read(REF, ttl_s=ttl, max_stale_s=stale, watch_s=watch)


async def test_a_look_for_all_and_no_read(parts: tuple[Watched, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    assert {one.cache for one in await asyncio.gather(*(read(cache) for _ in range(100)))} == {"miss"}
    clock.now += 7.9
    await read(cache)
    assert (store.fetches[REF], store.looks) == (1, 0)
    # Ahead of time behind an answer; past it everybody waits for the one look.
    clock.now += 0.5
    assert (await read(cache)).cache == "hit"
    await asyncio.sleep(0.01)
    assert store.looks == 1
    clock.now += 11
    found = await asyncio.gather(*(read(cache) for _ in range(100)))
    assert {(one.cache, one.version) for one in found} == {("hit", "1")}
    assert (store.fetches[REF], store.looks, store.most) == (1, 2, 1)


async def test_what_has_changed_is_read_in_the_same_flight(parts: tuple[Watched, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache)
    store.version = 2
    clock.now += 10
    assert [(one.cache, one.version) for one in await asyncio.gather(read(cache), read(cache))] == [("miss", "2")] * 2
    assert (store.fetches[REF], store.looks) == (2, 1)
    # Revocation beats caching, within `watch`.
    store.failure = SecretMissing("secret/a", "deleted")
    clock.now += 10
    with pytest.raises(SecretMissing):
        await read(cache)


async def test_an_outage_changes_nothing_inside_ttl(parts: tuple[Watched, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache)
    store.failure = SecretUnavailable("secret/a", "down")
    for _ in range(9):
        clock.now += 100
        assert (await asyncio.wait_for(read(cache), 1)).version == "1"
        await asyncio.sleep(0.01)
    clock.now += 101
    with pytest.raises(SecretUnavailable):
        await read(cache)


async def test_a_look_is_not_enough_for_who_wants_a_read(parts: tuple[Watched, Clock, SecretCache]) -> None:
    store, clock, cache = parts
    await read(cache)
    clock.now += 10
    store.gate = asyncio.Event()
    watching = asyncio.create_task(read(cache))
    await asyncio.sleep(0.01)
    # Another route with a shorter ttl, a forced read, and one after a 401: each gets a fetch.
    short = asyncio.create_task(cache.read(REF, ttl_s=5, max_stale_s=0))
    forced = asyncio.create_task(cache.read(REF, ttl_s=1000, max_stale_s=0, bypass=True))
    await asyncio.sleep(0.01)
    store.gate.set()
    assert [(await one).cache for one in (watching, short, forced)] == ["hit", "miss", "bypass"]
    assert (store.looks, store.most) == (1, 1)
    assert store.fetches[REF] >= 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.1, 2.5, 9.0, 30.0, 120.0])),
        st.tuples(st.just("read"), st.sampled_from([10.0, 100.0])),
        st.tuples(st.just("cancel"), st.integers(0, 7)),
        st.tuples(st.just("land"), st.just(0)),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("fail"), st.sampled_from(["ok", "ok", "down", "denied", "missing"])),
    ),
    min_size=15,
    max_size=60,
)
WATCH_S = 10.0


class Asked(Watched):
    """Remembers each question: when it was asked, when it was answered, and with what."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.asks: list[list[float | str]] = []

    async def _ask[T](self, asking: Awaitable[T]) -> T:
        ask: list[float | str] = [self.clock.now, math.inf, str(self.version)]
        if isinstance(self.failure, SecretUnavailable):
            ask[2] = "down"
        self.asks.append(ask)
        try:
            return await asking
        finally:
            ask[1] = self.clock.now

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        return await self._ask(super().fetch(ref))

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool:
        return await self._ask(super().unchanged(ref, known))

    def told(self, since_s: float, began_s: float) -> set[float | str]:
        """What was answered to questions from then on, or to one that was open when a read began."""
        return {ask[2] for ask in self.asks if float(ask[0]) >= since_s or float(ask[1]) >= began_s}


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_watching_against_a_model(steps: list[tuple[str, float]]) -> None:
    """Looks, reads, writes, failures and callers that go away, in any order: never two flights, nothing from before a
    refusal that was told, nothing older than `ttl` and `max_stale`, and no version that the store has not said to be the one
    within `watch`, unless it was away."""

    async def settle() -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def play() -> None:
        clock = Clock()
        store = Asked(clock)
        cache = SecretCache(store, clock, jitter=lambda: 0.5)
        store.gate = asyncio.Event()
        reads: list[asyncio.Task[None]] = []
        told_s = 0.0

        async def one(ttl_s: float) -> None:
            nonlocal told_s
            began_s = clock.now
            try:
                found = await read(cache, watch=WATCH_S, ttl=ttl_s, stale=60.0)
            except (SecretDenied, SecretMissing):
                told_s = max(told_s, cache._entries[REF].failed_s)
            except SecretUnavailable:
                pass
            else:
                # As old as it was when it was asked for: a look has two seconds of the real clock, and here as long as it likes.
                assert found.age_s - (clock.now - began_s) < ttl_s + 60.0 or found.cache == "miss"
                assert clock.now - found.age_s >= told_s
                # It is no older than it says, however long the answer took: the store was asked for it since.
                asked = [float(ask[0]) for ask in store.asks if ask[2] == found.version]
                assert max(asked) > clock.now - found.age_s - 1e-6
                assert store.told(began_s - WATCH_S, began_s) & {found.version, "down"} or cache._entries[REF].failure

        for step, value in steps:
            match step:
                case "wait":
                    clock.now += value
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
                    reads.append(asyncio.create_task(one(value)))
            await settle()
        store.gate.set()
        store.gate = store.failure = None
        for result in await asyncio.wait_for(asyncio.gather(*reads, return_exceptions=True), 5):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        assert store.most <= 1

    asyncio.run(play())


# --- a real server ---


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao"), sealable=True) as server:
        yield server


def reads_of(audit: Path) -> Counter[str]:
    """Reads by endpoint, as the server itself has them."""
    found: Counter[str] = Counter()
    for line in audit.read_text().splitlines():
        entry = json.loads(line)
        if entry["type"] == "request" and entry["request"]["operation"] == "read":
            found[entry["request"]["path"].split("/")[1]] += 1
    return found


async def test_g27_against_a_real_server(bao: OpenBao, tmp_path: Path) -> None:
    audit = bao.keep_audit()
    bao.put("egress/watched", key="cnry-one")
    (tmp_path / "token").write_text(bao.token)
    store = VaultStore(VaultConfig((bao.address,), TokenFileAuth(tmp_path / "token")))
    clock = Clock()
    cache = SecretCache(store, clock)
    ref = SecretRef("secret/egress/watched", kv=2)

    async def ask() -> list[str]:
        clock.now += 10
        found = await asyncio.gather(
            *(cache.read(ref, ttl_s=1000, max_stale_s=0, watch_s=10) for _ in range(100)), return_exceptions=True
        )
        return sorted({one.reason if isinstance(one, StoreError) else one.version for one in found})  # type: ignore[union-attr]  # nothing else is raised

    def tell(**metadata: str) -> None:
        bao.api("POST", "secret/metadata/egress/watched", {"custom_metadata": metadata})

    def since(before: Counter[str]) -> dict[str, int]:
        now = reads_of(audit)
        return {name: now[name] - before[name] for name in ("data", "metadata") if now[name] != before[name]}

    try:
        before = reads_of(audit)
        assert await ask() == ["1"]
        assert since(before) == {"data": 1}  # a hundred cold callers
        before = reads_of(audit)
        assert [await ask() for _ in range(5)] == [["1"]] * 5
        assert since(before) == {"metadata": 5}  # one look for each `watch`, and the value has not left Vault again
        bao.put("egress/watched", key="cnry-two")
        assert await ask() == ["2"]
        tell(pending_version="3")
        before = reads_of(audit)
        assert await ask() == ["2"]
        bao.put("egress/watched", key="cnry-three")
        assert await ask() == ["2"]
        assert await ask() == ["2"]
        # Told anew what is pending: read. Written and pending: a look says that 2 is still the one.
        assert since(before) == {"metadata": 3, "data": 1}
        tell()
        assert await ask() == ["3"]
        bao.delete("egress/watched")
        assert await ask() == ["is deleted or destroyed"]
        bao.put("egress/watched", key="cnry-four")
        clock.now += 10
        assert await ask() == ["4"]
        # A login that may not look reads instead.
        bao.policy("values", 'path "secret/data/egress/watched" { capabilities = ["read"] }')
        (tmp_path / "token").write_text(bao.new_token("values"))
        before = reads_of(audit)
        assert [await ask() for _ in range(2)] == [["4"]] * 2
        assert since(before)["data"] == 2
    finally:
        await store.close()
