"""What this room tells about itself while it works: a protocol, so that metrics live elsewhere and imports go one
way.
"""

from __future__ import annotations

from typing import Literal, Protocol

type ReadResult = Literal["ok", "unavailable", "denied", "missing", "malformed"]


class StoreObserver(Protocol):
    """Counts reads, cache answers and the state of the store. Every method is cheap, never blocks and never raises."""

    def secret_read(self, store: str, result: ReadResult) -> None:
        """One read that went to the store has ended."""

    def secret_cache(self, result: str) -> None:
        """One read was answered; `result` is a `CacheState`."""

    def secret_in_use(self, name: str, version: str, age_s: float) -> None:
        """This version of this secret was handed out; `age_s` seconds ago it was fetched."""

    def store_up(self, *, up: bool) -> None:
        """Whether the last contact with the store succeeded."""

    def token_ttl(self, ttl_s: float) -> None:
        """Seconds the store token still lives; infinity for one that does not expire."""


class Silent:
    """Tells nobody: for tools and tests."""

    def secret_read(self, store: str, result: ReadResult) -> None:
        pass

    def secret_cache(self, result: str) -> None:
        pass

    def secret_in_use(self, name: str, version: str, age_s: float) -> None:
        pass

    def store_up(self, *, up: bool) -> None:
        pass

    def token_ttl(self, ttl_s: float) -> None:
        pass
