"""What this room tells about itself while it works: a protocol, so that metrics live elsewhere and imports go one
way.
"""

from __future__ import annotations

from typing import Literal, Protocol

from vault.control import Control
from vault.uses import Opening

type ReadResult = Literal["ok", "unavailable", "denied", "missing", "malformed"]
type RejectionResult = Literal["retried", "retried_before", "unchanged", "not_replayable", "failed"]
"""`retried_before`: with the version before, inside `overlap_until`."""
type LoginResult = Literal["ok", "unavailable", "denied"]


class StoreObserver(Protocol):
    """Counts reads, cache answers and the state of the store. Every method is cheap, never blocks and never raises."""

    def secret_read(self, store: str, result: ReadResult) -> None:
        """One read that went to the store has ended."""

    def secret_cache(self, result: str) -> None:
        """One read was answered; `result` is a `CacheState`."""

    def secret_in_use(self, name: str, version: str, age_s: float) -> None:
        """This version of this secret was handed out; `age_s` seconds ago it was fetched."""

    def secret_changed(self, name: str, before: str, version: str) -> None:
        """Another version has taken the place of `before`; from now on this process hands it out."""

    def secret_last_used(self, name: str, version: str, last: Opening) -> None:
        """A version that is handed out no more was used for the last time, and that use has ended."""

    def secret_told(self, name: str, control: Control) -> None:
        """What the owners of a secret say about it has been read for the first time, or has changed."""

    def secret_rejected(self, result: RejectionResult) -> None:
        """An upstream has rejected a credential (401), and this is what was done about it."""

    def store_up(self, *, up: bool) -> None:
        """Whether the last contact with the store succeeded."""

    def store_login(self, result: LoginResult) -> None:
        """One login to the store has ended; a token file that was read counts."""

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

    def secret_changed(self, name: str, before: str, version: str) -> None:
        pass

    def secret_last_used(self, name: str, version: str, last: Opening) -> None:
        pass

    def secret_told(self, name: str, control: Control) -> None:
        pass

    def secret_rejected(self, result: RejectionResult) -> None:
        pass

    def store_up(self, *, up: bool) -> None:
        pass

    def store_login(self, result: LoginResult) -> None:
        pass

    def token_ttl(self, ttl_s: float) -> None:
        pass
