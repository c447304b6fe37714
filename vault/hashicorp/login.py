"""Keeps a token: one login at a time, renewed in good time, replaced before it dies, revoked at the end if it was ours.

Times: renew at 2/3 of the TTL with 10 % jitter; a token that cannot be renewed is replaced at 85 %; after a failure
back off from 1 s, doubling, to 5 min.
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
        self._lock = asyncio.Lock()
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
        if isinstance(self._auth, TokenFileAuth) and await asyncio.to_thread(self._file_changed, self._auth):
            await self.again(self._generation)
        if self._token is None:
            await self.again(self._generation)
        if self._token is None:
            raise SecretUnavailable("", "there is no Vault login")
        return self._token

    async def again(self, generation: int) -> None:
        """Logs in anew, unless somebody has since `generation`. Raises as `token` does."""
        async with self._lock:
            if generation != self._generation:
                return
            await self._log_in()
            self._generation += 1
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

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
            if error.status == 403:
                raise SecretDenied("", f"Vault does not accept the token: {error.reason}") from None
            self._ends_s = math.inf
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
            with suppress(VaultAnswer, VaultUnreachable):
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
        if self._own and self._token is not None:
            with suppress(VaultAnswer, VaultUnreachable):
                await self._calls.run(lambda client: client.auth.token.revoke_self(), self._token)
        self._token = None


def _read_line(path: Any, what: str) -> Secret:
    """One line of a private file, without its line end. Raises `SecretUnavailable`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SecretUnavailable("", f"the {what} {path} cannot be read: {error.strerror}") from None
    text = raw.strip()
    if not text or len(text) > MAX_TOKEN_BYTES:
        raise SecretUnavailable("", f"the {what} {path} is empty or too long")
    return Secret(text)
