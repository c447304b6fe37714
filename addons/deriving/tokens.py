"""The tokens of one process: one flight each, renewed ahead, failures remembered, all of it bounded.

Rules:
- A token belongs to a grant, the secrets it names, the way to its endpoint, and the workload where each has its own. Routes
  that share a credential share it.
- From 80 % of its life on, the first request also begins its renewal, and is served the old one meanwhile.
- It is bound to the versions of its secrets. Where one of them has another version, a new token is made, and the old one
  serves until it is there: make before break. Should the new one not come, the old one serves no longer than `max_stale`.
  A secret that the store denies, or that is deleted, ends the use of its token at once: it is read for every request.
- However many wait, there is one flight, with one deadline over all it does; a waiter that goes away does not end it.
- A failure is remembered, for as long as the secrets are the same (`failing.py`). A token that still lives serves through it.
- An upstream that rejects a token (401) has another made, once in 5 s whoever asks; the old one goes when the new one is
  there, so that a hostile upstream takes nothing away.
- A token that has ended is dropped then, asked for or not.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from addons.audit import AuditUnavailable
from addons.boundary import place_of
from addons.clock import Clock
from addons.credentials import TokenParts, refusal_for
from addons.deriving.entry import Entry, Inputs, Token
from addons.refusal import Code, Refusal
from vault.store import SealedSecret, StoreError

_log = logging.getLogger("ostiary.deriving")

DEADLINE_S: Final = 10.0
"""Over one flight."""
CAPACITY: Final = 4096
FLIGHTS: Final = 64
"""Under way at once."""
FORCED_S: Final = 5.0
_TRIES: Final = 3
"""Flights that one request waits for: the first may have been for versions of before."""


class Maker(Protocol):
    """Makes one kind of token (`source.py`)."""

    @property
    def word(self) -> str:
        """The grant, as metrics name it."""

    async def make(self, entry: Entry, inputs: Inputs, workload: str) -> Token:
        """One flight's work.

        Raises:
            Refusal, StoreError, AuditUnavailable.
        """

    def serves(self, token: Token, inputs: Inputs) -> bool:
        """Whether other versions than those it was made of change nothing for a token."""

    @property
    def max_stale_s(self) -> float:
        """How long a token of other versions serves where no new one comes."""


class TokenObserver(Protocol):
    def token_made(self, grant: str, result: str) -> None:
        """A flight has ended: `ok`, or the code of a refusal."""


class Tokens:
    """Remembers tokens.

    Args:
        clock: monotonic seconds.
        observer: told of flights.
        capacity: tokens remembered.
        jitter: gives a number in [0, 1).
    """

    def __init__(
        self,
        clock: Clock,
        observer: TokenObserver,
        *,
        capacity: int = CAPACITY,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._now_s = clock.monotonic_s
        self._observer = observer
        self._capacity = capacity
        self._jitter = jitter
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._flights = asyncio.Semaphore(FLIGHTS)

    def __len__(self) -> int:
        return len(self._entries)

    # --- for requests ---

    def now(self, key: Hashable, maker: Maker, inputs: Inputs, workload: str) -> TokenParts | None:
        """The token, if it can be had without waiting."""
        entry = self._entries.get(key)
        if entry is None or entry.token is None:
            return None
        self._entries.move_to_end(key)
        return self._served(entry, maker, inputs, workload)

    def _served(self, entry: Entry, maker: Maker, inputs: Inputs, workload: str) -> TokenParts | None:
        token, now_s = entry.token, self._now_s()
        if token is None or now_s >= token.ends_s:
            return None
        if not token.of(inputs):
            if not maker.serves(token, inputs):
                return self._stale(entry, token, maker, inputs, workload)
            token.bind(inputs)
        entry.since_s = None
        if now_s >= token.renew_s and entry.flight is None and self._may_try(entry, inputs):
            self._launch(entry, maker, inputs, workload)
        return token.shown("hit", now_s)

    def _stale(self, entry: Entry, token: Token, maker: Maker, inputs: Inputs, workload: str) -> TokenParts | None:
        """A token of other versions, while that of these is made."""
        now_s = self._now_s()
        if entry.since_s is None:
            entry.since_s = now_s
        if entry.flight is None and self._may_try(entry, inputs):
            self._launch(entry, maker, inputs, workload)
        return token.shown("stale", now_s) if now_s - entry.since_s < maker.max_stale_s else None

    def _may_try(self, entry: Entry, inputs: Inputs) -> bool:
        return entry.failures.allow(inputs, self._now_s())

    async def read(self, key: Hashable, maker: Maker, inputs: Inputs, workload: str) -> TokenParts:
        """The token, waited for where it has to be.

        Raises:
            Refusal: why there is none.
        """
        entry = self._entry(key)
        for _ in range(_TRIES):
            found = self._served(entry, maker, inputs, workload)
            if found is not None:
                return found
            if entry.flight is None and not self._may_try(entry, inputs):
                break
            await self._land(entry, maker, inputs, workload)
            token, now_s = entry.token, self._now_s()
            if token is not None and now_s < token.ends_s and token.of(inputs):
                return token.shown("miss", now_s)
            if entry.failures.are_of(inputs):
                break
        raise entry.failures.again(self._now_s())

    async def other(
        self, key: Hashable, maker: Maker, inputs: Inputs, workload: str, used: SealedSecret
    ) -> TokenParts | None:
        """Another token than the one rejected, of these versions."""
        entry = self._entry(key)
        token, now_s = entry.token, self._now_s()
        if token is not None and now_s < token.ends_s and not used.is_again(token.parts[0]) and token.of(inputs):
            return token.shown("hit", now_s)
        if entry.flight is None:
            new = token is not None and not token.of(inputs) and not maker.serves(token, inputs)
            if not self._may_try(entry, inputs) or (not new and now_s < entry.forced_s):
                return None
            entry.forced_s = now_s + FORCED_S
        await self._land(entry, maker, inputs, workload)
        token, now_s = entry.token, self._now_s()
        if token is None or now_s >= token.ends_s or used.is_again(token.parts[0]):
            return None
        return token.shown("bypass", now_s)

    def suspect(self, key: Hashable, maker: Maker, inputs: Inputs, workload: str, used: SealedSecret) -> None:
        """Has another made, behind the back of a request."""
        entry = self._entries.get(key)
        now_s = self._now_s()
        if entry is None or entry.token is None or entry.flight is not None or now_s < entry.forced_s:
            return
        if used.is_again(entry.token.parts[0]) and self._may_try(entry, inputs):
            entry.forced_s = now_s + FORCED_S
            self._launch(entry, maker, inputs, workload)

    # --- flights ---

    def _entry(self, key: Hashable) -> Entry:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            return entry
        entry = self._entries[key] = Entry()
        while len(self._entries) > self._capacity:
            idle = (
                known
                for known, found in self._entries.items()
                if found.flight is None and not found.waiting and found.pending is None and found is not entry
            )
            oldest = next(idle, None)
            if oldest is None:
                break
            self._put(self._entries.pop(oldest), None)
        return entry

    async def _land(self, entry: Entry, maker: Maker, inputs: Inputs, workload: str) -> None:
        entry.waiting += 1
        try:
            if entry.flight is None:
                self._launch(entry, maker, inputs, workload)
            if entry.flight is not None:
                # Shielded: the flight belongs to everyone who waits for it.
                await asyncio.shield(entry.flight)
        finally:
            entry.waiting -= 1

    def _launch(self, entry: Entry, maker: Maker, inputs: Inputs, workload: str) -> None:
        entry.launched += 1
        # Of its own: those of the request are opened and released with it.
        own = {ref: one.again(one.cache, one.age_s) for ref, one in inputs.items()}
        flight = self._fly(entry, maker, own, workload)
        # In a context of its own: it belongs to everyone, so what was said of the request that began it is not said of it.
        entry.flight = asyncio.get_running_loop().create_task(flight, context=contextvars.Context())

    async def _fly(self, entry: Entry, maker: Maker, inputs: Inputs, workload: str) -> None:
        result = "cancelled"
        try:
            async with asyncio.timeout(DEADLINE_S), self._flights:
                token = await maker.make(entry, inputs, workload)
            self._check(token)
        except Refusal as refusal:
            result = self._failed(entry, inputs, refusal)
        except StoreError as error:
            result = self._failed(entry, inputs, refusal_for(error))
        except AuditUnavailable:
            why = "No audit record can be written, so no credential is used."
            result = self._failed(entry, inputs, Refusal(Code.AUDIT_UNAVAILABLE, why, retry_after_s=1.0))
        except TimeoutError:
            why = f"The token was not made within {DEADLINE_S:.0f} s."
            result = self._failed(entry, inputs, Refusal(Code.SECRET_UNAVAILABLE, why, retry_after_s=1.0))
        except Exception as error:  # noqa: BLE001 - whatever fails here is a refusal, and its text may hold anything
            _log.error("a token was not made: %s at %s", type(error).__name__, place_of(error))
            result = self._failed(entry, inputs, Refusal(Code.INTERNAL, "The token could not be made."))
        else:
            self._put(entry, token)
            entry.failures.forget()
            result = "ok"
        finally:
            entry.flight = None
            self._observer.token_made(maker.word, result)

    def _check(self, token: Token) -> None:
        """One that ended on its way is a failure, so that it is remembered as one: else every request would ask again."""
        if not self._now_s() < token.ends_s:
            token.drop()
            why = "The token had ended when it was there."
            raise Refusal(Code.SECRET_UNAVAILABLE, why, retry_after_s=1.0)

    def _put(self, entry: Entry, token: Token | None) -> None:
        """Exchanges the token."""
        before, entry.token = entry.token, token
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if token is not None:
            wait_s = max(token.ends_s - self._now_s(), 0.0)
            entry.timer = asyncio.get_running_loop().call_later(wait_s, self._put, entry, None)
            entry.since_s = None
        if before is not None:
            before.drop()

    def _failed(self, entry: Entry, inputs: Inputs, refusal: Refusal) -> str:
        if entry.failures.note(inputs, refusal, self._now_s(), self._jitter()):
            _log.warning("%s", refusal.message)
        return refusal.code.value

    async def close(self) -> None:
        """Ends flights, and drops everything."""
        flights = [entry.flight for entry in self._entries.values() if entry.flight is not None]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        for entry in self._entries.values():
            self._put(entry, None)
        self._entries.clear()
