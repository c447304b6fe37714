"""Leases of dynamic secrets: one for each reference, kept alive while it is used, replaced before it ends.

Rules:
- One lease for each reference (a role, for one route), one flight for it; all fields a request gets are of one lease.
- Renewed at 2/3 of its life, with jitter, where it is renewable and was used since. Replaced at 85 % where it is not, where
  the renewal was refused, and where a renewal gives less than the lease had: its max TTL is near.
- Make before break: the old lease serves until the new one is there. It is revoked when no request holds it any more and
  a grace has passed.
- During an outage a lease serves to its own end and not a moment longer, whatever `max_stale` says. It ends by the
  monotonic clock, counted from before it was asked for.
- A lease that the store no longer knows is dropped at once. A store that says no ends what was served before.
- A lease that was made under another login is replaced: it dies with that login's token.
- An upstream that rejects a lease has it replaced once; then not before a pause that doubles, since callers can have it
  rejected at will and each lease may be a user in somebody's database.
- `close` revokes all own leases in bounded time.

Reads of all other secrets go to the source behind.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable

from vault.control import NOTHING
from vault.entry import Known
from vault.failures import again, result_of
from vault.observer import ReadResult, Silent, StoreObserver
from vault.store import (
    CacheState,
    SealedSecret,
    SecretMalformed,
    SecretMissing,
    SecretRef,
    SecretSource,
    SecretUnavailable,
    SecretVersion,
    StoreError,
)

_log = logging.getLogger("ostiary.vault")

RENEW_AT: Final = 2 / 3
JITTER: Final = 0.1
"""By how much of its life at most a renewal comes earlier."""
REPLACE_AT: Final = 0.85
NEAR_MAX: Final = 0.9
"""A renewal that gives less than this part of what the lease had first: its max TTL is near."""
SPARE_S: Final = 1.0
"""Before its end a lease is used no more: a request needs a moment to arrive."""
GRACE_S: Final = 5.0
"""After its last use, before it is revoked: an upstream may look the user up again while it answers."""
REFUSED_S: Final = 2.0
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 300.0
REJECTED_FIRST_S: Final = 5.0
REJECTED_MOST_S: Final = 300.0
DEADLINE_S: Final = 10.0
"""Stores keep a deadline of 2 s; this guards against one that does not."""
CLOSE_S: Final = 5.0
TICK_S: Final = 1.0
MOST: Final = 1000
"""Leases that are kept; the one unused for longest goes first. As many old ones may wait to be revoked."""
AT_ONCE: Final = 8
"""Revocations under way."""


@dataclass(frozen=True, slots=True)
class LeaseRef(SecretRef):
    """Names one dynamic secret: `path` is what is read to make it (`database/creds/ROLE`)."""

    holder: str = ""
    """The route that it is lent to: each has its own, so that the owner of a database can tell them apart."""

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Leased:
    """What a store made: the values, and for how long they are lent."""

    version: SecretVersion
    lease_id: str
    """No secret, but enough to revoke by for whoever may."""
    life_s: float
    renewable: bool
    login: int
    """Number of the login that it was made under."""


class LeaseGone(Exception):
    """The store knows this lease no more."""


@runtime_checkable
class LeasingStore(Protocol):
    """A store that lends. Every method has a total deadline and raises `StoreError`, `renew` also `LeaseGone`."""

    def login(self) -> int:
        """Number of the login in use; another number is another token."""

    def keep_login(self, lent: Callable[[], bool]) -> None:
        """While `lent` says so, a login that still lives is not replaced because a secret was denied: every lease of it
        would end.
        """

    async def lease(self, ref: LeaseRef) -> Leased:
        """Makes a new secret. Raises as `SecretStore.fetch`."""

    async def renew(self, ref: LeaseRef, leased: Leased) -> float:
        """Asks for as much life as it had first; gives what is granted from now on, in seconds.

        Raises:
            LeaseGone: revoked or run out.
            SecretDenied, SecretMissing, SecretMalformed: it is not to be renewed.
            SecretUnavailable: an outage.
        """

    async def revoke(self, ref: LeaseRef, leased: Leased) -> None:
        """Ends it. One that is gone already is no error."""


@dataclass(slots=True, eq=False)
class _Held:
    leased: Leased
    ends_s: float
    due_s: float
    """When it is to be renewed or replaced."""
    renewable: bool
    used: bool = True
    """Since it was made or renewed last."""


@dataclass(slots=True, eq=False)
class _Old:
    ref: LeaseRef
    held: _Held
    idle_s: float | None = None
    """Since when no request holds it, or the store could not be told to end it."""
    wait_s: float = GRACE_S
    """For how long it must be so, before it is revoked."""


@dataclass(slots=True, eq=False)
class _Entry:
    held: _Held | None = None
    before: SecretVersion | None = None
    """The one that `held` has replaced, without its values."""
    taken_s: float = 0.0
    flight: asyncio.Task[None] | None = None
    launched: int = 0
    failure: StoreError | None = None
    failures: int = 0
    retry_s: float = 0.0
    last: str = ""
    rejected_s: float = -math.inf
    """No rejected lease is replaced before this."""
    rejected_wait_s: float = REJECTED_FIRST_S
    waiting: int = 0


class Leases:
    """A `SecretSource` of leased secrets, and of all else that is behind it.

    Args:
        behind: gives what is not leased.
        store: makes, renews and revokes; None: nothing is lent.
        clock_s: monotonic.
        observer: told as of any secret.
        jitter: gives a number in [0, 1).
    """

    def __init__(
        self,
        behind: SecretSource,
        store: LeasingStore | None,
        clock_s: Callable[[], float],
        observer: StoreObserver | None = None,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._behind = behind
        self._store = store
        self._clock_s = clock_s
        self._observer = observer or Silent()
        self._jitter = jitter
        self._entries: OrderedDict[LeaseRef, _Entry] = OrderedDict()
        self._old: list[_Old] = []
        self._revoking: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._named: Callable[[LeaseRef], bool] = lambda _: True

    def only(self, named: Callable[[LeaseRef], bool]) -> None:
        """What `named` does not name is given back at the next tick, however long it would live: no route has it now."""
        self._named = named

    async def read(
        self, ref: SecretRef, *, ttl_s: float, max_stale_s: float, watch_s: float = 0.0, bypass: bool = False
    ) -> SealedSecret:
        """See `SecretSource.read`. `bypass` takes a new lease."""
        if not isinstance(ref, LeaseRef):
            return await self._behind.read(ref, ttl_s=ttl_s, max_stale_s=max_stale_s, watch_s=watch_s, bypass=bypass)
        if not bypass and (known := self.read_now(ref, ttl_s=ttl_s)) is not None:
            return known
        entry = self._entry(ref)
        before = entry.launched
        entry.waiting += 1
        try:
            if entry.flight is not None:
                await asyncio.shield(entry.flight)
            if bypass:
                wanted = entry.launched == before  # one that was begun after this was asked for; of many, one begins it
            else:
                wanted = self._usable(entry) is None and self._clock_s() >= entry.retry_s
            if wanted:
                self._launch(ref, entry, fresh=True)
            if entry.flight is not None:
                await asyncio.shield(entry.flight)
        finally:
            entry.waiting -= 1
        held = self._usable(entry)
        if held is not None and (entry.failure is None or not bypass):
            return self._answer(ref, entry, held, "bypass" if bypass else "miss")
        raise again(
            entry.failure or SecretUnavailable(ref.name, "its lease has ended"),
            max(entry.retry_s - self._clock_s(), 0.0),
        )

    def read_now(self, ref: SecretRef, *, ttl_s: float, watch_s: float = 0.0) -> SealedSecret | None:
        """See `SecretSource.read_now`."""
        if not isinstance(ref, LeaseRef):
            return self._behind.read_now(ref, ttl_s=ttl_s, watch_s=watch_s)
        entry = self._entries.get(ref)
        held = None if entry is None else self._usable(entry)
        if entry is None or held is None:
            return None
        held.used = True
        self._look_after(ref, entry)
        self._entries.move_to_end(ref)
        return self._answer(ref, entry, held, "hit" if entry.failure is None else "stale")

    async def read_other(self, ref: SecretRef, used: SealedSecret, *, ttl_s: float) -> SealedSecret | None:
        """See `SecretSource.read_other`."""
        if not isinstance(ref, LeaseRef):
            return await self._behind.read_other(ref, used, ttl_s=ttl_s)
        self.suspect(ref, used)
        entry = self._entries.get(ref)
        if entry is None:
            return None
        if entry.flight is not None:
            await asyncio.shield(entry.flight)
        held = self._usable(entry)
        if held is None or held.leased.version.version == used.version:
            return None
        return self._answer(ref, entry, held, "bypass")

    def suspect(self, ref: SecretRef, used: SealedSecret) -> None:
        """See `SecretSource.suspect`. A lease rejected late, when another serves already, changes nothing."""
        if not isinstance(ref, LeaseRef):
            self._behind.suspect(ref, used)
            return
        entry, now_s = self._entries.get(ref), self._clock_s()
        if entry is None or entry.flight is not None or now_s < max(entry.rejected_s, entry.retry_s):
            return
        if entry.held is None or entry.held.leased.version.version != used.version:
            return
        quiet = now_s - entry.rejected_s > REJECTED_MOST_S
        entry.rejected_wait_s = REJECTED_FIRST_S if quiet else min(entry.rejected_wait_s * 2, REJECTED_MOST_S)
        entry.rejected_s = now_s + entry.rejected_wait_s
        self._launch(ref, entry, fresh=True)

    def known(self, ref: SecretRef) -> Known | None:
        """See `SecretSource.known`."""
        if not isinstance(ref, LeaseRef):
            return self._behind.known(ref)
        entry = self._entries.get(ref)
        if entry is None:
            return None
        now = None if entry.held is None else entry.held.leased.version
        return Known(
            version=None if now is None else now.version,
            created_at=None if now is None else now.created_at,
            age_s=max(self._clock_s() - entry.taken_s, 0.0),
            problem=None if entry.failure is None else entry.failure.reason,
            control=NOTHING,
            live=0 if now is None else now.uses.live,
            last=None if now is None else now.uses.last,
            before=None if entry.before is None else entry.before.version,
            before_live=0 if entry.before is None else entry.before.uses.live,
            before_last=None if entry.before is None else entry.before.uses.last,
            lease=None if now is None else now.lease,
            lease_s=None if entry.held is None else max(entry.held.ends_s - self._clock_s(), 0.0),
        )

    def left_s(self, ref: LeaseRef) -> float | None:
        """Seconds to the end of the lease that serves; None where none does."""
        entry = self._entries.get(ref)
        held = None if entry is None else self._usable(entry)
        return None if held is None else held.ends_s - self._clock_s()

    def tick(self) -> None:
        """Begins what is due: renewals, replacements, revocations. The keeper calls it each second."""
        for ref, entry in list(self._entries.items()):
            if entry.flight is None and not entry.waiting and not self._named(ref):
                del self._entries[ref]
                if entry.held is not None:
                    self._retire(ref, entry.held)
                continue
            self._look_after(ref, entry)
        self._sweep()

    async def close(self) -> None:
        """Waits for what is being made, and revokes all own leases: both within `CLOSE_S`. What is left over then ends
        with the login's token, or by itself.
        """
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(CLOSE_S):
                flights = [entry.flight for entry in self._entries.values() if entry.flight is not None]
                tasks = [*flights, *self._revoking]
                await asyncio.gather(*tasks, return_exceptions=True)
                rest = [(old.ref, old.held) for old in self._old]
                rest += [(ref, entry.held) for ref, entry in self._entries.items() if entry.held is not None]
                gate = asyncio.Semaphore(AT_ONCE)

                async def end(ref: LeaseRef, held: _Held) -> None:
                    async with gate:
                        await self._revoke(ref, held)

                tasks = [asyncio.ensure_future(end(ref, held)) for ref, held in rest]
                await asyncio.gather(*tasks, return_exceptions=True)
        except TimeoutError:
            _log.warning("not all leases were revoked at the end: Vault did not answer in time")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._entries.clear()
        self._old.clear()

    def _lender(self, ref: LeaseRef) -> LeasingStore:
        if self._store is None:
            raise SecretMissing(ref.name, "needs Vault: the embedded store lends nothing")
        return self._store

    # --- one lease ---

    def _entry(self, ref: LeaseRef) -> _Entry:
        entry = self._entries.get(ref)
        if entry is not None:
            return entry
        if len(self._entries) >= MOST:
            idle = next((one for one, it in self._entries.items() if it.flight is None and not it.waiting), None)
            if idle is None:
                raise SecretUnavailable(ref.name, "too many leases are being made at once")
            gone = self._entries.pop(idle)
            if gone.held is not None:
                self._retire(idle, gone.held)
        entry = self._entries[ref] = _Entry()
        return entry

    def _usable(self, entry: _Entry) -> _Held | None:
        held = entry.held
        return held if held is not None and self._clock_s() < held.ends_s - SPARE_S else None

    def _answer(self, ref: LeaseRef, entry: _Entry, held: _Held, state: CacheState) -> SealedSecret:
        held.used = True
        age_s = max(self._clock_s() - entry.taken_s, 0.0)
        version = held.leased.version
        self._observer.secret_cache(state)
        self._observer.secret_in_use(ref.name, version.version, age_s)
        return SealedSecret(ref.name, version, cache=state, age_s=age_s)

    def _look_after(self, ref: LeaseRef, entry: _Entry) -> None:
        held, now_s = entry.held, self._clock_s()
        if held is None or entry.flight is not None or self._closed:
            return
        if now_s >= held.ends_s:
            # The store has ended it; nobody needs to.
            self._gone(ref, entry, held)
            return
        wanted = held.used or held.leased.version.uses.live > 0
        if not wanted or now_s < entry.retry_s:
            return  # unused, it runs out
        if held.leased.login != self._lender(ref).login():
            self._launch(ref, entry, fresh=True)
        elif now_s >= held.due_s:
            self._launch(ref, entry, fresh=not held.renewable)

    def _launch(self, ref: LeaseRef, entry: _Entry, *, fresh: bool) -> None:
        if self._closed:
            entry.failure = SecretUnavailable(ref.name, "is not leased any more: this process ends")
            return
        loop = asyncio.get_running_loop()
        entry.launched += 1
        entry.flight = loop.create_task(self._fly(ref, entry, fresh=fresh))
        if self._keeper is None:
            self._keeper = loop.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    async def _fly(self, ref: LeaseRef, entry: _Entry, *, fresh: bool) -> None:
        result: ReadResult = "unavailable"
        try:
            async with asyncio.timeout(DEADLINE_S):
                if fresh or not await self._renewed(ref, entry):
                    began_s = self._clock_s()
                    self._took(ref, entry, await self._lender(ref).lease(ref), began_s)
            entry.failure, entry.failures, entry.retry_s = None, 0, 0.0
            result = "ok"
        except StoreError as error:
            result = self._failed(ref, entry, error)
        except TimeoutError:
            result = self._failed(ref, entry, SecretUnavailable(ref.name, "the store did not answer in time"))
        except Exception as error:  # noqa: BLE001 - a store that breaks its contract is an outage, and its text may hold anything
            result = self._failed(ref, entry, SecretUnavailable(ref.name, f"the store failed ({type(error).__name__})"))
        finally:
            entry.flight = None
            self._observer.secret_read("vault", result)

    async def _renewed(self, ref: LeaseRef, entry: _Entry) -> bool:
        """Whether nothing more is to be done now. False: a new lease is needed at once."""
        held = entry.held
        if held is None:
            return False
        began_s = self._clock_s()
        try:
            granted_s = await self._lender(ref).renew(ref, held.leased)
        except LeaseGone:
            # Revoked behind our back: its user is gone, and so is all that it opened.
            self._gone(ref, entry, held)
            return False
        except SecretUnavailable:
            if self._clock_s() >= held.ends_s - (1 - REPLACE_AT) * held.leased.life_s:
                return False
            raise
        except StoreError:
            self._end_renewals(held)
            return self._clock_s() < held.due_s
        held.used = False
        held.ends_s = max(began_s + granted_s, 0.0)
        if granted_s < held.leased.life_s * NEAR_MAX:
            held.renewable = False
            held.due_s = began_s + granted_s * REPLACE_AT
            return self._clock_s() < held.due_s
        held.due_s = began_s + granted_s * (RENEW_AT - JITTER * self._jitter())
        return True

    def _end_renewals(self, held: _Held) -> None:
        held.renewable = False
        held.due_s = held.ends_s - (1 - REPLACE_AT) * held.leased.life_s

    def _took(self, ref: LeaseRef, entry: _Entry, leased: Leased, began_s: float) -> None:
        part = RENEW_AT - JITTER * self._jitter() if leased.renewable else REPLACE_AT
        held = _Held(leased, began_s + leased.life_s, began_s + leased.life_s * part, leased.renewable)
        if entry.held is not None:
            entry.before = replace(entry.held.leased.version, fields={})
            self._retire(ref, entry.held)
        entry.held, entry.taken_s = held, began_s
        number = leased.version.version
        if entry.last and entry.last != number:
            self._observer.secret_changed(ref.name, entry.last, number)
        entry.last = number
        if self._usable(entry) is None:
            raise SecretMalformed(ref.name, "is leased for too short a time to be used")

    def _failed(self, ref: LeaseRef, entry: _Entry, error: StoreError) -> ReadResult:
        now_s = self._clock_s()
        entry.failure = error
        if isinstance(error, SecretUnavailable):
            entry.failures += 1
            pause_s = min(RETRY_FIRST_S * 2 ** min(entry.failures - 1, 16), RETRY_MOST_S)
            # Once it has ended requests fail: then the store is asked often, and at its end at once.
            held = self._usable(entry)
            pause_s = min(pause_s, REFUSED_S if held is None else held.ends_s - SPARE_S - now_s)
            entry.retry_s = now_s + pause_s * (0.5 + self._jitter() / 2)
            return "unavailable"
        if entry.held is not None:
            self._retire(ref, entry.held)
            entry.held = None
        entry.retry_s = now_s + REFUSED_S
        return result_of(error)

    # --- old leases ---

    def _gone(self, ref: LeaseRef, entry: _Entry, held: _Held) -> None:
        entry.held = None
        self._uses_end(ref, held)

    def _uses_end(self, ref: LeaseRef, held: _Held) -> None:
        name, version = ref.name, held.leased.version
        version.uses.retire(lambda last: self._observer.secret_last_used(name, version.version, last))

    def _retire(self, ref: LeaseRef, held: _Held) -> None:
        self._uses_end(ref, held)
        if len(self._old) >= MOST:
            self._old.pop(0)  # it ends by itself
        self._old.append(_Old(ref, held))

    def _sweep(self) -> None:
        now_s = self._clock_s()
        kept: list[_Old] = []
        for old in self._old:
            if now_s >= old.held.ends_s:
                continue
            if old.held.leased.version.uses.live > 0:
                old.idle_s = None
            elif old.idle_s is None:
                old.idle_s = now_s
            if old.idle_s is None or now_s - old.idle_s < old.wait_s or len(self._revoking) >= AT_ONCE:
                kept.append(old)
                continue
            task = asyncio.get_running_loop().create_task(self._end(old))
            self._revoking.add(task)
            task.add_done_callback(self._revoking.discard)
        self._old = kept

    async def _end(self, old: _Old) -> None:
        """Revokes it; later once more where that failed. `close` waits for this, and takes what is left."""
        if await self._revoke(old.ref, old.held) or len(self._old) >= MOST:
            return
        old.idle_s, old.wait_s = self._clock_s(), min(old.wait_s * 2, RETRY_MOST_S)
        self._old.append(old)

    async def _revoke(self, ref: LeaseRef, held: _Held) -> bool:
        """Whether it is gone."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._lender(ref).revoke(ref, held.leased)
        except StoreError as error:
            why = error.reason
        except TimeoutError:
            why = "the store did not answer in time"
        except Exception as error:  # noqa: BLE001 - a store that breaks its contract, and its text may hold anything
            why = type(error).__name__
        else:
            return True
        _log.warning("a lease of %s could not be revoked (%s); left alone, it ends by itself", ref.name, why)
        return False
