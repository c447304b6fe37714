"""Where records go.

There are two kinds:

- `InlineFile`: a regular file in `written` mode, appended to by the event loop itself. An append to the page cache
  costs a microsecond; handing it to a thread costs a hundred.
- `ThreadedSink`: everything that may block or must be synced (pipes, standard output, devices, `fsync`). One writer
  thread takes all that waits, writes it in one go, syncs once, and wakes the waiters (group commit).

Both keep lines whole: a failed append is cut back, and where even that fails the next append begins with a line feed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

_OPEN: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class SinkError(OSError):
    """A sink cannot be opened; the message names it and the reason."""


class Sink(Protocol):
    """One place that records go to."""

    name: str
    immediate: bool
    """Whether an append has already reached the kernel when it returns."""

    def append(self, line: bytes) -> bool:
        """Hands a line over without waiting for it; False where it could not be taken."""

    async def commit(self, line: bytes, wait_s: float) -> None:
        """Makes a line durable.

        Raises:
            OSError: it is not, and will not become so.
            TimeoutError: it was not in time; should it still be written, the caller of `AuditLog.open` never used it.
        """

    def scarce(self, reserve_bytes: int) -> bool:
        """Whether free space is below the reserve."""

    def refresh(self) -> None:
        """Follows a rotated file; called once a second."""

    def close(self, wait_s: float) -> None:
        """Writes what waits and lets go."""


def open_file(path: Path) -> int:
    """Opens a sink's file.

    Raises:
        SinkError: it cannot be opened, is a symbolic link, or another process writes it.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            # A pipe is opened for both ways: it must neither wait for a reader nor die with one.
            flags = os.O_RDWR if stat.S_ISFIFO(path.stat().st_mode) else os.O_WRONLY
            return os.open(path, flags | os.O_APPEND | os.O_CLOEXEC)
        descriptor = os.open(path, _OPEN, 0o600)
    except OSError as error:
        raise SinkError(error.errno, f"audit file {path} cannot be opened: {os.strerror(error.errno or 0)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise SinkError(errno.EBUSY, f"audit file {path} is written by another process; give each its own") from None
    return descriptor


def is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


class Appender:
    """Appends whole lines to a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._regular = is_regular(descriptor)
        self._torn = False

    def write(self, lines: bytes) -> None:
        """Appends all or nothing.

        Raises:
            OSError: nothing was appended, or what was is marked so that the next line stands alone.
        """
        payload = b"\n" + lines if self._torn else lines
        done = 0
        try:
            while done < len(payload):
                written = os.write(self.descriptor, payload[done:] if done else payload)
                done += written
        except OSError:
            if done:
                self._torn = not self._cut(done)
            raise
        self._torn = False

    def _cut(self, done: int) -> bool:
        """Takes back what a failed append left; False where that cannot be done."""
        if not self._regular:
            return False
        try:
            os.ftruncate(self.descriptor, os.fstat(self.descriptor).st_size - done)
        except OSError:
            return False
        return True


@dataclass(slots=True)
class Stopwatch:
    """When the write that is under way began; 0 while there is none. Read by the watchdog thread."""

    since_s: float = 0.0


class InlineFile:
    """A regular file that the event loop appends to."""

    immediate = True

    def __init__(self, path: Path, descriptor: int, stopwatch: Stopwatch) -> None:
        self.name = str(path)
        self._path = path
        self._appender = Appender(descriptor)
        self._stopwatch = stopwatch
        self._free_bytes = 1 << 62

    def _write(self, line: bytes) -> None:
        self._stopwatch.since_s = time.monotonic()
        try:
            self._appender.write(line)
        finally:
            self._stopwatch.since_s = 0.0

    def append(self, line: bytes) -> bool:
        try:
            self._write(line)
        except OSError:
            return False
        return True

    async def commit(self, line: bytes, wait_s: float) -> None:  # noqa: ARG002 - the loop itself writes: there is nothing to wait for
        self._write(line)

    def scarce(self, reserve_bytes: int) -> bool:
        return self._free_bytes < reserve_bytes

    def refresh(self) -> None:
        self._free_bytes = free_bytes(self._appender.descriptor)
        moved = reopened(self._path, self._appender.descriptor)
        if moved is not None:
            os.close(self._appender.descriptor)
            self._appender = Appender(moved)

    def close(self, wait_s: float) -> None:  # noqa: ARG002 - nothing waits
        with contextlib.suppress(OSError):
            os.close(self._appender.descriptor)


def free_bytes(descriptor: int) -> int:
    """Space left for this process on the descriptor's file system; plenty where that has no meaning."""
    try:
        space = os.fstatvfs(descriptor)
    except OSError:
        return 1 << 62
    return space.f_bavail * space.f_frsize if space.f_blocks else 1 << 62


def reopened(path: Path, descriptor: int) -> int | None:
    """A new descriptor where the path no longer names the open file (rotation), else None."""
    try:
        there, here = path.stat(), os.fstat(descriptor)
        if (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev):
            return None
    except FileNotFoundError:
        pass
    except OSError:
        return None
    try:
        return open_file(path)
    except SinkError:
        return None


@dataclass(slots=True, eq=False)
class _Entry:
    line: bytes
    waiter: asyncio.Future[None] | None = None
    given_up: bool = False


@dataclass(slots=True)
class _Shared:
    """What the loop and the writer thread share, under one lock."""

    entries: deque[_Entry] = field(default_factory=deque)
    closing: bool = False


class ThreadedSink:
    """A sink written by a thread of its own.

    Args:
        name: for messages.
        descriptor: to write to; closed with the sink.
        path: of the file, where rotation is to be followed; None for standard output.
        sync: whether each batch is followed by `fdatasync`.
        capacity: lines that may wait.
        report: told, on the loop, how each batch ended.
    """

    immediate = False

    def __init__(
        self,
        name: str,
        descriptor: int,
        path: Path | None,
        *,
        sync: bool,
        capacity: int,
        report: Callable[[Sink, OSError | None], None],
    ) -> None:
        self.name = name
        self._report = report
        self._path = path
        self._sync = sync
        self._capacity = capacity
        self._appender = Appender(descriptor)
        self._free_bytes = 1 << 62
        self._shared = _Shared()
        self._wake = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"audit {name}", daemon=True)
        self._thread.start()

    def append(self, line: bytes) -> bool:
        return self._enqueue(_Entry(line))

    def _enqueue(self, entry: _Entry) -> bool:
        with self._wake:
            if len(self._shared.entries) >= self._capacity or self._shared.closing:
                return False
            self._shared.entries.append(entry)
            self._wake.notify()
        return True

    async def commit(self, line: bytes, wait_s: float) -> None:
        entry = _Entry(line, self._loop.create_future())
        if not self._enqueue(entry):
            raise OSError(errno.EAGAIN, "the queue is full")
        try:
            async with asyncio.timeout(wait_s):
                await entry.waiter  # type: ignore[misc]  # set above
        except BaseException:
            entry.given_up = True
            raise

    def scarce(self, reserve_bytes: int) -> bool:
        return self._free_bytes < reserve_bytes

    def refresh(self) -> None:
        """Nothing on the loop: the thread looks for itself before a batch."""

    def close(self, wait_s: float) -> None:
        with self._wake:
            self._shared.closing = True
            self._wake.notify()
        self._thread.join(wait_s)
        if not self._thread.is_alive():
            with contextlib.suppress(OSError):
                os.close(self._appender.descriptor)

    # --- the writer thread ---

    def _run(self) -> None:
        checked_s = 0.0
        while True:
            with self._wake:
                while not self._shared.entries and not self._shared.closing:
                    self._wake.wait()
                batch = [entry for entry in self._shared.entries if not entry.given_up]
                self._shared.entries.clear()
                closing = self._shared.closing
            now_s = time.monotonic()
            if now_s - checked_s > 1.0:
                checked_s = now_s
                self._follow()
            if batch:
                self._write(batch)
            if closing and not self._shared.entries:
                return

    def _follow(self) -> None:
        self._free_bytes = free_bytes(self._appender.descriptor)
        if self._path is not None and is_regular(self._appender.descriptor):
            moved = reopened(self._path, self._appender.descriptor)
            if moved is not None:
                os.close(self._appender.descriptor)
                self._appender = Appender(moved)

    def _write(self, batch: list[_Entry]) -> None:
        failure: OSError | None = None
        try:
            self._appender.write(b"".join(entry.line for entry in batch))
            if self._sync:
                os.fdatasync(self._appender.descriptor)
        except OSError as error:
            failure = error
        waiters = [entry.waiter for entry in batch if entry.waiter is not None]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, waiters, failure)

    def _settle(self, waiters: list[asyncio.Future[None]], failure: OSError | None) -> None:
        self._report(self, failure)
        for waiter in waiters:
            if waiter.done():
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(OSError(failure.errno, os.strerror(failure.errno or errno.EIO)))
