"""Keeps a token: one login at a time, renewed in good time, replaced before it dies, revoked at the end if it was ours.

Times: renew at 2/3 of the TTL with 10 % jitter; a token that cannot be renewed is replaced at 85 %; after a failure
back off from 1 s, doubling, to 5 min. Reads that wait for a login share one, and share its failure for a moment: a
login that fails slowly costs a hundred secrets one deadline, not a hundred. A login belongs to nobody who waits for it:
a caller that goes away does not take a single-use secret id along.

A token of ours that was replaced is revoked, so that logins do not pile up in Vault.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from contextlib import suppress
from typing import Any, Final

from vault.hashicorp.client import VaultAnswer, VaultCalls, VaultUnreachable
from vault.hashicorp.config import AppRoleAuth, TokenAuth, TokenFileAuth, VaultAuth
from vault.observer import StoreObserver
from vault.secret import Secret
from vault.store import SecretDenied, SecretUnavailable

_log = logging.getLogger("ostiary.vault")

BACK_OFF_FIRST_S: Final = 1.0
BACK_OFF_MOST_S: Final = 300.0
OUTAGE_BACK_OFF_MOST_S: Final = 5.0
"""The same for reads that need a login while Vault is away: it may be back any moment."""
RETIRE_AFTER_S: Final = 5.0
"""Calls that are under way with a replaced token end by their deadlines first."""
MAX_TOKEN_BYTES: Final = 16 * 1024


class Login:
    """The login of one process.

    Args:
        calls: makes calls.
        auth: how to log in.
        observer: told of the token's TTL.
    """

    def __init__(self, calls: VaultCalls, auth: VaultAuth, observer: StoreObserver) -> None:
        self._calls = calls
        self._auth = auth
        self._observer = observer
        self._token: Secret | None = None
        self._own = False
        self._renewable = False
        self._ends_s = math.inf
        self._flight: asyncio.Task[None] | None = None
        self._failure: SecretUnavailable | SecretDenied | None = None
        self._failures = 0
        self._retry_s = -math.inf
        self._retired: dict[asyncio.Task[None], Secret] = {}
        self._generation = 0
        self._seen: tuple[int, int] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def generation(self) -> int:
        """Counts logins: a caller that met a 403 says which login it used, so that many of them cause one new login."""
        return self._generation

    async def token(self) -> Secret:
        """A token to use now; logs in if there is none.

        Raises:
            SecretUnavailable, SecretDenied: no login is to be had, with Vault's reason.
        """
        if isinstance(self._auth, TokenFileAuth):
            generation = self._generation
            if await asyncio.to_thread(self._file_changed, self._auth):
                # A new file is news, whatever the last login came to.
                self._retry_s = -math.inf
                await self.again(generation)
        if self._token is None:
            await self.again(self._generation)
        if self._token is None:
            raise SecretUnavailable("", "there is no Vault login")
        return self._token

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

    async def _fly(self) -> None:
        """One login. Its failure is left in `_failure` for all who wait."""
        before, own = self._token, self._own
        try:
            await self._log_in()
        except (SecretUnavailable, SecretDenied) as error:
            self._failed(error)
        except (AttributeError, KeyError, TypeError, ValueError):
            # JSON of another shape than any login has; the exception's text may quote it.
            self._failed(SecretUnavailable("", "Vault answered the login in a shape that no login has"))
        else:
            self._failure, self._failures = None, 0
            self._generation += 1
            if own and before is not None:
                self._retire(before)
            if self._keeper is None:
                self._keeper = asyncio.get_running_loop().create_task(self._keep())
        finally:
            self._flight = None

    def _failed(self, error: SecretUnavailable | SecretDenied) -> None:
        self._failure = error
        self._failures += 1
        most_s = OUTAGE_BACK_OFF_MOST_S if isinstance(error, SecretUnavailable) else BACK_OFF_MOST_S
        pause_s = min(BACK_OFF_FIRST_S * 2 ** min(self._failures - 1, 16), most_s)
        self._retry_s = time.monotonic() + pause_s * (1 - 0.1 * random.random())  # noqa: S311 - jitter

    def _retire(self, token: Secret) -> None:
        async def revoke() -> None:
            await asyncio.sleep(RETIRE_AFTER_S)
            await self._revoke(token)

        task = asyncio.get_running_loop().create_task(revoke())
        self._retired[task] = token
        task.add_done_callback(lambda done: self._retired.pop(done, None))

    async def _revoke(self, token: Secret) -> None:
        with suppress(VaultAnswer, VaultUnreachable):
            await self._calls.run(lambda client: client.auth.token.revoke_self(), token)

    async def _log_in(self) -> None:
        match self._auth:
            case TokenFileAuth(file=file):
                self._token = await asyncio.to_thread(self._read_token, self._auth)
                self._own = False
                _log.info("using the Vault token in %s", file)
                await self._look_up()
            case TokenAuth(token=token):
                if self._generation == 0:
                    _log.warning(
                        "using a static Vault token: for development only; use AppRole or a token file in production"
                    )
                self._token = token
                self._own = False
                await self._look_up()
            case AppRoleAuth():
                await self._approle(self._auth)

    async def _approle(self, auth: AppRoleAuth) -> None:
        secret_id = (
            await asyncio.to_thread(_read_line, auth.secret_id_file, "secret_id_file")
            if auth.secret_id_file is not None
            else None
        )
        try:
            answer = await self._calls.run(
                lambda client: client.auth.approle.login(
                    auth.role_id.reveal(),
                    secret_id.reveal() if secret_id is not None else None,
                    use_token=False,
                    mount_point=auth.mount,
                ),
                None,
            )
        except VaultAnswer as error:
            if error.status in {400, 403, 404}:
                raise SecretDenied(
                    "", f"Vault refused the AppRole login at auth/{auth.mount}: {error.reason}"
                ) from None
            raise SecretUnavailable(
                "", f"Vault did not take the login: {error.reason}", retry_after_s=error.retry_after_s or 1.0
            ) from None
        except VaultUnreachable as error:
            raise SecretUnavailable("", f"Vault cannot be reached: {error}") from None
        self._take(answer["auth"])
        self._own = True

    def _take(self, auth: dict[str, Any]) -> None:
        self._token = Secret(str(auth["client_token"]))
        ttl_s = float(auth.get("lease_duration") or 0)
        self._renewable = bool(auth.get("renewable"))
        self._ends_s = time.monotonic() + ttl_s if ttl_s else math.inf
        self._observer.token_ttl(ttl_s or math.inf)

    async def _look_up(self) -> None:
        """TTL of a token that somebody else made. A token that may not look itself up is used as it is."""
        try:
            answer = await self._calls.run(lambda client: client.auth.token.lookup_self(), self._token)
        except VaultAnswer as error:
            if error.status == 403 and _is_dead(error):
                raise SecretDenied("", f"Vault does not accept the token: {error.reason}") from None
            _log.warning(
                "Vault does not let the token look itself up (%s), so it is used without knowing when it ends: allow read "
                "on auth/token/lookup-self",
                error.reason,
            )
            self._renewable, self._ends_s = False, math.inf
            return
        except VaultUnreachable as error:
            raise SecretUnavailable("", f"Vault cannot be reached: {error}") from None
        ttl_s = float(answer["data"].get("ttl") or 0)
        # A token that others hold too is theirs to renew.
        self._renewable = False
        self._ends_s = time.monotonic() + ttl_s if ttl_s else math.inf
        self._observer.token_ttl(ttl_s or math.inf)

    # --- files ---

    def _file_changed(self, auth: TokenFileAuth) -> bool:
        try:
            found = auth.file.stat()
        except OSError:
            return False
        return self._seen is not None and (found.st_ino, found.st_mtime_ns) != self._seen

    def _read_token(self, auth: TokenFileAuth) -> Secret:
        with suppress(OSError):
            found = auth.file.stat()
            self._seen = (found.st_ino, found.st_mtime_ns)
        return _read_line(auth.file, "token file")

    # --- keeping ---

    async def _keep(self) -> None:
        back_off_s = BACK_OFF_FIRST_S
        while True:
            left_s = self._ends_s - time.monotonic()
            if math.isinf(left_s):
                await asyncio.sleep(60.0)
                continue
            share = 2 / 3 if self._renewable else 0.85
            await asyncio.sleep(max(left_s * share * (1 - 0.1 * random.random()), 0.2))  # noqa: S311 - jitter
            if self._own is False and not isinstance(self._auth, AppRoleAuth):
                # Somebody else renews it; what can be done here is to notice a new one in time.
                self._observer.token_ttl(max(self._ends_s - time.monotonic(), 0.0))
            try:
                await self._renew_or_replace()
                back_off_s = BACK_OFF_FIRST_S
            except (SecretUnavailable, SecretDenied) as error:
                _log.warning("the Vault login could not be kept: %s; trying again in %.0f s", error.reason, back_off_s)
                await asyncio.sleep(back_off_s * (1 - 0.1 * random.random()))  # noqa: S311 - jitter
                back_off_s = min(back_off_s * 2, BACK_OFF_MOST_S)

    async def _renew_or_replace(self) -> None:
        if self._renewable and self._own:
            before_s = self._ends_s - time.monotonic()
            # An answer of another shape than a renewal has is as good as none.
            with suppress(VaultAnswer, VaultUnreachable, AttributeError, KeyError, TypeError, ValueError):
                answer = await self._calls.run(lambda client: client.auth.token.renew_self(), self._token)
                auth = dict(answer["auth"])
                # Near its max TTL a renewal gives less than was asked for: then only a new login helps.
                if float(auth.get("lease_duration") or 0) > before_s:
                    self._take(auth)
                    return
        await self.again(self._generation)

    async def close(self) -> None:
        """Stops keeping; revokes the token of a login of ours, never one that was given to us."""
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
        if self._own and self._token is not None:
            ours.append(self._token)
        await asyncio.gather(*(self._revoke(token) for token in ours))
        self._token = None


def _is_dead(answer: VaultAnswer) -> bool:
    """Whether a 403 says that Vault does not know the token, and not that the token's policy allows too little.

    Vault has no status for the difference. A policy's denial is a list of reasons; a token that is not known gets the
    bare words, or a list that says `invalid token`. A wrong guess costs nothing: a dead token reads no secret either.
    """
    text = "\n".join(answer.reasons)
    return "invalid token" in text or "occurred" not in text


def _anew(failure: SecretUnavailable | SecretDenied) -> SecretUnavailable | SecretDenied:
    """A fresh exception: one object raised to many would gather all their tracebacks."""
    if isinstance(failure, SecretUnavailable):
        return SecretUnavailable(failure.name, failure.reason, retry_after_s=failure.retry_after_s)
    return SecretDenied(failure.name, failure.reason)


def _read_line(path: Any, what: str) -> Secret:
    """One line of a private file, without its line end. Raises `SecretUnavailable`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SecretUnavailable("", f"the {what} {path} cannot be read: {error.strerror}") from None
    text = raw.strip()
    if not text or len(text) > MAX_TOKEN_BYTES or not all(0x20 < byte < 0x7F for byte in text):
        raise SecretUnavailable("", f"the {what} {path} holds no one line of visible ASCII")
    return Secret(text)
