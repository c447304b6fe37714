"""Certificates that a store issues: one for each `IssuedRef`, in memory alone, renewed before it ends.

Rules:
- Asked for when a request first needs it; after that a request never waits for a renewal.
- Renewed at 2/3 of its life, with jitter. The new one is there before the old one goes. However many need it, one is
  asked for.
- During an outage it serves, marked `stale` once its renewal is due, to its own end and not a moment longer: then
  `SecretUnavailable`.
- Where the store says no (403, or a role that does not sign this) nothing serves that was issued before: revocation
  beats caching. A no is remembered for a moment.
- A failed renewal is tried again after 1 s, doubling to 5 min, with jitter.

Reads of all other secrets go to the source behind, so that a credential may hold both.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable

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
SPARE_S: Final = 1.0
"""Before its end a certificate is used no more: a handshake and two clocks need a moment."""
REFUSED_S: Final = 2.0
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 300.0
DEADLINE_S: Final = 10.0
"""Stores keep a deadline of 2 s; this guards against one that does not."""
MOST: Final = 1000
"""Certificates that are remembered; the one unused for longest goes first."""


@dataclass(frozen=True, slots=True)
class IssuedRef(SecretRef):
    """Names one certificate by what is asked for. `mount` is the engine's, `path` is `sign/ROLE`."""

    common_name: str = ""
    uri_sans: tuple[str, ...] = ()
    life_s: float | None = None
    """None: the role says."""

    def __post_init__(self) -> None:
        SecretRef.__post_init__(self)
        # Two certificates of one role are two secrets.
        object.__setattr__(self, "name", f"{self.name}#{self.common_name}")

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key, and when it ends. The fields of `version` are PEM."""

    version: SecretVersion
    begins_s: float
    """Seconds since the epoch."""
    ends_s: float
    """Seconds since the epoch."""


@runtime_checkable
class IssuingStore(Protocol):
    """A store that issues certificates."""

    async def issue(self, ref: IssuedRef) -> Issued:
        """A new key and its certificate, within the store's total deadline.

        Raises:
            SecretUnavailable, SecretDenied, SecretMalformed.
        """


@dataclass(slots=True, eq=False)
class _Entry:
    issued: Issued | None = None
    taken_s: float = 0.0
    """Monotonic."""
    renew_s: float = 0.0
    """Monotonic."""
    flight: asyncio.Task[None] | None = None
    failure: StoreError | None = None
    failures: int = 0
    retry_s: float = 0.0
    """Monotonic: the store is not asked before."""
    last: str = ""
    before: SecretVersion | None = None


_NONE: Final = SecretVersion({}, "")


class Issuance:
    """A `SecretSource` of certificates, and of all else that is behind it.

    Args:
        behind: gives what is not issued.
        store: any secret store; one that issues nothing refuses.
        monotonic_s: for what is waited for.
        wall_s: for what certificates say.
        observer: told as of any secret.
        jitter: gives a number in [0, 1).
    """

    def __init__(
        self,
        behind: SecretSource,
        store: object,
        monotonic_s: Callable[[], float],
        wall_s: Callable[[], float],
        observer: StoreObserver | None = None,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._behind = behind
        self._store = store
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s
        self._observer = observer or Silent()
        self._jitter = jitter
        self._entries: OrderedDict[IssuedRef, _Entry] = OrderedDict()

    async def read(
        self, ref: SecretRef, *, ttl_s: float, max_stale_s: float, watch_s: float = 0.0, bypass: bool = False
    ) -> SealedSecret:
        """See `SecretSource.read`. `bypass` issues another certificate."""
        if not isinstance(ref, IssuedRef):
            return await self._behind.read(ref, ttl_s=ttl_s, max_stale_s=max_stale_s, watch_s=watch_s, bypass=bypass)
        if not bypass and (known := self.read_now(ref, ttl_s=ttl_s)) is not None:
            return known
        entry = self._entry(ref)
        if bypass and entry.flight is not None:
            await asyncio.shield(entry.flight)  # it began before this was asked for
        if bypass or self._monotonic_s() >= entry.retry_s:
            if entry.flight is None:
                self._launch(ref, entry)
            if entry.flight is not None:
                await asyncio.shield(entry.flight)  # it belongs to everyone who waits for it
        if entry.failure is None or not bypass:
            usable = self._usable(entry)
            if usable is not None:
                return self._answer(ref, entry, usable, "bypass" if bypass else "miss")
        raise again(
            entry.failure or SecretUnavailable(ref.name, "its certificate has ended"),
            max(entry.retry_s - self._monotonic_s(), 0.0),
        )

    def read_now(self, ref: SecretRef, *, ttl_s: float, watch_s: float = 0.0) -> SealedSecret | None:
        """See `SecretSource.read_now`. Begins a renewal that is due."""
        if not isinstance(ref, IssuedRef):
            return self._behind.read_now(ref, ttl_s=ttl_s, watch_s=watch_s)
        entry = self._entries.get(ref)
        usable = None if entry is None else self._usable(entry)
        if entry is None or usable is None:
            return None
        now_s = self._monotonic_s()
        if now_s >= entry.renew_s and entry.flight is None and now_s >= entry.retry_s:
            self._launch(ref, entry)
        self._entries.move_to_end(ref)
        return self._answer(ref, entry, usable, "hit" if entry.failure is None else "stale")

    async def read_other(self, ref: SecretRef, used: SealedSecret, *, ttl_s: float) -> SealedSecret | None:
        """See `SecretSource.read_other`. An upstream that says no does not make Vault sign: else any caller could."""
        return None if isinstance(ref, IssuedRef) else await self._behind.read_other(ref, used, ttl_s=ttl_s)

    def suspect(self, ref: SecretRef, used: SealedSecret) -> None:
        """See `SecretSource.suspect`."""
        if not isinstance(ref, IssuedRef):
            self._behind.suspect(ref, used)

    def known(self, ref: SecretRef) -> Known | None:
        """See `SecretSource.known`."""
        if not isinstance(ref, IssuedRef):
            return self._behind.known(ref)
        entry = self._entries.get(ref)
        if entry is None:
            return None
        now, before = _NONE if entry.issued is None else entry.issued.version, entry.before or _NONE
        return Known(
            version=now.version or None,
            created_at=now.created_at,
            age_s=max(self._monotonic_s() - entry.taken_s, 0.0),
            problem=None if entry.failure is None else entry.failure.reason,
            control=now.control,
            live=now.uses.live,
            last=now.uses.last,
            before=before.version or None,
            before_live=before.uses.live,
            before_last=before.uses.last,
        )

    # --- one certificate ---

    def _entry(self, ref: IssuedRef) -> _Entry:
        entry = self._entries.get(ref)
        if entry is None:
            entry = self._entries[ref] = _Entry()
            while len(self._entries) > MOST:
                idle = next((one for one, found in self._entries.items() if found.flight is None and one != ref), None)
                if idle is None:
                    break
                del self._entries[idle]
        return entry

    def _usable(self, entry: _Entry) -> Issued | None:
        issued = entry.issued
        return issued if issued is not None and self._wall_s() < issued.ends_s - SPARE_S else None

    def _answer(self, ref: IssuedRef, entry: _Entry, issued: Issued, state: CacheState) -> SealedSecret:
        age_s = max(self._monotonic_s() - entry.taken_s, 0.0)
        self._observer.secret_cache(state)
        self._observer.secret_in_use(ref.name, issued.version.version, age_s)
        return SealedSecret(ref.name, issued.version, cache=state, age_s=age_s)

    def _launch(self, ref: IssuedRef, entry: _Entry) -> None:
        entry.flight = asyncio.get_running_loop().create_task(self._fly(ref, entry))

    async def _fly(self, ref: IssuedRef, entry: _Entry) -> None:
        result: ReadResult = "unavailable"  # also what a flight that is cancelled at the end comes to
        try:
            async with asyncio.timeout(DEADLINE_S):
                issued = await self._asked(ref)
        except StoreError as error:
            result = self._failed(ref, entry, error)
        except TimeoutError:
            result = self._failed(ref, entry, SecretUnavailable(ref.name, "the store did not answer in time"))
        except Exception as error:  # noqa: BLE001 - a store that breaks its contract is an outage, and its text may hold anything
            result = self._failed(ref, entry, SecretUnavailable(ref.name, f"the store failed ({type(error).__name__})"))
        else:
            self._took(ref, entry, issued)
            result = "ok"
        finally:
            entry.flight = None
            self._observer.secret_read("vault", result)

    async def _asked(self, ref: IssuedRef) -> Issued:
        if not isinstance(self._store, IssuingStore):
            raise SecretMissing(ref.name, "needs Vault: the embedded store issues no certificates")
        issued = await self._store.issue(ref)
        if issued.ends_s - SPARE_S <= self._wall_s():
            raise SecretMalformed(ref.name, "was issued with an end that has passed already: are the clocks right?")
        return issued

    def _took(self, ref: IssuedRef, entry: _Entry, issued: Issued) -> None:
        if entry.issued is not None:
            self._retire(ref, entry, entry.issued.version)
        entry.issued, entry.failure, entry.failures, entry.retry_s = issued, None, 0, 0.0
        entry.taken_s = self._monotonic_s()
        # What is left of it, not what it says: `notBefore` is often set back.
        left_s = issued.ends_s - self._wall_s()
        entry.renew_s = entry.taken_s + left_s * (RENEW_AT - JITTER * self._jitter())
        self._observer.secret_told(ref.name, issued.version.control)
        if entry.last and entry.last != issued.version.version:
            self._observer.secret_changed(ref.name, entry.last, issued.version.version)
        entry.last = issued.version.version

    def _retire(self, ref: IssuedRef, entry: _Entry, version: SecretVersion) -> None:
        # Without its fields: the key of an old certificate is not held by what is remembered of it.
        entry.before = replace(version, fields={})
        name, number = ref.name, version.version
        version.uses.retire(lambda last: self._observer.secret_last_used(name, number, last))

    def _failed(self, ref: IssuedRef, entry: _Entry, error: StoreError) -> ReadResult:
        now_s = self._monotonic_s()
        entry.failure = error
        if isinstance(error, SecretUnavailable):
            entry.failures += 1
            if entry.failures == 1 and entry.issued is not None:
                # From now on its end is told ahead, as that of any key which nobody renews.
                control = entry.issued.version.control
                self._observer.secret_told(ref.name, replace(control, renewed=False))
                _log.warning("certificate %s was not renewed: %s; it serves to its end", ref.name, error.reason)
            pause_s = min(RETRY_FIRST_S * 2 ** min(entry.failures - 1, 16), RETRY_MOST_S)
            if self._usable(entry) is None:
                pause_s = min(pause_s, REFUSED_S)  # requests fail by now
            entry.retry_s = now_s + pause_s * (0.5 + self._jitter() / 2)
            return "unavailable"
        if entry.issued is not None:
            self._retire(ref, entry, entry.issued.version)
            entry.issued = None
        entry.retry_s = now_s + REFUSED_S
        return result_of(error)
