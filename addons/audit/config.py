"""What an audit log is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class FileSink:
    """A file of JSON lines, or a named pipe."""

    path: Path

    def of_worker(self, number: int) -> FileSink:
        """The same for one of several workers: `audit.jsonl`, `audit.w1.jsonl`."""
        if number == 0:
            return self
        return FileSink(self.path.with_name(f"{self.path.stem}.w{number}{self.path.suffix}"))


@dataclass(frozen=True, slots=True)
class StdoutSink:
    """Standard output, after the ready line."""


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """`audit:` of the settings.

    `written` returns once the kernel has the record (survives a kill -9), `fsync` once the disk has it (survives power
    loss).
    """

    sinks: tuple[FileSink | StdoutSink, ...]
    durability: Literal["written", "fsync"] = "written"
    wait_s: float = 2.0
    """How long a record may take to become durable before the request is refused."""
    reserve_bytes: int = 64 * 1024 * 1024
    """Free space of a file sink's disk below which only `credential.*` records are written to it."""
    queue: int = 10_000
    """Records that may wait for a sink's writer."""
    workers: int | None = None
    """How many workers there are, for the one that looks after files of others; None: this one does not."""
