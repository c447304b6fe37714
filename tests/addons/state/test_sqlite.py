"""The SQLite store: its file, its thread, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from addons.clock import SystemClock
from addons.state import sqlite as module
from addons.state import sqlite_file
from addons.state.guarded import Guarded
from addons.state.sqlite import SqliteStore
from addons.state.store import StateFull, StateStore, StateUnavailable
from tests.addons.state.conftest import Heard, Turned
from tests.harness.ostiary_process import clean_environment

ROOT = Path(__file__).parents[3]


async def test_facts_survive_a_restart(tmp_path: Path) -> None:
    clock = Turned()
    first = SqliteStore(tmp_path / "state.db", clock)
    await first.once("nonce:a", 60)
    await first.add("quota:a", 5, 60)
    await first.take("rate:a", 1, 1, 0.001)
    version = await first.put("kill:a", b"x")
    revision = (await first.items()).revision
    await first.close()
    second = SqliteStore(tmp_path / "state.db", clock)
    await second.start()
    assert not await second.once("nonce:a", 60)
    assert (await second.add("quota:a", 0, 60)).value == 5
    assert not (await second.take("rate:a", 1, 1, 0.001)).allowed
    assert await second.changes(revision) is None
    assert await second.put("kill:b", b"") > version
    await second.close()


async def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "state.db", Turned())
        await store.put("kill:a", b"x")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        await store.close()
    finally:
        os.umask(old)
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}


async def refused(path: Path) -> str:
    store = SqliteStore(path, Turned())
    with pytest.raises(StateUnavailable) as met:
        await store.start()
    with pytest.raises(StateUnavailable):
        await store.once("nonce:a", 60)
    await store.close()
    return met.value.reason


async def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch(0o640)
    assert f"chmod 600 {path}" in await refused(path)


async def test_what_is_no_state_file_is_refused(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.touch(0o600)
    garbage.write_bytes(b"no database " * 1000)
    assert "move it away" in await refused(garbage)
    assert garbage.read_bytes() == b"no database " * 1000
    other = tmp_path / "other.db"
    other.touch(0o600)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    assert "another program's" in await refused(other)
    newer = tmp_path / "newer.db"
    sqlite_file.connect(newer, busy_s=1).executescript("PRAGMA user_version = 2;")
    assert "newer Ostiary" in await refused(newer)
    assert "cannot be opened" in await refused(tmp_path / "missing" / "state.db")


async def test_damage_is_found_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path, Turned())
    for n in range(300):
        await store.put(f"kill:{n}", os.urandom(1000))
    await store.close()
    content = bytearray(path.read_bytes())
    assert len(content) > 100_000
    content[40_000:80_000] = os.urandom(40_000)
    path.write_bytes(content)
    reason = await refused_at_start(path)
    assert "damaged" in reason
    assert "move it away" in reason


async def refused_at_start(path: Path) -> str:
    store = SqliteStore(path, Turned())
    with pytest.raises(StateUnavailable) as met:
        await store.start()
    await store.close()
    return met.value.reason


async def test_a_file_that_was_moved_away_is_not_written_any_more(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path, Turned())
    await store.put("kill:a", b"x")
    before = (await store.items()).epoch
    for part in ("state.db", "state.db-wal", "state.db-shm"):
        (tmp_path / part).rename(tmp_path / f"old-{part}")
    await store.put("kill:b", b"y")
    listing = await store.items()
    assert [item.key for item in listing.items] == ["kill:b"]
    assert listing.epoch != before
    await store.close()


async def test_a_full_file_refuses_and_what_has_expired_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "MAX_FILE_BYTES", 40 * sqlite_file.PAGE_BYTES)
    clock = Turned()
    store = SqliteStore(tmp_path / "state.db", clock)
    told = 0
    with pytest.raises(StateFull):
        while told < 10_000:
            assert await store.once(f"nonce:{told}:{'x' * 400}", 60)
            told += 1
    # Whoever asks is refused, and nothing that counts is forgotten.
    assert told > 100
    assert not any([await store.once(f"nonce:{n}:{'x' * 400}", 60) for n in range(told)])
    clock.now_s += 61
    assert await store.once(f"nonce:more:{'x' * 400}", 60)
    await store.close()


async def test_what_has_expired_leaves_the_file(tmp_path: Path) -> None:
    clock = Turned()
    store = SqliteStore(tmp_path / "state.db", clock)
    for n in range(50):
        await store.once(f"nonce:{n}", 10)
        await store.put(f"kill:{n}", b"x", ttl_s=10)
    clock.now_s += 20
    await store.add("quota:a", 1, 60)
    await store.close()
    connection = sqlite3.connect(tmp_path / "state.db")
    assert connection.execute("SELECT (SELECT count(*) FROM marks), (SELECT count(*) FROM kept)").fetchone() == (0, 0)
    connection.close()


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


async def test_l1_a_process_that_hangs_with_the_lock_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Guarded(SqliteStore(path, SystemClock.wall_s, busy_s=0.2), Heard())
    await store.put("kill:a", b"x")
    revision = (await store.items()).revision
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        began_s = time.monotonic()
        with pytest.raises(StateUnavailable):
            await store.once("nonce:a", 60)
        assert time.monotonic() - began_s < 1.0
        assert ticks >= 5, "the loop was blocked"
        ticking.cancel()
        # Readers do not wait for it: known kills are read on.
        assert await store.changes(revision) is None
    finally:
        holder.kill()
        holder.wait()
    await asyncio.sleep(0.3)
    assert await eventually(store, "nonce:b")
    await store.close()


async def eventually(store: StateStore, key: str) -> bool:
    for _ in range(100):
        try:
            return await store.once(key, 60)
        except StateUnavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("it does not come back")


WRITER = """
import asyncio, sys, time
from pathlib import Path
from addons.state.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]), time.time, busy_s=5)
    n = 0
    while True:
        await asyncio.gather(*(store.once(f"nonce:{n + k}", 600) for k in range(5)), store.add("quota:a", 5, 600), store.put("kill:last", b"%d" % n))
        n += 5
        print(n, flush=True)

asyncio.run(main())
"""


async def test_what_was_told_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    for turn in range(3):
        one = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            env=clean_environment(PYTHONPATH=str(ROOT)),
            cwd=tmp_path,
        )
        assert one.stdout is not None
        told = 0
        for _ in range(20 + 7 * turn):
            told = int(one.stdout.readline())
        one.kill()
        told = int(([*one.stdout.read().split()] or [b"%d" % told])[-1])
        one.wait()
        store = SqliteStore(path, SystemClock.wall_s)
        await store.start()
        assert not any([await store.once(f"nonce:{n}", 600) for n in range(told)])
        assert (await store.add("quota:a", 0, 600)).value >= told
        last = await store.get("kill:last")
        assert last is not None
        assert int(last.value) >= told - 5
        await store.close()
        path.unlink()


async def test_a_queue_that_is_full_refuses_and_a_waiter_that_left_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE", 10)
    path = tmp_path / "state.db"
    store = SqliteStore(path, SystemClock.wall_s, busy_s=0.5)
    await store.probe()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    first = asyncio.create_task(store.once("nonce:first", 60))
    await asyncio.sleep(0.1)
    left = asyncio.create_task(store.once("nonce:left", 60))
    waiting = [asyncio.create_task(store.add("quota:a", 1, 60)) for _ in range(9)]
    await asyncio.sleep(0)
    with pytest.raises(StateUnavailable, match="10 calls wait"):
        await store.once("nonce:more", 60)
    left.cancel()
    await asyncio.sleep(0)
    with pytest.raises(StateUnavailable, match="another process"):
        await first
    holder.execute("ROLLBACK")
    holder.close()
    await asyncio.gather(*waiting)
    assert await store.once("nonce:left", 60), "the call of a waiter that had left took effect"
    await store.close()
    with pytest.raises(StateUnavailable, match="closed"):
        await store.probe()


async def test_a_clock_that_is_set_back_locks_no_bucket(tmp_path: Path) -> None:
    clock = Turned()
    store = SqliteStore(tmp_path / "state.db", clock)
    assert (await store.take("rate:a", 2, 2, 1)).allowed
    clock.now_s -= 3600
    assert not (await store.take("rate:a", 1, 2, 1)).allowed
    clock.now_s += 1
    assert (await store.take("rate:a", 1, 2, 1)).allowed
    await store.close()


def test_many_processes_may_open_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    given = {"kind": "sqlite", "path": str(tmp_path / "state.db"), "calls": 1, "limit": 3}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.addons.state.conformance.racer", json.dumps(given)],
            stdout=subprocess.PIPE,
            env=clean_environment(PYTHONPATH=str(ROOT)),
        )
        for _ in range(6)
    ]
    ended = [json.loads(one.communicate(timeout=60)[0]) for one in started]
    assert sum(one["added"] for one in ended) == 1
