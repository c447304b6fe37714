"""Where records go: what every sink offers, and the regular file that the event loop itself appends to.

There are two kinds. `InlineFile` is a regular file in `written` mode: an append to the page cache costs a microsecond,
handing it to a thread costs a hundred. `threaded.ThreadedSink` is for everything that may block or must be synced.

A line with `keep` (the closing of a record) that cannot be written now waits in the sink's backlog, bounded by
`MAX_BACKLOG`, and is tried again every second. Any other line that cannot be written is lost and counted.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from addons.audit.files import Appender, Inspection, free_bytes, inspect

MAX_BACKLOG: Final = 10_000
"""Closings that wait for a sink to work again; past that they are left for the recovery at the next start."""

type Loss = Literal["reserve", "queue_full", "failed", "backlog_full"]
"""Why a sink did not get a line."""


class Report(Protocol):
    """What a sink tells the log, always on the event loop."""

    def __call__(self, sink: Sink, failure: OSError | None) -> None:
        """An attempt to write has ended."""


class Sink(Protocol):
    """One place that records go to."""

    name: str

    def append(self, line: bytes, *, keep: bool = False) -> bool:
        """Hands a line over without waiting for it; False where it is lost."""

    def scarce(self, reserve_bytes: int) -> bool:
        """Whether free space is below the reserve."""

    def retry(self) -> None:
        """Tries the backlog again."""

    def close(self, wait_s: float) -> None:
        """Writes what waits, for at most `wait_s`, and lets go. Blocks."""


@dataclass(slots=True)
class Stopwatch:
    """When the write that is under way began (monotonic seconds); 0 while there is none. Read by the watchdog
    thread.
    """

    since_s: float = 0.0


class InlineFile:
    """A regular file that the event loop appends to.

    Args:
        path: of the file.
        descriptor: opened by `open_file`; owned from now on.
        stopwatch: runs while a write is under way.
        report: told how attempts of `append` and `retry` end.
        lost: counts lines that the file did not get.
    """

    def __init__(
        self, path: Path, descriptor: int, stopwatch: Stopwatch, report: Report, lost: Callable[[str, Loss], None]
    ) -> None:
        self.name = str(path)
        self._path = path
        self._appender = Appender(descriptor)
        self._stopwatch = stopwatch
        self._report = report
        self._lost = lost
        self._backlog: deque[bytes] = deque()
        self._free_bytes = free_bytes(descriptor)
        self._gone = False

    def write(self, line: bytes) -> None:
        """Appends a line; the kernel has it when this returns.

        Raises:
            OSError: it does not.
        """
        if self._gone:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._stopwatch.since_s = time.monotonic()
        try:
            self._appender.write(line)
        finally:
            self._stopwatch.since_s = 0.0

    def append(self, line: bytes, *, keep: bool = False) -> bool:
        try:
            self.write(line)
        except OSError as failure:
            self._report(self, failure)
            if not keep:
                self._lost(self.name, "failed")
                return False
            if len(self._backlog) >= MAX_BACKLOG:
                self._lost(self.name, "backlog_full")
                return False
            self._backlog.append(line)
        return True

    def scarce(self, reserve_bytes: int) -> bool:
        return self._free_bytes < reserve_bytes

    def retry(self) -> None:
        if not self._backlog:
            return
        failure: OSError | None = None
        try:
            while self._backlog:
                self.write(self._backlog[0])
                self._backlog.popleft()
        except OSError as error:
            failure = error
        self._report(self, failure)

    def inspect(self) -> Inspection:
        """Looks after rotation and free space. Blocks; for a thread."""
        return inspect(self._path, self._appender.descriptor)

    def adopt(self, seen: Inspection) -> None:
        """Acts on an inspection; on the event loop, between two writes."""
        self._free_bytes = seen.free_bytes
        self._gone = seen.gone
        if seen.moved is not None:
            self._appender.close()
            self._appender = Appender(seen.moved)

    def close(self, wait_s: float) -> None:  # noqa: ARG002 - nothing here waits
        self.retry()
        self._appender.close()
