"""What several workers make of the settings: what cannot be had with them, and the share of each.

A cap of the whole is divided, so that all workers together stay below it. A worker that has used up its share refuses
though another has room left: the kernel spreads connections evenly, but not exactly.
"""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Final

from addons.audit import FileSink, StdoutSink
from ostiary.settings.model import Limits, Settings
from policies.faults import Faults, Place

MAX_WORKERS: Final = 64
MIN_BUFFERS: Final = 1024 * 1024
"""Of one process, bytes."""
DIVIDED: Final = ("connections", "connections_per_source", "connections_per_workload", "buffers")
"""Keys of `limits:` that count for all workers together. The others are of one request or one connection."""


def check_workers(settings: Settings, place: Place, faults: Faults) -> None:
    """What the settings ask for that several processes cannot give."""
    count = settings.workers
    if count == 1:
        return
    for key in DIVIDED:
        # The share of each worker must hold the largest single body.
        least = count * (max(MIN_BUFFERS, settings.limits.buffered_body) if key == "buffers" else 1)
        if 0 < getattr(settings.limits, key) < least:
            faults.add(
                place,
                f"limits.{key} is too little to be divided among {count} workers",
                f"raise it to {-(-least // MIN_BUFFERS)}MiB"
                if key == "buffers"
                else f"raise it to {least}, or run fewer",
            )
    for sink in settings.audit.sinks:
        if isinstance(sink, StdoutSink) or not _may_be_split(sink.path):
            what = "standard output" if isinstance(sink, StdoutSink) else str(sink.path)
            faults.add(
                place,
                f"{count} workers cannot share the audit sink {what}: their records would mix",
                "write file sinks, of which each worker has its own, or run one worker",
            )
    if settings.state is not None and settings.state.kind == "memory":
        faults.add(
            place,
            f"the state of {count} workers cannot be memory:, which each would have for itself",
            "write sqlite:////var/lib/ostiary/state.db, or the URL of a server",
        )


def _may_be_split(path: Path) -> bool:
    """Whether files beside this one will do: not where a pipe or a device is."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def share_of(settings: Settings, number: int) -> Settings:
    """The settings of one worker, or of the only process: its share of each cap, and audit files of its own.

    Args:
        settings: of the whole.
        number: of the worker, from 0.
    """
    count = settings.workers
    divided = {key: _share(getattr(settings.limits, key), count) for key in DIVIDED}
    limits: Limits = replace(settings.limits, **divided)
    sinks = tuple(sink.of_worker(number) if isinstance(sink, FileSink) else sink for sink in settings.audit.sinks)
    audit = replace(settings.audit, sinks=sinks, workers=count if number == 0 else None)
    return replace(settings, limits=limits, audit=audit)


def says_connections(settings: Settings) -> bool:
    """Whether `limits.connections`, whole or a share of it, is another than the default that nobody wrote."""
    return settings.limits.connections != _share(Limits().connections, settings.workers)


def _share(whole: int, count: int) -> int:
    """0 means none, whole and share alike; a share is never 0."""
    return max(whole // count, 1) if whole else 0
