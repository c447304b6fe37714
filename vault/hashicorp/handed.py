"""A token that another process of ours logged in for: the worker's side of one login for all workers.

It is asked for, never made here: not renewed, not revoked. The process that made it does both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from vault.hashicorp.methods import Issued
from vault.secret import Secret


@dataclass(frozen=True, slots=True)
class Handed:
    """A token, and which login of the other process it is of."""

    number: int
    token: Secret
    ttl_s: float
    """What is left of it; infinity for one that does not end."""


type Ask = Callable[[int, bool], Awaitable[Handed]]
"""Given the number of the login that is known (0 for none) and whether Vault refused it, the login to use now. Raises
`SecretUnavailable` or `SecretDenied`, with Vault's reason."""


class HandedOn:
    """A `Method` that asks the other process."""

    watches: Final = False
    scarce: Final = False

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._number = 0
        self._doubted = False
        self.same = False
        """Whether the last answer was the login that was known already."""

    async def examine(self) -> str:
        return ""

    def changed(self) -> bool:
        return False

    def doubt(self) -> None:
        """A read with the token that is known met a 403: the next question says so."""
        self._doubted = True

    async def log_in(self) -> Issued:
        while True:
            known, doubted, self._doubted = self._number, self._doubted, False
            handed = await self._ask(known, doubted)
            self._number = handed.number
            if self._doubted and handed.number == known:
                continue  # doubted while it was asked about without doubt
            self._doubted, self.same = False, handed.number == known
            return Issued(handed.token, handed.ttl_s, renewable=False, own=False)
