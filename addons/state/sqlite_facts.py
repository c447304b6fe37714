"""What each call does to the SQLite file: functions of an open transaction and the time. A `StateError` is raised before
anything is written.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from addons.state.bucket import Bucket, full_in_s, take
from addons.state.store import (
    MAX_AMOUNT,
    MAX_KEPT,
    MAX_KEPT_BYTES,
    NOTHING,
    Added,
    Item,
    Listing,
    StateConflict,
    StateFull,
    Taken,
)

SWEPT_AT_ONCE: Final = 1000
"""Expired rows that one call removes of each kind: it must not hold the lock for long."""


def once(to: sqlite3.Connection, now_s: float, key: str, ttl_s: float) -> bool:
    row = to.execute("SELECT ends_s FROM marks WHERE key = ?", (key,)).fetchone()
    if row is not None and row[0] > now_s:
        return False
    to.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (key, now_s + ttl_s))
    return True


def add(to: sqlite3.Connection, now_s: float, key: str, amount: int, ttl_s: float, limit: int | None) -> Added:
    row = to.execute("SELECT value, ends_s FROM counters WHERE key = ? AND ends_s > ?", (key, now_s)).fetchone()
    before, ends_s = (int(row[0]), float(row[1])) if row is not None else (0, now_s + ttl_s)
    after = max(0, before + amount)
    if amount > 0 and after > (MAX_AMOUNT if limit is None else limit):
        return Added(before, added=False)
    if amount > 0 or (row is not None and amount < 0):
        to.execute("INSERT OR REPLACE INTO counters VALUES (?, ?, ?)", (key, after, ends_s))
    return Added(after, added=True)


def draw(to: sqlite3.Connection, now_s: float, key: str, cost: float, capacity: float, refill_per_s: float) -> Taken:
    row = to.execute("SELECT tokens, at_s FROM buckets WHERE key = ?", (key,)).fetchone()
    before = None if row is None else Bucket(float(row[0]), float(row[1]))
    after, taken = take(before, cost, capacity, refill_per_s, now_s)
    if after is not None:
        ends_s = now_s + full_in_s(after, capacity, refill_per_s)
        to.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?, ?, ?)", (key, after.tokens, after.at_s, ends_s))
    return taken


def put(to: sqlite3.Connection, now_s: float, key: str, value: bytes, ttl_s: float | None, expect: int | None) -> int:
    _require(to, now_s, key, expect)
    counting = "SELECT count(*), coalesce(sum(length(key) + length(value)), 0) FROM kept WHERE key <> ?"
    count, size = to.execute(f"{counting} AND (ends_s IS NULL OR ends_s > ?)", (key, now_s)).fetchone()
    if count + 1 > MAX_KEPT or size + len(key) + len(value) > MAX_KEPT_BYTES:
        raise StateFull(f"{MAX_KEPT} items or {MAX_KEPT_BYTES} bytes are kept and none has expired")
    number = _next(to)
    ends_s = None if ttl_s is None else now_s + ttl_s
    to.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", (key, value, number, ends_s))
    return number


def get(to: sqlite3.Connection, now_s: float, key: str) -> Item | None:
    row = to.execute("SELECT key, value, version, ends_s FROM kept WHERE key = ?", (key,)).fetchone()
    return None if row is None or (row[3] is not None and row[3] <= now_s) else _item(row, now_s)


def delete(to: sqlite3.Connection, now_s: float, key: str, expect: int | None) -> bool:
    _require(to, now_s, key, expect)
    if get(to, now_s, key) is None:
        return False
    to.execute("DELETE FROM kept WHERE key = ?", (key,))
    _next(to)
    return True


def listing(to: sqlite3.Connection, now_s: float, prefix: str) -> Listing:
    # A prefix is visible ASCII, so that what begins with it sorts before prefix + DEL.
    rows = to.execute(
        "SELECT key, value, version, ends_s FROM kept WHERE key >= ? AND key < ? AND (ends_s IS NULL OR ends_s > ?) ORDER BY key",
        (prefix, prefix + "\x7f", now_s),
    )
    return Listing(revision(to), tuple(_item(row, now_s) for row in rows))


def changes(to: sqlite3.Connection, now_s: float, since: str, prefix: str) -> Listing | None:
    return None if revision(to) == since else listing(to, now_s, prefix)


def revision(to: sqlite3.Connection) -> str:
    epoch, number = to.execute("SELECT epoch, number FROM life").fetchone()
    return f"{epoch}:{number}" if number else NOTHING


def sweep(to: sqlite3.Connection, now_s: float, *, at_most: int = SWEPT_AT_ONCE) -> None:
    """Removes what has expired; `at_most` of each kind, -1 for all."""
    for table in ("marks", "counters", "buckets", "kept"):
        to.execute(
            f"DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE ends_s <= ? LIMIT ?)",  # noqa: S608 - names of our own
            (now_s, at_most),
        )


def _next(to: sqlite3.Connection) -> int:
    return int(to.execute("UPDATE life SET number = number + 1 RETURNING number").fetchone()[0])


def _require(to: sqlite3.Connection, now_s: float, key: str, expect: int | None) -> None:
    if expect is None:
        return
    found = get(to, now_s, key)
    version = 0 if found is None else found.version
    if version != expect:
        raise StateConflict(key, version)


def _item(row: tuple[str, bytes, int, float | None], now_s: float) -> Item:
    key, value, version, ends_s = row
    return Item(key, bytes(value), version, None if ends_s is None else ends_s - now_s)
