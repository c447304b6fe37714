"""What a check is and what it says: the nouns that the checks share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ostiary.settings.model import Settings
from policies import Policy

type State = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. Names, paths, codes and reasons; never a secret.

    `mend` says what to do, and is there for `fail` and `warn`.
    """

    id: str
    state: State
    found: str
    mend: str = ""


def counted(count: int, noun: str) -> str:
    """`1 route`, `2 routes`."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


@dataclass(slots=True)
class Setup:
    """What checks look at. `settings` and `policy` are there once they have loaded."""

    environ: Mapping[str, str]
    settings: Settings | None = None
    policy: Policy | None = None
    store: Any = None
    token_ttl_s: float | None = None
    not_logged_in: bool = False
    """A login would have used up what `run` needs, so none was made."""
    deadline_s: float = 5.0
    """For each wait on a network."""

    @property
    def loaded(self) -> tuple[Settings, Policy]:
        """Settings and policy; asked for only by checks that need `settings.load`."""
        if self.settings is None or self.policy is None:
            raise LookupError("the settings have not loaded")
        return self.settings, self.policy


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its public id, what it asks, what must have passed before, and how it is made."""

    id: str
    asks: str
    run: Callable[[Setup], Awaitable[list[Finding]]]
    needs: tuple[str, ...] = ("settings.load",)
