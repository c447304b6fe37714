"""After a kill: which records of a file were opened and never closed.

The whole file is read once at start, as a stream; memory holds the ids of records that are still open. A torn last line
(the kill came inside a write) is cut off: it is no record, and what it began to say was not durable, so nothing was
sent for it. Its length is logged.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, Final

_log = logging.getLogger("ostiary.audit")
_CHUNK: Final = 1 << 20
_KEPT: Final = (
    "request_id",
    "trace_id",
    "workload",
    "proof",
    "source",
    "listener",
    "route",
    "rule",
    "host",
    "port",
    "method",
    "path",
    "secret",
    "secret_version",
    "lease",
    "cache",
)


def recover(descriptor: int, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Cuts a torn tail and tells what must be closed.

    Args:
        descriptor: of the file, open for reading and appending, locked by this process.
        path: for messages.

    Returns:
        `credential.closed` records to append, each with the `id` of the one it closes.
    """
    still_open: dict[str, dict[str, Any]] = {}
    rest = b""
    offset = 0
    while chunk := os.pread(descriptor, _CHUNK, offset):
        offset += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            _take(line, still_open)
    if rest:
        os.ftruncate(descriptor, offset - len(rest))
        _log.warning("audit file %s ended in a torn line of %d bytes; it was cut off", path, len(rest))
    if still_open:
        _log.warning("audit file %s: %d records of an earlier run are closed as interrupted", path, len(still_open))
    return [
        (
            "credential.closed",
            {"id": record_id, **{key: record[key] for key in _KEPT if key in record}, "outcome": "interrupted"},
        )
        for record_id, record in still_open.items()
    ]


def _take(line: bytes, still_open: dict[str, dict[str, Any]]) -> None:
    # Most lines are of other kinds or close soon: look before parsing.
    if b'"credential.' not in line:
        return
    try:
        record = json.loads(line)
    except ValueError:
        return
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        return
    if record.get("event") == "credential.opened":
        still_open[record["id"]] = record
    elif record.get("event") == "credential.closed":
        still_open.pop(record["id"], None)
