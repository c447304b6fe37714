"""State in one SQLite file: survives restarts, shared by the processes of one machine.

Rules:
- One thread owns the connection and does all the work; the event loop only queues and waits. The queue is bounded.
- What waits together is done in one transaction. Every waiter is told after the commit, so what was told survives a kill
  of the process; marks and kept items are synced to disk first and survive a loss of power too. Counters may lose the
  last instants then.
- A call whose waiter has gone is not begun.
- A file that was moved away is not written any more: the thread opens what now stands under the name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from addons.state import sqlite_facts as facts
from addons.state.bounds import (
    check_amount,
    check_bucket,
    check_expect,
    check_key,
    check_prefix,
    check_ttl,
    check_value,
)
from addons.state.sqlite_file import broken, connect, told
from addons.state.store import Added, Item, Listing, StateError, StateFull, StateUnavailable, StoreName, Taken

BATCH: Final = 64
QUEUE: Final = 1024
SWEEP_S: Final = 1.0
_CLOSE_WAIT_S: Final = 2.0

type Kind = Literal["read", "count", "keep"]
"""What a call costs: no lock; a lock; a lock and a sync."""


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[sqlite3.Connection, float], object]
    kind: Kind
    waiter: asyncio.Future[Any]
    withdrawn: bool = False


class SqliteStore:
    """State in a file. Made on the running loop; nothing is opened before the first call.

    Args:
        path: of the file.
        clock: wall clock in seconds, which all processes share and which goes on over restarts.
        busy_s: how long a transaction waits for another process: less than a call's deadline.
    """

    name: StoreName = "sqlite"

    def __init__(self, path: Path, clock: Callable[[], float], *, busy_s: float = 0.2) -> None:
        self._path = path
        self._clock = clock
        self._busy_s = busy_s
        self._connection: sqlite3.Connection | None = None
        self._opened_as = (0, 0)
        self._swept_s = 0.0
        self._jobs: deque[_Job] = deque()
        self._closing = False
        self._wake = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._thread.start()

    # --- the event loop's side ---

    async def start(self) -> None:
        """Opens the file and looks through all of it.

        Raises:
            StateUnavailable: it cannot be used.
        """
        await asyncio.to_thread(lambda: connect(self._path, busy_s=self._busy_s, thorough=True).close())

    async def once(self, key: str, ttl_s: float) -> bool:
        check_key(key)
        check_ttl(ttl_s)
        return cast("bool", await self._do("keep", lambda to, now_s: facts.once(to, now_s, key, ttl_s)))

    async def add(self, key: str, amount: int, ttl_s: float, limit: int | None = None) -> Added:
        check_key(key)
        check_ttl(ttl_s)
        check_amount(amount, limit)
        return cast("Added", await self._do("count", lambda to, now_s: facts.add(to, now_s, key, amount, ttl_s, limit)))

    async def take(self, key: str, cost: float, capacity: float, refill_per_s: float) -> Taken:
        check_key(key)
        check_bucket(cost, capacity, refill_per_s)
        return cast(
            "Taken", await self._do("count", lambda to, now_s: facts.draw(to, now_s, key, cost, capacity, refill_per_s))
        )

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        check_key(key)
        check_value(value)
        check_expect(expect)
        if ttl_s is not None:
            check_ttl(ttl_s)
        return cast("int", await self._do("keep", lambda to, now_s: facts.put(to, now_s, key, value, ttl_s, expect)))

    async def get(self, key: str) -> Item | None:
        check_key(key)
        return cast("Item | None", await self._do("read", lambda to, now_s: facts.get(to, now_s, key)))

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        check_key(key)
        check_expect(expect)
        return cast("bool", await self._do("keep", lambda to, now_s: facts.delete(to, now_s, key, expect)))

    async def items(self, prefix: str = "") -> Listing:
        check_prefix(prefix)
        return cast("Listing", await self._do("read", lambda to, now_s: facts.listing(to, now_s, prefix)))

    async def changes(self, since: str, prefix: str = "") -> Listing | None:
        check_prefix(prefix)
        return cast("Listing | None", await self._do("read", lambda to, now_s: facts.changes(to, now_s, since, prefix)))

    async def probe(self) -> None:
        # Under the lock, since a file that can be read but not written serves nobody.
        await self._do("count", lambda to, _: facts.revision(to))

    async def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, _CLOSE_WAIT_S)

    async def _do(self, kind: Kind, work: Callable[[sqlite3.Connection, float], object]) -> object:
        job = _Job(work, kind, self._loop.create_future())
        with self._wake:
            if self._closing:
                raise StateUnavailable(f"{self._path} is closed")
            if len(self._jobs) >= QUEUE:
                raise StateUnavailable(f"{QUEUE} calls wait for {self._path}")
            self._jobs.append(job)
            self._wake.notify()
        try:
            return await job.waiter
        finally:
            job.withdrawn = True

    @staticmethod
    def _settle(ended: list[tuple[_Job, object]]) -> None:
        for job, outcome in ended:
            if job.waiter.done():
                continue
            if isinstance(outcome, StateError):
                job.waiter.set_exception(outcome)
            else:
                job.waiter.set_result(outcome)

    # --- the thread's side ---

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closing:
                    self._wake.wait()
                if not self._jobs:
                    break
                batch = self._next_batch()
            live = [job for job in batch if not job.withdrawn]
            ended = self._serve(live) if live else []
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._settle, ended)
        self._forget_connection()

    def _next_batch(self) -> list[_Job]:
        """Jobs in the order of their arrival; reads are not mixed with writes, whose lock they would wait for."""
        reads = self._jobs[0].kind == "read"
        batch: list[_Job] = []
        while self._jobs and len(batch) < BATCH and (self._jobs[0].kind == "read") is reads:
            batch.append(self._jobs.popleft())
        return batch

    def _serve(self, batch: list[_Job]) -> list[tuple[_Job, object]]:
        try:
            return self._transaction(batch)
        except StateFull:
            try:
                self._sweep_all()
                return self._transaction(batch)
            except StateError as error:
                return [(job, _again(error)) for job in batch]
        except StateError as error:
            return [(job, _again(error)) for job in batch]
        except Exception as error:  # noqa: BLE001 - the thread must live: whoever waits is told
            self._forget_connection()
            unknown = StateUnavailable(f"{self._path}: {type(error).__name__}")
            return [(job, _again(unknown)) for job in batch]

    def _transaction(self, batch: list[_Job]) -> list[tuple[_Job, object]]:
        """All of the batch, committed, or a `StateError` and nothing of it."""
        connection = self._connected()
        now_s = self._clock()
        writes = batch[0].kind != "read"
        try:
            if writes:
                sync = "FULL" if any(job.kind == "keep" for job in batch) else "NORMAL"
                connection.execute(f"PRAGMA synchronous = {sync}")
            connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            ended: list[tuple[_Job, object]] = []
            for job in batch:
                try:
                    ended.append((job, job.work(connection, now_s)))
                except StateError as error:  # raised before it wrote anything
                    ended.append((job, error))
            if writes and abs(now_s - self._swept_s) >= SWEEP_S:
                facts.sweep(connection, now_s)
                self._swept_s = now_s
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if broken(error):
                self._forget_connection()
            raise told(error, self._path) from None
        return ended

    def _sweep_all(self) -> None:
        connection = self._connected()
        try:
            connection.execute("BEGIN IMMEDIATE")
            facts.sweep(connection, self._clock(), at_most=-1)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._forget_connection()
            raise told(error, self._path) from None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._stands_as() != self._opened_as:
            self._forget_connection()
        if self._connection is None:
            self._connection = connect(self._path, busy_s=self._busy_s)
            self._opened_as = self._stands_as()
        return self._connection

    def _stands_as(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - the two numbers are all that is wanted
        except OSError:
            return (0, 0)
        return found.st_dev, found.st_ino

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _again(error: StateError) -> StateError:
    """One exception for each waiter: a shared one would gather all their tracebacks."""
    return type(error)(error.reason) if isinstance(error, StateUnavailable | StateFull) else error
