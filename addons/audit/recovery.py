"""After a kill: which records of a file were opened and never closed.

The file is read once at start, as a stream, and with it the newest uncompressed file that rotation has left beside it
(a record may have been opened there). The scan looks for the two fixed marks that the encoder writes, not at JSON, and
memory holds one offset for each record that is still open. A torn last line (the kill came inside a write) is cut off:
it is no record, and what it began to say was not durable, so nothing was sent for it. Its length is logged.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any, Final, cast

from addons.audit.record import Fields

_log = logging.getLogger("ostiary.audit")

_CHUNK: Final = 4 << 20
_MAX_LINE: Final = 1 << 20
"""No line of ours is as long; what is longer is read over."""
_MARK: Final = b'"event":"credential.'
# A quotation mark inside a value is escaped, so no value can hold the mark.
_OPENED: Final = b'opened","id":"'
_CLOSED: Final = b'closed","id":"'
_ID_LENGTH: Final = 36
_COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst", ".lz4")
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


def recover(descriptor: int, path: Path) -> list[tuple[str, Fields]]:
    """Cuts a torn tail and tells what must be closed.

    Args:
        descriptor: of the file, open for reading and appending, locked by this process.
        path: of the file.

    Returns:
        Id and keys of each `credential.closed` to append, oldest first.

    Raises:
        OSError: the file cannot be read, or its torn tail cannot be cut.
    """
    found: list[tuple[str, Fields]] = []
    earlier: dict[bytes, int] = {}
    with contextlib.ExitStack() as ending:
        before = _open_rotated(path)
        if before is not None:
            ending.callback(os.close, before)
            _scan(before, earlier)
        # An id of the older file that this one closes goes from both.
        own: dict[bytes, int] = {}
        end, size = _scan(descriptor, own, earlier)
        if size > end:
            os.ftruncate(descriptor, end)
            _log.warning("audit file %s ended in a torn line of %d bytes; it was cut off", path, size - end)
        for source, still_open in ((before, earlier), (descriptor, own)):
            if source is not None:
                found += [one for key, offset in still_open.items() if (one := _read(source, key, offset)) is not None]
    if found:
        _log.warning("audit file %s: %d records of an earlier run are closed as interrupted", path, len(found))
    return found


def _open_rotated(path: Path) -> int | None:
    try:
        older = _rotated(path)
        return None if older is None else os.open(older, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        _log.warning("no rotated file beside %s can be read (%s): records left open there stay open", path, reason)
        return None


def _rotated(path: Path) -> Path | None:
    """The newest uncompressed file that rotation has made of this one: `audit.jsonl.1`, `audit.jsonl-20260101`."""
    newest: tuple[int, Path] | None = None
    with os.scandir(path.parent) as entries:
        for entry in entries:
            name = entry.name
            if not name.startswith((f"{path.name}.", f"{path.name}-")) or name.endswith(_COMPRESSED):
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and (newest is None or status.st_mtime_ns > newest[0]):
                newest = (status.st_mtime_ns, Path(entry.path))
    return newest[1] if newest else None


def _scan(descriptor: int, opened: dict[bytes, int], earlier: dict[bytes, int] | None = None) -> tuple[int, int]:
    """Notes what is opened and strikes out what is closed.

    Returns:
        The offset after the last whole line, and the size.
    """
    rest = b""
    base = 0
    whole = 0
    while chunk := os.pread(descriptor, _CHUNK, base + len(rest)):
        text = rest + chunk
        end = text.rfind(b"\n") + 1
        if end:
            whole = base + end
        at = text.find(_MARK, 0, end)
        while at != -1:
            at += len(_MARK)
            start = at + len(_OPENED)
            kind, key = text[at:start], text[start : start + _ID_LENGTH]
            if kind == _OPENED:
                opened[key] = base + text.rfind(b"\n", 0, at) + 1
            elif kind == _CLOSED:
                opened.pop(key, None)
                if earlier:
                    earlier.pop(key, None)
            at = text.find(_MARK, start, end)
        keep_from = end if len(text) - end <= _MAX_LINE else len(text)
        base += keep_from
        rest = text[keep_from:]
    return whole, base + len(rest)


def _read(descriptor: int, key: bytes, offset: int) -> tuple[str, Fields] | None:
    """The record at an offset; None where the line is no whole record (a failed append that could not be cut back)."""
    line = os.pread(descriptor, _MAX_LINE, offset).partition(b"\n")[0]
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("id") != key.decode("ascii", "replace"):
        return None
    kept: dict[str, Any] = {name: record[name] for name in _KEPT if name in record}
    return record["id"], cast("Fields", {**kept, "outcome": "interrupted"})
