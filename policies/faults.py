"""Faults: what is wrong in a file somebody wrote, where it stands and how to mend it.

Every fault of a file set is collected before any is reported, so that one run of `ostiary check` shows them all. A
fault never quotes a value that could be a secret; it names keys and places.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A position in a file, lines and columns counted from 1."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing that is wrong. `message` says what, `mend` how to put it right."""

    place: Place
    message: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.message} ({self.mend})" if self.mend else f"{self.place}: {self.message}"


class FaultError(Exception):
    """Carries every fault of one load, in file order."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(str(fault) for fault in self.faults))


@dataclass(slots=True)
class Faults:
    """Collects faults while a file set is being judged."""

    found: list[Fault] = field(default_factory=list)

    def add(self, place: Place, message: str, mend: str = "") -> None:
        self.found.append(Fault(place, message, mend))

    def __bool__(self) -> bool:
        return bool(self.found)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.found)

    def raise_any(self) -> None:
        """Raises `FaultError` when anything was found."""
        if self.found:
            raise FaultError(self.found)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
