"""Keeps a token: one login at a time, renewed in good time, replaced before it dies, revoked at the end if it was ours.

Times: renew at 2/3 of the TTL with 10 % jitter; a token that cannot be renewed is replaced at 85 %, and one whose renewal
gives no more time (its max TTL is near) at once. After a failure back off from 1 s, doubling, to 5 min, or as long as
Vault asks for, but never past what is left of the token. Reads that wait for a login share one, and share its failure
for a moment: a login that fails slowly costs a hundred secrets one deadline, not a hundred. A login belongs to nobody who
waits for it: a caller that goes away does not take a single-use secret id along.

A token of ours that was replaced is revoked, so that logins do not pile up in Vault. How a token is had is
`methods`' to know.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from vault.hashicorp.answers import VaultAnswer, VaultUnreachable
from vault.hashicorp.client import VaultCalls
from vault.hashicorp.config import VaultAuth
from vault.hashicorp.handed import HandedOn
from vault.hashicorp.methods import Issued, Method, is_batch, is_dead, method_of, outage
from vault.observer import StoreObserver
from vault.secret import Secret
from vault.store import SecretDenied, SecretUnavailable

_log = logging.getLogger("ostiary.vault")

BACK_OFF_FIRST_S: Final = 1.0
BACK_OFF_MOST_S: Final = 300.0
OUTAGE_BACK_OFF_MOST_S: Final = 5.0
"""The same for reads that need a login while Vault is away: it may be back any moment."""
RETRY_AFTER_MOST_S: Final = 60.0
"""Vault is believed that it wants to be left alone, up to this."""
RENEW_AT: Final = 2 / 3
REPLACE_AT: Final = 0.85
JITTER: Final = 0.1
SOONEST_S: Final = 0.2
GIVEN_SOONEST_S: Final = 1.0
"""A token that nobody renews is looked at no more often than that on its way to its end."""
WATCH_S: Final = 5.0
"""How often files are looked at that a new token or secret id may come in, while no read does."""
_PAST: Final = "cannot renew"
_SHAPELESS: Final = "Vault answered the login in a shape that no login has"
YOUNG_S: Final = 5.0
"""A login younger than that is not replaced because of a doubt while Vault knows it."""
RETIRE_AFTER_S: Final = 5.0
"""Calls that are under way with a replaced token end by their deadlines first."""


def due_s(ttl_s: float, jitter: float, *, renewable: bool) -> float:
    """Seconds until a token with this TTL is renewed or replaced; `jitter` in [0, 1)."""
    if math.isinf(ttl_s):
        return math.inf
    return max(ttl_s * (RENEW_AT if renewable else REPLACE_AT) * (1 - JITTER * jitter), SOONEST_S)


def pause_s(failures: int, most_s: float, asked_s: float, left_s: float, jitter: float) -> float:
    """Seconds until the next try after so many failures in a row.

    Args:
        failures: 1 for the first.
        most_s: bound of the doubling.
        asked_s: what Vault asked for.
        left_s: what the token still lives; negative or infinite if that is no matter.
        jitter: in [0, 1).
    """
    pause: float = min(BACK_OFF_FIRST_S * 2 ** min(failures - 1, 16), most_s)
    if left_s > 0:
        # Three more tries fit into what is left.
        pause = min(pause, max(left_s / 3, BACK_OFF_FIRST_S))
    return max(pause, min(asked_s, RETRY_AFTER_MOST_S)) * (1 - JITTER * jitter)


class Login:
    """The login of one process.

    Args:
        calls: makes calls.
        auth: how to log in.
        observer: told of logins and of the token's TTL.
        jitter: gives a number in [0, 1).
        method: in the place of the one that `auth` names.
    """

    def __init__(
        self,
        calls: VaultCalls,
        auth: VaultAuth,
        observer: StoreObserver,
        jitter: Callable[[], float] = random.random,
        method: Method | None = None,
    ) -> None:
        self._calls = calls
        self._method = method or method_of(calls, auth)
        self._observer = observer
        self._jitter = jitter
        self._issued: Issued | None = None
        self._ends_s = math.inf
        self._due_s = math.inf
        self._flight: asyncio.Task[None] | None = None
        self._failure: SecretUnavailable | SecretDenied | None = None
        self._failures = 0
        self._retry_s = -math.inf
        self._retired: dict[asyncio.Task[None], Secret] = {}
        self._generation = 0
        self._made_s = -math.inf
        self._keeper: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._renewal_told = False
        self._stale = False
        """A file brought something new that no login has used yet."""
        self._closed = False

    @property
    def generation(self) -> int:
        """Counts logins: a caller that met a 403 says which login it used, so that many of them cause one new login."""
        return self._generation

    @property
    def left_s(self) -> float:
        """What is left of the token; infinity where it does not end or there is none."""
        return max(self._ends_s - time.monotonic(), 0.0)

    async def token(self) -> Secret:
        """A token to use now; logs in if there is none, or none that still lives.

        Raises:
            SecretUnavailable, SecretDenied: no login is to be had, with Vault's reason.
        """
        if self._method.watches:
            generation = self._generation
            if await asyncio.to_thread(self._method.changed):
                # A new file is news, whatever the last login came to.
                self._retry_s = -math.inf
                try:
                    await self.again(generation)
                except (SecretUnavailable, SecretDenied) as error:
                    # It has been read, so it is no news to the next who looks.
                    self._stale, self._due_s = True, self._retry_s
                    self._news.set()
                    if self._issued is None or self._dead():
                        raise
                    _log.warning("a new file is of no use (%s): the token that is there serves on", error.reason)
        if self._issued is None or self._dead():
            await self.again(self._generation)
        if self._issued is None:
            raise SecretUnavailable("", "there is no Vault login")
        return self._issued.token

    def _dead(self) -> bool:
        return self._issued is not None and self._issued.own and time.monotonic() >= self._ends_s

    async def again(self, generation: int) -> None:
        """Logs in anew, unless somebody has since `generation`. Raises as `token` does."""
        if generation != self._generation:
            return
        if self._flight is None:
            if self._failure is not None and time.monotonic() < self._retry_s:
                raise _anew(self._failure)
            self._flight = asyncio.get_running_loop().create_task(self._fly())
        # Shielded: it goes on for the others, and its token is kept.
        await asyncio.shield(self._flight)
        if self._failure is not None:
            raise _anew(self._failure)

    async def doubted(self, generation: int, *, needed: bool = False) -> None:
        """A read met a 403: perhaps the token has died. Logs in anew as `again` does; where that would use up something
        that does not come again, leases hang on the token (`needed`), or it was had a moment ago, only if Vault no longer
        knows it: whoever doubts again and again makes no flood of logins.
        """
        issued = self._issued
        young = time.monotonic() - self._made_s < YOUNG_S
        if (
            (needed or young or self._method.scarce)
            and issued is not None
            and generation == self._generation
            and await self._lives(issued)
        ):
            return
        if isinstance(self._method, HandedOn) and generation == self._generation:
            self._method.doubt()
        await self.again(generation)

    async def _lives(self, issued: Issued) -> bool:
        try:
            await self._calls.run(lambda client: client.auth.token.lookup_self(), issued.token)
        except VaultAnswer as error:
            return not (error.status == 403 and is_dead(error))
        except VaultUnreachable as error:
            raise outage(error) from None
        return True

    async def _fly(self) -> None:
        """One login. Its failure is left in `_failure` for all who wait."""
        before = self._issued
        try:
            issued = await self._method.log_in()
        except (SecretUnavailable, SecretDenied) as error:
            self._failed(error)
        except (AttributeError, KeyError, TypeError, ValueError):
            # JSON of another shape than any login has; the exception's text may quote it.
            self._failed(SecretUnavailable("", _SHAPELESS))
        except Exception as error:  # noqa: BLE001 - whatever it is, no one who waits must meet it bare, and its text may hold anything
            self._failed(SecretUnavailable("", f"the login failed ({type(error).__name__})"))
        else:
            self._failure, self._failures = None, 0
            if not (isinstance(self._method, HandedOn) and self._method.same):
                # Of the same token handed on again, who has met a 403 with it is still to say so.
                self._generation += 1
                self._made_s = time.monotonic()
            self._take(issued)
            self._observer.store_login("ok")
            if before is not None and before.own:
                self._retire(before.token)
        finally:
            self._flight = None
            if self._keeper is None and not self._closed:
                self._keeper = asyncio.get_running_loop().create_task(self._keep())

    def _take(self, issued: Issued) -> None:
        self._issued = issued
        now_s = time.monotonic()
        self._ends_s = now_s + issued.ttl_s
        due = due_s(issued.ttl_s, self._jitter(), renewable=issued.renewable)
        self._due_s = now_s + (due if issued.own else max(due, GIVEN_SOONEST_S))
        self._observer.token_ttl(issued.ttl_s)
        self._news.set()

    def _failed(self, error: SecretUnavailable | SecretDenied) -> None:
        unavailable = isinstance(error, SecretUnavailable)
        self._observer.store_login("unavailable" if unavailable else "denied")
        self._failure = error
        self._failures += 1
        most_s = OUTAGE_BACK_OFF_MOST_S if unavailable else BACK_OFF_MOST_S
        self._retry_s = time.monotonic() + pause_s(self._failures, most_s, _asked_s(error), -1, self._jitter())

    def _retire(self, token: Secret) -> None:
        async def revoke() -> None:
            await asyncio.sleep(RETIRE_AFTER_S)
            await self._revoke(token)

        task = asyncio.get_running_loop().create_task(revoke())
        self._retired[task] = token
        task.add_done_callback(lambda done: self._retired.pop(done, None))

    async def _revoke(self, token: Secret) -> None:
        if is_batch(token):
            return
        try:
            await self._calls.run(lambda client: client.auth.token.revoke_self(), token)
        except VaultAnswer as error:
            if not (error.status == 403 and is_dead(error)):
                mend = ": allow update on auth/token/revoke-self" if error.status == 403 else ""
                _log.warning(
                    "a Vault token of ours was not revoked (%s) and lives to its end%s",
                    error.reason_without(token),
                    mend,
                )
        except VaultUnreachable as error:
            _log.warning("a Vault token of ours was not revoked (%s) and lives to its end", error)

    # --- keeping ---

    async def _keep(self) -> None:
        failures = 0
        while True:
            if await self._until_due():
                self._retry_s, self._stale = -math.inf, True
            try:
                await self._renew_or_replace()
                failures, self._stale = 0, False
            except Exception as error:  # noqa: BLE001 - whatever it is, the token must go on being kept
                if not isinstance(error, SecretUnavailable | SecretDenied):
                    error = SecretUnavailable("", f"the login failed ({type(error).__name__})")
                failures += 1
                left_s = self._ends_s - time.monotonic()
                left_s = left_s if math.isfinite(left_s) and self._issued is not None else -1.0
                most_s = (
                    OUTAGE_BACK_OFF_MOST_S if left_s <= 0 and isinstance(error, SecretUnavailable) else BACK_OFF_MOST_S
                )
                wait_s = pause_s(failures, most_s, _asked_s(error), left_s, self._jitter())
                _log.warning("the Vault login could not be kept: %s; trying again in %.0f s", error.reason, wait_s)
                self._due_s = time.monotonic() + wait_s

    async def _until_due(self) -> bool:
        """Waits until the token is to be renewed or replaced, or there is none; whether a file has brought a new one."""
        while True:
            self._news.clear()
            wait_s = (self._due_s if self._issued is not None else self._retry_s) - time.monotonic()
            if wait_s <= 0:
                return False
            if self._method.watches:
                wait_s = min(wait_s, WATCH_S)
            try:
                async with asyncio.timeout(wait_s if math.isfinite(wait_s) else None):
                    await self._news.wait()
            except TimeoutError:
                if self._method.watches and await asyncio.to_thread(self._method.changed):
                    return True

    async def examine(self) -> str:
        """Logs in, unless that would use up what `run` needs: then looks at that. What it came to, for people.

        Raises:
            SecretUnavailable, SecretDenied: it can never work, or not now, with Vault's reason.
        """
        try:
            told = await self._method.examine()
        except (AttributeError, KeyError, TypeError, ValueError):
            raise SecretUnavailable("", _SHAPELESS) from None
        if told:
            return told
        await self.token()
        return ""

    async def _renew_or_replace(self) -> None:
        generation, issued = self._generation, self._issued
        if issued is not None and issued.own and issued.renewable and not self._stale and not self._dead():
            renewed = await self._renewed(issued)
            if renewed is not None:
                if generation == self._generation:
                    self._take(renewed)
                return
        await self.again(generation)

    async def _renewed(self, issued: Issued) -> Issued | None:
        """The same token with more time; None where only a new login helps.

        Raises:
            SecretUnavailable: Vault is away, and a login would fare no better.
        """
        left_s = self._ends_s - time.monotonic()
        try:
            answer: Any = await self._calls.run(lambda client: client.auth.token.renew_self(), issued.token)
            granted_s = float(answer["auth"].get("lease_duration") or 0)
            renewable = bool(answer["auth"].get("renewable"))
        except VaultAnswer as error:
            if error.status == 500 and any(_PAST in reason for reason in error.reasons):
                return None  # in its last second a token at its max TTL is answered like this: no outage
            if error.status == 429 or error.status >= 500:
                raise outage(error) from None
            if error.status == 403 and not is_dead(error) and not self._renewal_told:
                self._renewal_told = True
                _log.warning(
                    "Vault does not let the token renew itself (%s), so it is replaced instead: allow update on "
                    "auth/token/renew-self",
                    error.reason_without(issued.token),
                )
            return None
        except VaultUnreachable as error:
            raise outage(error) from None
        except (AttributeError, KeyError, TypeError, ValueError):
            # An answer of another shape than a renewal has is as good as none.
            return None
        # Near its max TTL a renewal gives less than was asked for: then only a new login helps.
        # Vault tells whole seconds, rounded up.
        return Issued(issued.token, granted_s, renewable, own=True) if granted_s > left_s + 1 else None

    async def close(self) -> None:
        """Stops keeping; revokes the tokens of logins of ours, never one that was given to us."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._flight is not None:
            # A login that is just made must be known, or it could not be revoked.
            await asyncio.wait([self._flight])
        ours = list(self._retired.values())
        for task in list(self._retired):
            task.cancel()
        if self._issued is not None and self._issued.own:
            ours.append(self._issued.token)
        await asyncio.gather(*(self._revoke(token) for token in ours))
        self._issued = None


def _asked_s(error: SecretUnavailable | SecretDenied) -> float:
    """How long Vault wants to be left alone; what is said to callers where it said nothing is no such wish."""
    return error.retry_after_s if isinstance(error, SecretUnavailable) and error.retry_after_s > 1.0 else 0.0


def _anew(failure: SecretUnavailable | SecretDenied) -> SecretUnavailable | SecretDenied:
    """A fresh exception: one object raised to many would gather all their tracebacks."""
    if isinstance(failure, SecretUnavailable):
        return SecretUnavailable(failure.name, failure.reason, retry_after_s=failure.retry_after_s)
    return SecretDenied(failure.name, failure.reason)
