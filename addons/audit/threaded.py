"""A sink with a writer thread of its own: pipes, devices, standard output, and every file in `fsync` mode.

The thread takes all that waits, writes it in one go, syncs once, and wakes the waiters (group commit). The queue is
bounded, and so is every wait for it. A line that its waiter no longer wants is not written if the thread has not taken
it yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from addons.audit.files import Appender, free_bytes, inspect, sync_folder
from addons.audit.sinks import MAX_BACKLOG, Loss, Report

LOOK_S: Final = 1.0
"""How often the thread looks after rotation and free space."""


@dataclass(slots=True, eq=False)
class Entry:
    """A line on its way. `taken` and `withdrawn` are read and written under the sink's lock."""

    line: bytes
    waiter: asyncio.Future[OSError | None] | None = None
    keep: bool = False
    taken: bool = False
    withdrawn: bool = False
    arrived: bool = False
    """Whether it stands in the file, durable or not; final once the batch is settled."""


class ThreadedSink:
    """A sink written by a thread.

    Args:
        name: for messages.
        descriptor: to write to; owned from now on.
        path: of the file, where rotation is to be followed; None for standard output.
        sync: whether each batch is followed by `fdatasync`.
        capacity: lines that may wait.
        report: told, on the loop, how each batch ended.
        lost: counts lines that the sink did not get; on the loop.
    """

    def __init__(
        self,
        name: str,
        descriptor: int,
        path: Path | None,
        *,
        sync: bool,
        capacity: int,
        report: Report,
        lost: Callable[[str, Loss], None],
    ) -> None:
        self.name = name
        self._report = report
        self._lost = lost
        self._path = path
        self._sync = sync
        self._capacity = capacity
        self._appender = Appender(descriptor)
        self._free_bytes = free_bytes(descriptor)
        self._looked_s = time.monotonic()
        self._gone = False
        self._entries: deque[Entry] = deque()
        self._backlog: deque[bytes] = deque()
        self._closing = False
        self._wake = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"audit {name}", daemon=True)
        self._thread.start()

    # --- the event loop's side ---

    def append(self, line: bytes, *, keep: bool = False) -> bool:
        if self._enqueue(Entry(line, keep=keep)):
            return True
        return self._keep(line) if keep else self._count("queue_full")

    def submit(self, line: bytes) -> Entry | None:
        """Hands over a line whose fate the caller waits for: `waiter` ends with None once the line is durable, else
        with the error. None where the queue is full.
        """
        entry = Entry(line, self._loop.create_future())
        return entry if self._enqueue(entry) else None

    def withdraw(self, entry: Entry) -> bool:
        """Takes an entry back; False where the thread has taken it already, so that it may yet arrive."""
        with self._wake:
            entry.withdrawn = not entry.taken
            return entry.withdrawn

    def scarce(self, reserve_bytes: int) -> bool:
        return self._free_bytes < reserve_bytes

    def retry(self) -> None:
        while self._backlog and self._enqueue(Entry(self._backlog[0], keep=True)):
            self._backlog.popleft()

    def close(self, wait_s: float) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(wait_s)
        if not self._thread.is_alive():
            with contextlib.suppress(OSError):
                self._appender.close()

    def _enqueue(self, entry: Entry) -> bool:
        with self._wake:
            if len(self._entries) >= self._capacity or self._closing:
                return False
            self._entries.append(entry)
            self._wake.notify()
        return True

    def _keep(self, line: bytes) -> bool:
        if len(self._backlog) >= MAX_BACKLOG:
            return self._count("backlog_full")
        self._backlog.append(line)
        return True

    def _count(self, loss: Loss) -> bool:
        self._lost(self.name, loss)
        return False

    def _settle(self, batch: list[Entry], failure: OSError | None) -> None:
        self._report(self, failure)
        for entry in batch:
            if entry.waiter is not None:
                if not entry.waiter.done():
                    entry.waiter.set_result(failure)
            elif failure is not None:
                if not entry.keep:
                    self._count("failed")
                elif not entry.arrived:
                    # What arrived and could not be synced is not written twice.
                    self._keep(entry.line)

    # --- the writer thread's side ---

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._entries and not self._closing:
                    self._wake.wait(LOOK_S)
                batch = [entry for entry in self._entries if not entry.withdrawn]
                self._entries.clear()
                for entry in batch:
                    entry.taken = True
                closing = self._closing
            if time.monotonic() - self._looked_s >= LOOK_S:
                self._look()
            if batch:
                failure = self._write(batch)
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._settle, batch, failure)
            if closing:
                return

    def _write(self, batch: list[Entry]) -> OSError | None:
        if self._gone:
            return OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            self._appender.write(b"".join([entry.line for entry in batch]))
            for entry in batch:
                entry.arrived = True
            if self._sync:
                os.fdatasync(self._appender.descriptor)
        except OSError as error:
            return error
        return None

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        if self._path is None or not self._appender.regular:
            return
        seen = inspect(self._path, self._appender.descriptor)
        self._free_bytes = seen.free_bytes
        self._gone = seen.gone
        if seen.moved is not None:
            self._appender.close()
            self._appender = Appender(seen.moved)
            if self._sync:
                with contextlib.suppress(OSError):  # the next fdatasync tells whether the disk works
                    sync_folder(self._path)
