"""Opens the SQLite file: its mode, its schema, its settings, and whether it is what it should be.

Rules:
- The file is made with mode 0600 before SQLite sees it; SQLite gives its `-wal` and `-shm` files the same. A file that
  others can read is refused: who may write it may lift kills and allow replays.
- WAL, so that readers never wait for a writer. The file is bounded in pages.
- SQLite's own messages never leave: an error is told by its code.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import stat
import time
from pathlib import Path
from typing import Final

from addons.state.store import StateError, StateFull, StateUnavailable

APPLICATION_ID: Final = 0x4F737469
SCHEMA_VERSION: Final = 1
PAGE_BYTES: Final = 4096
MAX_FILE_BYTES: Final = 256 * 1024 * 1024
_OPEN_WAIT_S: Final = 2.0
_AGAIN_S: Final = 0.02
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS marks (key TEXT PRIMARY KEY, ends_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS marks_end ON marks (ends_s);
CREATE TABLE IF NOT EXISTS counters (key TEXT PRIMARY KEY, value INTEGER NOT NULL, ends_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS counters_end ON counters (ends_s);
CREATE TABLE IF NOT EXISTS buckets (key TEXT PRIMARY KEY, tokens REAL NOT NULL, at_s REAL NOT NULL, ends_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS buckets_end ON buckets (ends_s);
CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, ends_s REAL);
CREATE TABLE IF NOT EXISTS life (one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, number INTEGER NOT NULL);
"""


def connect(path: Path, *, busy_s: float, thorough: bool = False) -> sqlite3.Connection:
    """An open connection in autocommit mode. Blocks: for a thread.

    Args:
        path: of the file; made if it is not there, its folder is not.
        busy_s: how long a transaction waits for another process.
        thorough: whether the whole file is checked for damage.

    Raises:
        StateUnavailable: with what to do.
    """
    _make(path)
    give_up_s = time.monotonic() + _OPEN_WAIT_S
    while True:
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
            _prepare(connection, path, thorough=thorough)
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            # Turning on WAL does not wait for others that open the file at the same moment.
            if _code(error).startswith("SQLITE_BUSY") and time.monotonic() < give_up_s:
                time.sleep(_AGAIN_S)
                continue
            raise told(error, path) from None
        except StateError:
            if connection is not None:
                connection.close()
            raise
        return connection


def told(error: sqlite3.Error, path: Path) -> StateError:
    """What an error of SQLite means to us."""
    code = _code(error)
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StateUnavailable(f"{path} is held by another process")
    if code == "SQLITE_FULL":
        return StateFull(f"{path} has reached its cap of {MAX_FILE_BYTES} bytes, or its disk is full")
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StateUnavailable(f"{path} is damaged or no state file ({code}); move it away to begin anew")
    return StateUnavailable(f"{path} cannot be used ({code})")


def broken(error: sqlite3.Error) -> bool:
    """Whether the connection had better be opened anew."""
    return not _code(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL"))


def _code(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", None) or type(error).__name__)


def _make(path: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = path.stat()
    except OSError as error:
        raise StateUnavailable(f"{path} cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise StateUnavailable(f"{path} is no regular file")
    if found.st_mode & 0o077:
        raise StateUnavailable(f"{path} is open to others: chmod 600 {path}")


def _prepare(connection: sqlite3.Connection, path: Path, *, thorough: bool) -> None:
    for pragma in (
        "journal_mode = WAL",
        f"max_page_count = {MAX_FILE_BYTES // PAGE_BYTES}",
        "journal_size_limit = 16777216",
        "cell_size_check = ON",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    application, version = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
    )
    if (application, version) == (APPLICATION_ID, SCHEMA_VERSION):
        if thorough and connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise StateUnavailable(f"{path} is damaged; move it away to begin anew")
        return
    if application == APPLICATION_ID and version > SCHEMA_VERSION:
        raise StateUnavailable(f"{path} was made by a newer Ostiary")
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have made it in between: every statement can be repeated.
        empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if not empty and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StateUnavailable(f"{path} is another program's database")  # noqa: TRY301 - rolled back below
        for statement in filter(None, (part.strip() for part in _SCHEMA.split(";"))):
            connection.execute(statement)
        connection.execute("INSERT OR IGNORE INTO life VALUES (1, ?, 0)", (secrets.token_hex(8),))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
