"""What the owners of a secret say about it in its `custom_metadata` (KV version 2): a control channel that needs no
change at Ostiary.

| key | form | meaning |
|---|---|---|
| `overlap_until` | RFC 3339 with zone | until then the upstream accepts the version before this one too |
| `expires_at` | RFC 3339 with zone | when the key itself ends; told ahead, not enforced: the upstream does that |
| `pending_version` | a number | this version is written and not yet to be used; the one before it is |
| `owner`, `classification` | text | shown where the secret is |

Other keys are the owners' own. A value of another form counts as absent and is told.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

MAX_TEXT: Final = 128
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)")
_WANTED: Final = {"pending_version": "a version number", "overlap_until": "an RFC 3339 instant with a zone"}


@dataclass(frozen=True, slots=True)
class Control:
    """What `custom_metadata` says, read."""

    overlap_until_s: float | None = None
    """Seconds since the epoch."""
    expires_at_s: float | None = None
    """Seconds since the epoch."""
    pending_version: int | None = None
    owner: str | None = None
    classification: str | None = None
    renewed: bool = False
    """Whether Ostiary itself sees to a new one in time: then the end is news only once that has failed."""
    faults: tuple[str, ...] = ()
    """Keys that are there and make no sense, each with what was wanted; values are not repeated."""


NOTHING: Final = Control()


def read_control(metadata: Mapping[str, object]) -> Control:
    """Reads `custom_metadata`."""
    if not metadata:
        return NOTHING
    faults: list[str] = []

    def find[T](key: str, read: Callable[[str], T | None]) -> T | None:
        value = metadata.get(key)
        if value is None or value == "":
            return None
        found = read(value) if isinstance(value, str) else None
        if found is None:
            faults.append(f"{key} is not {_WANTED.get(key, _WANTED['overlap_until'])}")
        return found

    return Control(
        find("overlap_until", _instant),
        find("expires_at", _instant),
        find("pending_version", lambda value: int(value) if _NUMBER.fullmatch(value) else None),
        _text(metadata.get("owner")),
        _text(metadata.get("classification")),
        faults=tuple(faults),
    )


def _instant(value: str) -> float | None:
    if not _INSTANT.fullmatch(value):
        return None
    try:
        return dt.datetime.fromisoformat(value.upper()).timestamp()
    except (ValueError, OverflowError):
        return None


def _text(value: object) -> str | None:
    """One short printable line, or nothing."""
    if not isinstance(value, str):
        return None
    return "".join(char for char in value if char.isprintable())[:MAX_TEXT] or None
