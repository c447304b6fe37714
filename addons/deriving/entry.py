"""What is remembered of one derived token."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn, final

from addons.credentials import TokenParts
from addons.deriving.failing import Failures
from vault.secret import Secret
from vault.store import CacheState, SealedSecret, SecretRef

type Inputs = dict[SecretRef, SealedSecret]
"""What a token is made of: one read of each secret."""

RENEW_AT: Final = 0.8


@final
class Token:
    """One token, and what it was made of. It counts as a use of those versions until it is dropped.

    Args:
        values: by the names that templates have for them.
        inputs: opened for it.
        began_s: monotonic, from when its life counts.
        life_s: of it.
    """

    __slots__ = ("_values", "began_s", "ends_s", "inputs", "parts", "renew_s")

    def __init__(self, values: Mapping[str, Secret], inputs: Inputs, began_s: float, life_s: float) -> None:
        self._values = values
        self.inputs = inputs
        self.parts = self._parts()
        self.began_s = began_s
        # One that ends on its way there is of no use.
        self.ends_s = began_s + life_s - min(5.0, life_s * 0.05)
        self.renew_s = began_s + life_s * RENEW_AT

    def _parts(self) -> TokenParts:
        # The values are the first one's: every record must be open, and no value needs to be there twice.
        empty: dict[str, Secret] = {}
        return tuple(one.derived(empty if number else self._values) for number, one in enumerate(self.inputs.values()))

    def bind(self, inputs: Inputs) -> None:
        """Other versions, which change nothing for it, take the place of those it was made of."""
        self.drop()
        self.inputs = {ref: one.again(one.cache, one.age_s) for ref, one in inputs.items()}
        for secret in self.inputs.values():
            secret.hold()
        self.parts = self._parts()

    def shown(self, cache: CacheState, now_s: float) -> TokenParts:
        """For one request."""
        return tuple(part.again(cache, max(now_s - self.began_s, 0.0)) for part in self.parts)

    def of(self, inputs: Inputs) -> bool:
        """Whether it was made of these versions."""
        return self.inputs.keys() == inputs.keys() and all(inputs[ref].same(mine) for ref, mine in self.inputs.items())

    def drop(self) -> None:
        """It is used no more."""
        for secret in self.inputs.values():
            secret.release()

    def __repr__(self) -> str:
        return "Token(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("tokens are not serialised")


@dataclass(frozen=True, slots=True)
class Pending:
    """A refresh token that is to be written back, and could not be so far."""

    ref: SecretRef
    field: str
    used: SealedSecret
    """What held the one in whose place it stands."""
    made: Secret


@dataclass(slots=True, eq=False)
class Entry:
    """One credential's token, for one workload where each has its own."""

    token: Token | None = None
    since_s: float | None = None
    """Since when its secrets have other versions than it was made of; None: they have not."""
    failures: Failures = field(default_factory=Failures)
    flight: asyncio.Task[None] | None = None
    launched: int = 0
    forced_s: float = 0.0
    """No token is made anew for a rejection before this."""
    waiting: int = 0
    pending: Pending | None = None
    timer: asyncio.TimerHandle | None = None
