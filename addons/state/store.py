"""The one interface behind which the few facts live that must survive a restart or be shared by processes: counters of
limits, nonces that were used, kills and address rules.

Rules:
- Three kinds of fact, three name spaces: marks (`once`), counters (`add`) and buckets (`take`), kept items (`put`).
- Every call is atomic, for all processes that share the store, and has a deadline of its own.
- Every failure is a `StateError`. Its text holds names, codes and reasons, never a value or a password. Nothing else is
  raised.
- Nothing is evicted but what has expired. A store that is full says `StateFull`: a mark that was dropped early would let
  a replay through.
- Whose clock counts: `valkey` judges by the server's, `sqlite` by the wall clock of the machine (its processes share
  it, and it goes on over restarts), `memory` by the monotonic clock of the process. Callers pass spans, never instants.
- A call that ended with `StateUnavailable` may have taken effect all the same: a counter may count too much and a mark
  may be used up, never the other way round.

`memory.py`, `sqlite.py` and `valkey.py` are the stores; `guarded.py` gives any of them its deadline, circuit breaker and
metrics. tests/addons/state/conformance is the one suite that all of them pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

MAX_KEY_BYTES: Final = 512
MAX_VALUE_BYTES: Final = 64 * 1024
MAX_AMOUNT: Final = 2**53 - 1
"""Of a counter: the largest whole number that every store holds exactly."""
MAX_TTL_S: Final = 400 * 86_400.0
MAX_KEPT: Final = 4096
"""Kept items in one store."""
MAX_KEPT_BYTES: Final = 8 * 1024 * 1024
"""Of keys and values of all kept items together: what one listing may weigh."""
NOTHING: Final = "-:0"
"""The revision of a store in which nothing was ever kept."""


type StoreName = Literal["memory", "sqlite", "valkey"]


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a counter."""

    value: int
    """After the call; where nothing was added, as it stands."""
    added: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """What a bucket said."""

    allowed: bool
    retry_after_s: float
    """0 when allowed; else how long until the same cost would be, if nobody else takes."""


@dataclass(frozen=True, slots=True)
class Item:
    """A kept value."""

    key: str
    value: bytes = field(repr=False)
    version: int
    """Grows with every `put` in the whole store: a key that was deleted and put anew never shows an old one."""
    ttl_left_s: float | None
    """None: it does not expire."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Every kept item below a prefix, at one revision, by key."""

    revision: str
    """`<epoch>:<number>`. Compared for equality alone. Another epoch means that the store lost what it held."""
    items: tuple[Item, ...]

    @property
    def epoch(self) -> str:
        return self.revision.partition(":")[0]


class StateStore(Protocol):
    """Facts that survive or are shared. Every method raises `StateError` alone."""

    name: StoreName

    async def once(self, key: str, ttl_s: float) -> bool:
        """True the first time within `ttl_s`, False ever after: a nonce is used up by asking."""

    async def add(self, key: str, amount: int, ttl_s: float, limit: int | None = None) -> Added:
        """Adds to a counter, which begins at 0 and ends `ttl_s` after it began (later calls do not prolong it).

        A positive amount that would lift the counter above `limit` adds nothing: many parallel reservations never
        overshoot. A negative amount gives back, never below 0, and begins no counter. 0 reads.
        """

    async def take(self, key: str, cost: float, capacity: float, refill_per_s: float) -> Taken:
        """Takes `cost` tokens from a bucket that begins full with `capacity` and refills steadily."""

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        """Keeps a value; returns its version.

        Args:
            key: its name.
            value: small.
            ttl_s: None keeps it until it is deleted.
            expect: the version that must stand there, 0 for none; None replaces whatever stands there.

        Raises:
            StateConflict: another version stands there.
        """

    async def get(self, key: str) -> Item | None:
        """The kept item, None where there is none or it has expired."""

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """Whether there was something to delete.

        Raises:
            StateConflict: another version stands there.
        """

    async def items(self, prefix: str = "") -> Listing:
        """Every kept item whose key begins with `prefix`."""

    async def changes(self, since: str, prefix: str = "") -> Listing | None:
        """None while the store is still at the revision `since`, else what `items` gives: cheap enough to ask several
        times a second. Expiry is no change; items tell when they end.
        """

    async def probe(self) -> None:
        """Whether the store could serve now."""

    async def close(self) -> None:
        """Ends connections and threads."""


class StateError(Exception):
    """Root of what a state store can say no with."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StateUnavailable(StateError):
    """An outage: down, slow, locked, damaged, denied."""

    def __init__(self, reason: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class StateFull(StateError):
    """A bound is reached and nothing has expired. What was to be marked or kept is not."""


class StateConflict(StateError):
    """Another version stands there than was expected."""

    def __init__(self, key: str, version: int) -> None:
        super().__init__(f"{key} stands at version {version}")
        self.version = version
        """What stands there; 0: nothing."""


class StateMisuse(StateError):
    """A key, value, span or amount out of bounds: the caller's fault, and nothing was sent."""


class StateObserver(Protocol):
    """Counts calls and the state of the store. Every method is cheap, never blocks and never raises."""

    def state_call(self, operation: str, result: str, duration_s: float) -> None:
        """One call has ended: `ok`, `unavailable`, `full`, `conflict` or `misuse`."""

    def state_up(self, *, up: bool) -> None:
        """Whether the last contact succeeded."""

    def state_local(self, operation: str, result: str) -> None:
        """During an outage one process decided alone: `allowed`, `limited` or `denied`."""

    def state_age(self, prefix: str, age_s: float) -> None:
        """How old what is remembered below a prefix is."""


class SilentState:
    """Tells nobody: for tools and tests."""

    def state_call(self, operation: str, result: str, duration_s: float) -> None:
        pass

    def state_up(self, *, up: bool) -> None:
        pass

    def state_local(self, operation: str, result: str) -> None:
        pass

    def state_age(self, prefix: str, age_s: float) -> None:
        pass
