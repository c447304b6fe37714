"""Refusals of callers that have proven nothing, many to a record, so that nobody can fill the disk from outside (G56).

The first refusal of a source with a code is written at once. Those that follow are counted, and the count is written
once in a window for as long as the source goes on. Sources past `MAX_SOURCES` share one count under the name `other`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from addons.audit.record import Fields

WINDOW_S: Final = 10.0
MAX_SOURCES: Final = 256
OTHER: Final = "other"


@dataclass(slots=True)
class _Run:
    since_s: float
    last: Fields
    count: int = 0


class Coalescer:
    """Decides which refusals are written."""

    def __init__(self, window_s: float = WINDOW_S, max_sources: int = MAX_SOURCES) -> None:
        self._window_s = window_s
        self._max_sources = max_sources
        self._runs: dict[tuple[str, str], _Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def take(self, fields: Fields, now_s: float) -> Fields | None:
        """What to write now for this refusal, or None where it is only counted."""
        source, code = fields.get("source", OTHER), fields.get("code", "")
        if (source, code) not in self._runs and len(self._runs) >= self._max_sources:
            source = OTHER
            fields = {**fields, "source": OTHER}
        run = self._runs.get((source, code))
        if run is None:
            self._runs[source, code] = _Run(now_s, fields)
            return fields
        run.count += 1
        run.last = fields
        return None

    def due(self, now_s: float, *, everything: bool = False) -> list[Fields]:
        """The counts whose window has passed: the keys of the last refusal, and how many there were."""
        found: list[Fields] = []
        for key, run in tuple(self._runs.items()):
            if not everything and now_s - run.since_s < self._window_s:
                continue
            if run.count:
                found.append({**run.last, "count": run.count})
                run.since_s, run.count = now_s, 0
            else:
                del self._runs[key]
        return found
