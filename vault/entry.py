"""What the cache remembers of one secret, and what of that may be told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from vault.control import NOTHING, Control
from vault.store import SecretVersion, StoreError
from vault.uses import Opening


@dataclass(slots=True, eq=False)
class Entry:
    """What is remembered of one secret."""

    version: SecretVersion | None = None
    before: SecretVersion | None = None
    """The one that `version` has replaced, without its values: who used it last."""
    last: str = ""
    """The version known last, also once it was dropped."""
    fetched_s: float = 0.0
    """When the fetch that brought the version began."""
    checked_s: float = 0.0
    """When the look or the fetch began by which the store last said that this is the version."""
    look: bool = False
    """Whether the flight under way asks for the version first, and for the value only if it is another."""
    looked: bool = False
    """Whether the last flight found the same version by a look."""
    failure: StoreError | None = None
    failed_s: float = 0.0
    retry_s: float = 0.0
    """No fetch before this."""
    failures: int = 0
    flight: asyncio.Task[None] | None = None
    flight_s: float = 0.0
    launched: int = 0
    """Flights so far: tells one that began after a read from one before it, however coarse the clock."""
    forced: int = 0
    """The flight of `launched` that a rejected credential began last."""
    fruitless_s: float = 0.0
    """No read is forced before this."""
    waiting: int = 0
    """Reads that wait for a flight and hold this entry."""


@dataclass(frozen=True, slots=True)
class Known:
    """One secret as its keepers see it: never its values."""

    version: str | None
    """The version that is handed out; None after the store has said no."""
    created_at: str | None
    age_s: float
    """Since the store was last asked for it with success."""
    problem: str | None
    """What the store said last, where that was no version."""
    control: Control
    live: int
    """Requests under way that hold this version."""
    last: Opening | None
    """The record opened last for it."""
    before: str | None = None
    """The version that it has taken the place of in this process."""
    before_live: int = 0
    before_last: Opening | None = None
    lease: str | None = None
    lease_s: float | None = None
    """What is left of it, where it is lent."""


def known_of(entry: Entry, now_s: float) -> Known:
    """What may be told of an entry."""
    version, before = entry.version, entry.before
    if before is not None and version is not None and before.version == version.version:
        before = None  # gone for a while, and back
    return Known(
        None if version is None else version.version,
        None if version is None else version.created_at,
        max(now_s - entry.fetched_s, 0.0),
        None if entry.failure is None else entry.failure.reason,
        NOTHING if version is None else version.control,
        0 if version is None else version.uses.live,
        None if version is None else version.uses.last,
        None if before is None else before.version,
        0 if before is None else before.uses.live,
        None if before is None else before.uses.last,
    )
