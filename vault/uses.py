"""Who uses one version of a secret: how many requests hold its values now, and which record was opened last for it.

A version is retired when another has taken its place, or when the store has said that it is gone. Its last use has ended
when no request holds it any more: then, and only then, nothing of this process travels under the old key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Opening(Protocol):
    """What a durable `credential.opened` record must show before a secret is unsealed."""

    @property
    def secret(self) -> str | None:
        """Name of the secret the record is about."""

    @property
    def secret_version(self) -> str | None:
        """Version the record is about."""


class Uses:
    """The uses of one version in this process."""

    __slots__ = ("_told", "last", "live")

    def __init__(self) -> None:
        self.live = 0
        """Requests that hold its values and have not ended."""
        self.last: Opening | None = None
        """The record opened last for it."""
        self._told: Callable[[Opening], None] | None = None

    def began(self, record: Opening) -> None:
        """A request has been given the values."""
        self.live += 1
        self.last = record

    def kept(self) -> None:
        """What was made of another version is used on in the name of this one: no record was opened for it."""
        self.live += 1

    def ended(self) -> None:
        """That request has ended."""
        self.live -= 1
        if self._told is not None:
            self._tell()

    def retire(self, told: Callable[[Opening], None]) -> None:
        """Nothing new will use this version.

        Args:
            told: called once with the last record, when no request holds the values any more; never where none did.
        """
        self._told = told
        self._tell()

    def _tell(self) -> None:
        if self._told is not None and self.live <= 0 and self.last is not None:
            told, self._told = self._told, None
            told(self.last)
