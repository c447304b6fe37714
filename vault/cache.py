"""The cache before a store: `ttl`, refresh ahead, one flight, bounded staleness.

Rules:
- Inside `ttl` a read is answered from memory. From 80 % of `ttl` on, the first read also starts a refresh in the
  background. Should it meet an outage, the value serves on to the end of its `ttl`, and the store is asked again in the
  background.
- Past `ttl` a read waits for a fetch. However many wait, there is one fetch; a waiter that goes away does not end it.
- With `ttl` 0, or `bypass`, a read is answered only by a fetch that began after the read did.
- While the store cannot be reached a value younger than `ttl + max_stale` still serves, marked `stale`. After 403, 404
  or a malformed answer it is dropped at once and not served again: revocation beats caching.
- A failure is remembered for a moment: 2 s for denied, missing and malformed; for an outage the store is left alone
  until a jittered probe is due. During an outage that was confirmed lately the probe runs behind a stale answer, so
  that a store which swallows packets does not cost a request its deadline. Old news of an outage is no news: then the
  read waits for the probe.
- Memory is bounded; the entry unused for longest goes first, but never one that is being fetched or waited for: that
  would start a second flight for the same secret.
- With `watch`, a value inside `ttl` serves only if the store said less than `watch` ago that it is the version: such a
  look asks for the version without the value, runs ahead as refreshes do, and becomes a fetch in the same flight where
  it finds anything else. An outage that a look meets changes nothing before the `ttl` ends.
- An upstream that rejects a credential (401) is a reason to look, never a reason to drop: `read_other` gives what memory
  has beyond the rejected version, else what one forced read finds. One that finds nothing new is the last for 5 s,
  whoever asks, so that neither a hostile upstream nor a hostile caller can make Ostiary hammer the store.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from vault.control import NOTHING
from vault.entry import Entry, Known, known_of
from vault.failures import again, result_of
from vault.observer import ReadResult, Silent, StoreObserver
from vault.store import (
    CacheState,
    SealedSecret,
    SecretRef,
    SecretStore,
    SecretUnavailable,
    SecretVersion,
    StoreError,
)

REFRESH_AT: Final = 0.8
NEGATIVE_TTL_S: Final = 2.0
PROBE_FIRST_S: Final = 0.5
PROBE_MOST_S: Final = 5.0
RETRY_AFTER_MOST_S: Final = 30.0
_UNSAID_RETRY_S: Final = 1.0
"""What `SecretUnavailable` tells callers where the store said nothing."""
OUTAGE_NEWS_S: Final = 10.0
"""How long a failed fetch counts as knowing that the store is down. Longer than the longest pause between probes and
the deadline of one."""
FRUITLESS_S: Final = 5.0
"""How long no read is forced after one that brought nothing new."""
FETCH_DEADLINE_S: Final = 10.0
"""Stores keep a deadline of 2 s; this guards against one that does not."""


class SecretCache:
    """A `SecretSource` over a store.

    Args:
        store: asked when memory does not do.
        clock: monotonic seconds.
        observer: told of reads and hits.
        capacity: secrets remembered.
        jitter: gives a number in [0, 1); for probes during an outage.
    """

    def __init__(
        self,
        store: SecretStore,
        clock: Callable[[], float],
        observer: StoreObserver | None = None,
        *,
        capacity: int = 10_000,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer or Silent()
        self._capacity = capacity
        self._jitter = jitter
        self._entries: OrderedDict[SecretRef, Entry] = OrderedDict()
        self._newest: Entry | None = None
        """The one that was moved to the end last, as long as it may stand there."""

    async def read(
        self, ref: SecretRef, *, ttl_s: float, max_stale_s: float, watch_s: float = 0.0, bypass: bool = False
    ) -> SealedSecret:
        """One version of a secret; see `SecretSource.read`."""
        if not bypass and (known := self.read_now(ref, ttl_s=ttl_s, watch_s=watch_s)) is not None:
            return known
        entry = self._entries.get(ref)
        if entry is None:
            entry = self._remember(ref)
        return await self._read_slowly(ref, entry, self._clock(), ttl_s, max_stale_s, bypass=bypass)

    def read_now(self, ref: SecretRef, *, ttl_s: float, watch_s: float = 0.0) -> SealedSecret | None:
        """What memory has, if it is young enough; see `SecretSource.read_now`."""
        entry = self._entries.get(ref)
        if entry is None or entry.version is None:
            return None
        now_s = self._clock()
        age_s = now_s - entry.fetched_s
        if age_s >= ttl_s:
            return None
        # A failure that leaves a version in place is an outage; the others drop it.
        if age_s >= ttl_s * REFRESH_AT and entry.flight is None and now_s >= entry.retry_s:
            self._launch(ref, entry)
        if watch_s and not self._watched(ref, entry, now_s, watch_s):
            return None
        if entry is not self._newest:
            self._entries.move_to_end(ref)
            self._newest = entry
        return self._answer(ref, entry, "hit", now_s)

    def _watched(self, ref: SecretRef, entry: Entry, now_s: float, watch_s: float) -> bool:
        """Whether the store said lately enough that this is the version; begins to ask where it is about time."""
        since_s = now_s - entry.checked_s
        if since_s < watch_s * REFRESH_AT:
            return True
        if entry.flight is None and now_s >= entry.retry_s:
            self._launch(ref, entry, look=True)
        return since_s < watch_s or entry.failure is not None

    async def _read_slowly(
        self, ref: SecretRef, entry: Entry, now_s: float, ttl_s: float, max_stale_s: float, *, bypass: bool
    ) -> SealedSecret:
        self._entries.move_to_end(ref)
        self._newest = None
        if entry.failure is not None and not bypass:
            if now_s < entry.retry_s:
                return self._despite(ref, entry, ttl_s, max_stale_s)
            if self._serves(entry, now_s, ttl_s, max_stale_s) and now_s - entry.failed_s < OUTAGE_NEWS_S:
                if entry.flight is None:
                    self._launch(ref, entry)
                return self._answer(ref, entry, "stale", now_s)
        # What is young enough needs a look alone. And a flight that is already under way may carry what was written before
        # this read began.
        young = not bypass and entry.version is not None and now_s - entry.fetched_s < ttl_s
        await self._land(ref, entry, entry.launched if bypass or ttl_s == 0 else -1, look=young)
        if entry.failure is not None:
            return self._despite(ref, entry, ttl_s, max_stale_s)
        return self._answer(ref, entry, "bypass" if bypass else "hit" if entry.looked else "miss", self._clock())

    async def _land(self, ref: SecretRef, entry: Entry, known: int, *, look: bool = False) -> None:
        """Waits for a flight with a number above `known`, and begins it where it is not under way. One that perhaps only
        looked will do with `look` alone.
        """
        entry.waiting += 1
        try:
            while True:
                if entry.flight is None:
                    self._launch(ref, entry)
                flight, number, looking = entry.flight, entry.launched, entry.look
                if flight is not None:
                    # Shielded: the flight belongs to everyone who waits for it.
                    await asyncio.shield(flight)
                if number > known and (look or not looking):
                    return
        finally:
            entry.waiting -= 1

    def known(self, ref: SecretRef) -> Known | None:
        """What is known of a secret, for those who look after it; None where it was never asked for, or is forgotten."""
        entry = self._entries.get(ref)
        return None if entry is None else known_of(entry, self._clock())

    # --- after a 401 ---

    async def read_other(self, ref: SecretRef, used: SealedSecret, *, ttl_s: float) -> SealedSecret | None:
        """Another version than the one rejected; see `SecretSource.read_other`."""
        entry = self._entries.get(ref)
        if entry is None:
            entry = self._remember(ref)
        now_s = self._clock()
        if self._has_other(entry, used) and now_s - entry.fetched_s < ttl_s:
            self._entries.move_to_end(ref)
            self._newest = None
            return self._answer(ref, entry, "hit", now_s)
        if entry.forced > entry.launched or (entry.flight is not None and entry.forced == entry.launched):
            known = entry.forced - 1  # the very read that was to be begun is under way, or waits for the one before it
        elif self._may_force(ref, entry, now_s):
            known = entry.launched
            self._force(entry, now_s)
        else:
            return None
        await self._land(ref, entry, known)
        if entry.failure is None and self._has_other(entry, used):
            return self._answer(ref, entry, "bypass", self._clock())
        entry.fruitless_s = self._clock() + FRUITLESS_S
        return None

    def suspect(self, ref: SecretRef, used: SealedSecret) -> None:
        """Looks behind the back of a request that cannot be sent again; see `SecretSource.suspect`."""
        entry = self._entries.get(ref)
        now_s = self._clock()
        if entry is None or self._has_other(entry, used) or entry.flight is not None:
            return
        if self._may_force(ref, entry, now_s):
            self._force(entry, now_s)
            self._launch(ref, entry)

    @staticmethod
    def _force(entry: Entry, now_s: float) -> None:
        """The next flight is a forced one. It counts as fruitless until it brings something new, so that there is no moment
        between its landing and the first who hears of it in which another could be forced.
        """
        entry.forced = entry.launched + 1
        entry.fruitless_s = now_s + FRUITLESS_S

    @staticmethod
    def _has_other(entry: Entry, used: SealedSecret) -> bool:
        return entry.version is not None and used.differs(entry.version)

    @staticmethod
    def _may_force(ref: SecretRef, entry: Entry, now_s: float) -> bool:
        """A pinned version has no other; and what the store said a moment ago still stands."""
        failed = entry.failure is not None and now_s < entry.retry_s
        return ref.version is None and not failed and now_s >= entry.fruitless_s

    def _despite(self, ref: SecretRef, entry: Entry, ttl_s: float, max_stale_s: float) -> SealedSecret:
        """Serves what an outage leaves to serve, or tells the failure."""
        now_s = self._clock()
        if self._serves(entry, now_s, ttl_s, max_stale_s):
            return self._answer(ref, entry, "stale", now_s)
        raise again(entry.failure or SecretUnavailable("", "the store gave no answer"), max(entry.retry_s - now_s, 0.0))

    @staticmethod
    def _serves(entry: Entry, now_s: float, ttl_s: float, max_stale_s: float) -> bool:
        """Whether this outage leaves something young enough."""
        outage = isinstance(entry.failure, SecretUnavailable)
        return outage and entry.version is not None and now_s - entry.fetched_s < ttl_s + max_stale_s

    def _answer(self, ref: SecretRef, entry: Entry, state: CacheState, now_s: float) -> SealedSecret:
        version = entry.version
        if version is None:
            raise SecretUnavailable(ref.name, "was dropped while it was read")
        age_s = now_s - entry.fetched_s
        if age_s < 0:
            age_s = 0.0
        self._observer.secret_cache(state)
        self._observer.secret_in_use(ref.name, version.version, age_s)
        return SealedSecret(ref.name, version, cache=state, age_s=age_s)

    def _remember(self, ref: SecretRef) -> Entry:
        entry = self._entries[ref] = Entry()
        self._newest = None
        while len(self._entries) > self._capacity:
            # Entries in flight stay: there are no more of them than requests under way.
            idle = (
                known
                for known, found in self._entries.items()
                if found.flight is None and not found.waiting and found is not entry
            )
            oldest = next(idle, None)
            if oldest is None:
                break
            del self._entries[oldest]
        return entry

    # --- flights ---

    def _launch(self, ref: SecretRef, entry: Entry, *, look: bool = False) -> None:
        entry.look = look
        entry.flight_s = self._clock()
        entry.launched += 1
        entry.flight = asyncio.get_running_loop().create_task(self._fly(ref, entry))

    async def _fly(self, ref: SecretRef, entry: Entry) -> None:
        result: ReadResult = "unavailable"  # also what a flight that is cancelled at the end comes to
        began_s, known = entry.flight_s, entry.version if entry.look else None
        try:
            async with asyncio.timeout(FETCH_DEADLINE_S):
                looked = known is not None and await self._store.unchanged(ref, known)
                version = known if looked and known is not None else await self._store.fetch(ref)
        except StoreError as error:
            result = self._failed(ref, entry, error)
        except TimeoutError:
            result = self._failed(ref, entry, SecretUnavailable(ref.name, "the store did not answer in time"))
        except Exception as error:  # noqa: BLE001 - a store that breaks its contract is an outage, and its text may hold anything
            result = self._failed(ref, entry, SecretUnavailable(ref.name, f"the store failed ({type(error).__name__})"))
        else:
            # A flight never replaces what a later one has brought: each entry has one flight at a time.
            if not looked:
                self._took(ref, entry, version)
                entry.fetched_s = began_s
            entry.checked_s, entry.looked = began_s, looked
            entry.failure, entry.failures, entry.retry_s = None, 0, 0.0
            result = "ok"
        finally:
            entry.flight = None
            self._observer.secret_read(self._store.name, result)

    def _took(self, ref: SecretRef, entry: Entry, version: SecretVersion) -> None:
        """Takes what a flight has brought. The same version stays the same object, so that its uses are counted on."""
        before = entry.version
        if before is not None and before.same(version):
            if before.control != version.control:
                self._observer.secret_told(ref.name, version.control)
                entry.version = replace(before, control=version.control)
            return
        entry.version, entry.fruitless_s = version, 0.0
        if before is not None:
            self._retire(ref, entry, before)
        if version.control != (NOTHING if before is None else before.control):
            self._observer.secret_told(ref.name, version.control)
        if entry.last and (before is not None or entry.last != version.version):
            self._observer.secret_changed(ref.name, entry.last, version.version)
        entry.last = version.version

    def _retire(self, ref: SecretRef, entry: Entry, version: SecretVersion) -> None:
        # Without its fields: what is dropped is not to be held by what is remembered of it.
        entry.before = replace(version, fields={})
        name, number = ref.name, version.version
        version.uses.retire(lambda last: self._observer.secret_last_used(name, number, last))

    def _failed(self, ref: SecretRef, entry: Entry, error: StoreError) -> ReadResult:
        now_s = self._clock()
        entry.failure, entry.failed_s = error, now_s
        if isinstance(error, SecretUnavailable):
            entry.failures += 1
            pause_s = min(PROBE_FIRST_S * 2 ** min(entry.failures - 1, 8), PROBE_MOST_S)
            pause_s *= 0.5 + self._jitter() / 2
            if error.retry_after_s > _UNSAID_RETRY_S:
                # The store asked for more; believed up to a bound, so that it cannot silence us for a day.
                pause_s = max(pause_s, min(error.retry_after_s, RETRY_AFTER_MOST_S))
            entry.retry_s = now_s + pause_s
            return "unavailable"
        if entry.version is not None:
            self._retire(ref, entry, entry.version)
            entry.version = None
        entry.retry_s = now_s + NEGATIVE_TTL_S
        return result_of(error)
