"""One login to Vault for all workers: the supervisor logs in, renews and revokes; a worker asks for the token over its
channel, and says which login it knows and whether Vault refused it.

Logins are numbered: who doubts one that has been replaced since gets the new one, and no login is made. The token is in
no environment, argument or log. Methods that make no login (`token_file` and `token`) are left to each worker: what they
give is nobody's here to renew or revoke.
"""

from __future__ import annotations

import math
from typing import Any, Final

from ostiary.settings.model import Settings
from ostiary.workers.channel import Body, Channel, ChannelClosed, NotDone
from vault.hashicorp.client import VaultCalls
from vault.hashicorp.config import TokenAuth, TokenFileAuth, VaultConfig
from vault.hashicorp.handed import Ask, Handed
from vault.hashicorp.login import Login
from vault.observer import Silent
from vault.secret import Secret
from vault.store import SecretDenied, SecretUnavailable

ASK_S: Final = 20.0
"""A login takes a few calls, each with Vault's deadline; reads that wait for it end by their own."""


def shares_login(settings: Settings) -> bool:
    """Whether the supervisor logs in for its workers."""
    vault = settings.vault if settings.store == "vault" else None
    return vault is not None and not isinstance(vault.auth, TokenFileAuth | TokenAuth)


class SharedLogin:
    """The supervisor's side."""

    def __init__(self, config: VaultConfig) -> None:
        self._calls = VaultCalls(config)
        self._login = Login(self._calls, config.auth, Silent())

    async def answer(self, body: Body) -> dict[str, Any]:
        """The login to use now, or why there is none."""
        known, doubted = int(body["known"]), bool(body["doubted"])
        try:
            if doubted and known == self._login.generation:
                await self._login.doubted(known)
            token = await self._login.token()
        except SecretDenied as error:
            return {"denied": error.reason}
        except SecretUnavailable as error:
            return {"unavailable": error.reason, "retry_after_s": error.retry_after_s}
        left_s = self._login.left_s
        return {
            "number": self._login.generation,
            "token": token.reveal(),
            "ttl_s": left_s if math.isfinite(left_s) else None,
        }

    async def close(self) -> None:
        """Revokes the login. To be called when no worker is left that could use it."""
        await self._login.close()
        self._calls.close()


def asking(channel: Channel) -> Ask:
    """The worker's side: asks the supervisor."""

    async def ask(known: int, doubted: bool) -> Handed:
        try:
            body = await channel.ask("login", ASK_S, known=known, doubted=doubted)
        except (ChannelClosed, NotDone, TimeoutError) as error:
            raise SecretUnavailable("", f"the supervisor gave no Vault login ({type(error).__name__})") from None
        if "denied" in body:
            raise SecretDenied("", str(body["denied"]))
        if "unavailable" in body:
            raise SecretUnavailable("", str(body["unavailable"]), retry_after_s=float(body["retry_after_s"]))
        ttl_s = body["ttl_s"]
        return Handed(int(body["number"]), Secret(body["token"]), math.inf if ttl_s is None else float(ttl_s))

    return ask
