"""Files of workers that are no more: a process that runs with fewer workers than the one before, or with none, closes the
records that are open in files nobody writes any longer.

A file that another process writes is locked, and left alone. Of the files that are found none is made, moved or removed.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from addons.audit.config import AuditConfig, FileSink
from addons.audit.files import Appender, SinkError, open_file
from addons.audit.record import Encoder
from addons.audit.recovery import recover

_log = logging.getLogger("ostiary.audit")

MAX_FILES: Final = 1000
"""More than workers have ever been; who may write into the folder must not hold the start for ever."""


def left_behind(config: AuditConfig) -> Iterator[Path]:
    """Files of workers whose number is none of this process's."""
    if config.workers is None:
        return
    for sink in config.sinks:
        if isinstance(sink, FileSink):
            yield from _beside(sink.path, config.workers)


def _beside(path: Path, workers: int) -> list[Path]:
    name = re.compile(rf"{re.escape(path.stem)}\.w([1-9][0-9]{{0,2}}){re.escape(path.suffix)}")
    try:
        with os.scandir(path.parent) as entries:
            found = [
                Path(entry.path)
                for entry in entries
                if (number := name.fullmatch(entry.name)) is not None
                and int(number[1]) >= workers
                and entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return []  # whether records can be written at all is found out where they are
    return sorted(found)[:MAX_FILES]


def close_left(path: Path, encoder: Encoder, *, sync: bool) -> int:
    """Closes what is open in a file that nobody writes; gives how many records that were. Blocks."""
    try:
        descriptor = open_file(path)
    except SinkError:
        return 0  # of a process that lives
    appender = Appender(descriptor)
    try:
        left_open = recover(descriptor, path)
        for record_id, fields in left_open:
            appender.write(encoder.line("credential.closed", record_id, fields))
        if sync and left_open:
            os.fsync(descriptor)
    except OSError as error:
        _log.warning("audit file %s of an earlier worker could not be closed: %s", path, error.strerror)
        return 0
    finally:
        appender.close()
    return len(left_open)
