"""What is remembered stands while the store is down, reaches every process within a second, and outlives a server's memory."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from addons.clock import SystemClock
from addons.state.guarded import Guarded
from addons.state.memory import MemoryStore
from addons.state.remembered import Remembered
from addons.state.sqlite import SqliteStore
from addons.state.store import Listing, StateStore, StateUnavailable
from addons.state.valkey import ValkeyStore
from tests.addons.state.conftest import Heard, Turned, server_of
from tests.harness.ostiary_process import clean_environment
from tests.harness.valkey import Valkey, valkey_server


class Fragile(MemoryStore):
    down = False

    async def changes(self, since: str, prefix: str = "") -> Listing | None:
        if self.down:
            raise StateUnavailable("down")
        return await super().changes(since, prefix)


async def soon(what: Callable[[], bool], within_s: float = 5.0) -> float:
    """How long it took."""
    began_s = time.monotonic()
    while not what():
        assert time.monotonic() - began_s < within_s
        await asyncio.sleep(0.005)
    return time.monotonic() - began_s


async def test_l1_known_items_stand_while_the_store_is_down() -> None:
    clock, heard = Turned(), Heard()
    store = Fragile(clock)
    await store.put("kill:route:a", b"why")
    await store.put("kill:short", b"x", ttl_s=10)
    await store.put("ip:a", b"other")
    kills = Remembered(store, "kill:", clock, heard, poll_s=0.01)
    await kills.start()
    assert kills.known
    assert dict(kills.items()) == {"kill:route:a": b"why", "kill:short": b"x"}
    store.down = True
    clock.now_s += 5
    await soon(lambda: bool(heard.ages) and heard.ages[-1] == ("kill:", 5.0))
    with pytest.raises(StateUnavailable):
        await kills.refresh()
    assert kills.get("kill:route:a") == b"why"
    assert kills.get("kill:short") == b"x"
    clock.now_s += 6
    # Expiry goes on by our own clock.
    assert kills.get("kill:short") is None
    assert dict(kills.items()) == {"kill:route:a": b"why"}
    store.down = False
    await store.delete("kill:route:a")
    await soon(lambda: not kills.items())
    assert kills.age_s == 0
    await kills.stop()


async def test_l1_a_store_that_never_answered_is_told_from_one_that_holds_nothing() -> None:
    clock = Turned()
    store = Fragile(clock)
    store.down = True
    kills = Remembered(store, "kill:", clock, Heard(), poll_s=0.01)
    with pytest.raises(StateUnavailable):
        await kills.start()
    assert not kills.known
    clock.now_s += 3
    assert kills.age_s == 3
    store.down = False
    await soon(lambda: kills.known)
    assert not kills.items()
    await kills.stop()


@pytest.fixture(params=["sqlite", "valkey"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[StateStore, StateStore]]:
    if request.param == "sqlite":
        stores: list[StateStore] = [SqliteStore(tmp_path / "state.db", SystemClock.wall_s) for _ in range(2)]
    else:
        server = server_of(request.getfixturevalue("valkey"))
        stores = [ValkeyStore(server, deadline_s=5) for _ in range(2)]
    yield stores[0], stores[1]
    for one in stores:
        await one.close()


async def test_a_kill_reaches_everybody_within_a_second(pair: tuple[StateStore, StateStore]) -> None:
    here, there = pair
    kills = Remembered(there, "kill:", time.monotonic, Heard())
    await kills.start()
    for n in range(3):
        await here.put(f"kill:{n}", b"x")
        assert await soon(lambda n=n: kills.get(f"kill:{n}") is not None) < 1.0  # type: ignore[misc]  # a default binds n; its type is not inferred
        await here.delete(f"kill:{n}")
        assert await soon(lambda n=n: kills.get(f"kill:{n}") is None) < 1.0  # type: ignore[misc]  # a default binds n; its type is not inferred
    await kills.stop()


KILLER = """
import asyncio, json, sys, time
from pathlib import Path
from addons.state.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]), time.time)
    await store.put("kill:all", b"")
    print(json.dumps(time.time()), flush=True)
    await store.close()

asyncio.run(main())
"""


async def test_a_kill_of_another_process_is_known_within_a_second(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db", SystemClock.wall_s)
    kills = Remembered(store, "kill:", time.monotonic, Heard())
    await kills.start()
    other = subprocess.Popen(
        [sys.executable, "-c", KILLER, str(tmp_path / "state.db")],
        stdout=subprocess.PIPE,
        env=clean_environment(PYTHONPATH=str(Path(__file__).parents[3])),
    )
    await soon(lambda: kills.get("kill:all") is not None, 30)
    known_s = SystemClock.wall_s()
    assert other.stdout is not None
    assert known_s - json.loads(other.stdout.read()) < 1.0
    other.wait()
    await kills.stop()
    await store.close()


async def test_l1_a_server_that_lost_its_memory_is_given_the_kills_back(tmp_path: Path) -> None:
    with valkey_server(tmp_path / "v") as server:
        given = server_of(server)
        stores = [Guarded(ValkeyStore(given), Heard()) for _ in range(2)]
        await stores[0].put("kill:lasting", b"why")
        await stores[0].put("kill:timed", b"x", ttl_s=600)
        both = [Remembered(one, "kill:", time.monotonic, Heard(), poll_s=0.05) for one in stores]
        for one in both:
            await one.start()
        server.kill()
        await asyncio.sleep(0.3)
        assert all(one.get("kill:lasting") == b"why" for one in both)
        server.start()  # without a disk: it knows nothing
        fresh = ValkeyStore(given, deadline_s=5)
        for _ in range(200):
            if len((await fresh.items("kill:")).items) == 2:
                break
            await asyncio.sleep(0.05)
        found = {item.key: item for item in (await fresh.items("kill:")).items}
        assert found["kill:lasting"].value == b"why"
        assert found["kill:lasting"].ttl_left_s is None
        left_s = found["kill:timed"].ttl_left_s
        assert left_s is not None
        assert 500 < left_s <= 600
        assert all(one.get("kill:lasting") == b"why" for one in both)
        # A lift is a lift again.
        await fresh.delete("kill:lasting")
        await soon(lambda: all(one.get("kill:lasting") is None for one in both))
        for one in both:
            await one.stop()
        for store in stores:
            await store.close()
        await fresh.close()


async def test_l1_what_was_lifted_meanwhile_is_not_given_back_by_who_comes_later() -> None:
    clock = Turned()
    lost, fresh = MemoryStore(clock), MemoryStore(clock)
    await lost.put("kill:a", b"x")
    await lost.put("kill:b", b"y")
    early, late = (Remembered(lost, "kill:", clock, Heard()) for _ in range(2))
    await early.refresh()
    await late.refresh()
    early._store = late._store = fresh
    await early.refresh()
    assert set(early.items()) == {"kill:a", "kill:b"}
    await fresh.delete("kill:a")
    await late.refresh()
    await early.refresh()
    assert set(late.items()) == set(early.items()) == {"kill:b"}


async def test_a_memory_of_one_process_forgets_nothing_it_was_not_told(valkey: Valkey) -> None:
    """Another first item below another prefix is no lost epoch."""
    store = ValkeyStore(server_of(valkey), deadline_s=5)
    kills = Remembered(store, "kill:", time.monotonic, Heard())
    await kills.refresh()
    await store.put("ip:a", b"x")
    await kills.refresh()
    assert not kills.items()
    await store.put("kill:a", b"x")
    await kills.refresh()
    assert dict(kills.items()) == {"kill:a": b"x"}
    await store.close()
