"""A secret id in an envelope: a wrapping token in a file, checked and unwrapped once.

Rules (Vault, "Response wrapping"):
- Before it is opened the envelope is asked where it was made. Only `auth/<mount>/role/<role>/secret-id` will do: whoever
  took the envelope on its way, opened it and made another around the same, made that one at `sys/wrapping/wrap`.
- It is opened once. An envelope that is open already is an alarm, and says so.
- The secret id is kept in memory, for later logins. A new envelope in the file is opened before its time is over.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

from vault.hashicorp.answers import VaultAnswer, VaultUnreachable
from vault.hashicorp.client import VaultCalls
from vault.hashicorp.files import LineFile
from vault.secret import Secret
from vault.store import SecretDenied, SecretUnavailable

_log = logging.getLogger("ostiary.vault")


class WrappedSecretId:
    """The secret id behind a wrapping token.

    Args:
        calls: makes calls.
        file: with the wrapping token.
        mount: of the AppRole method, without `auth/`.
    """

    def __init__(self, calls: VaultCalls, file: LineFile, mount: str) -> None:
        self.file = file
        self._calls = calls
        self._made_at = re.compile(rf"auth/{re.escape(mount)}/role/[^/]+/secret-id")
        self._known: Secret | None = None
        self._logins_left: int | None = None
        """None: as many as one likes."""
        self._waiting = False
        """A new envelope is in the file and could not be opened yet."""
        self._lost = False
        """An answer to our own unwrapping did not arrive."""

    @property
    def scarce(self) -> bool:
        """Whether the secret id serves a counted number of logins."""
        return self._logins_left is not None

    async def secret_id(self) -> Secret:
        """The secret id; opens the envelope in the file if that is a new one.

        Raises:
            SecretUnavailable, SecretDenied: there is none, with the reason.
        """
        if self._known is None or self._waiting or await asyncio.to_thread(self.file.changed):
            self._waiting = True
            try:
                await self._open()
            except SecretDenied:
                # An envelope that can never be opened is put aside; what was known before may serve on.
                self._waiting = False
                raise
            self._waiting = False
        if self._known is None or self._logins_left == 0:
            raise SecretDenied(
                "",
                f"the secret id that came in the wrapped_file {self.file.path} has served all its logins: put a new "
                "wrapping token there",
            )
        return self._known

    def used(self) -> None:
        """A login was made with it."""
        if self._logins_left:
            self._logins_left -= 1

    async def examine(self) -> str:
        """Where the envelope was made, without opening it.

        Raises:
            SecretUnavailable, SecretDenied: it cannot be opened, or was made elsewhere.
        """
        wrapping = await asyncio.to_thread(self.file.read)
        return await self._made(wrapping)

    async def _made(self, wrapping: Secret) -> str:
        answer = await self._ask(
            "no wrapping token that can still be opened",
            lambda client: client.adapter.post("/v1/sys/wrapping/lookup", json={"token": wrapping.reveal()}),
            None,
            wrapping,
        )
        path = str(answer["data"]["creation_path"])
        if not self._made_at.fullmatch(path):
            shown = "".join(char for char in path if char.isprintable())[:100]
            raise SecretDenied(
                "",
                f"the wrapping token in {self.file.path} was made at {shown} and not by AppRole: somebody may have opened "
                "it on its way and wrapped it again. It was not opened; make a new secret id and destroy the old one",
            )
        return path

    async def _open(self) -> None:
        wrapping = await asyncio.to_thread(self.file.read)
        path = await self._made(wrapping)
        self._lost = True
        answer = await self._ask(
            "a wrapping token that cannot be opened",
            lambda client: client.adapter.post("/v1/sys/wrapping/unwrap", json={}),
            wrapping,
            wrapping,
        )
        self._lost = False
        inside = answer["data"]
        secret_id = inside["secret_id"]
        if not isinstance(secret_id, str) or not secret_id:
            raise ValueError("an envelope without a secret id")
        uses = inside.get("secret_id_num_uses")
        self._known = Secret(secret_id)
        self._logins_left = uses if isinstance(uses, int) and uses > 0 else None
        _log.info("the secret id made at %s was unwrapped", path)
        if self._logins_left is not None:
            _log.warning(
                "the secret id serves %d login(s): when the token has reached its max TTL, or this process starts again, "
                "%s must hold a new wrapping token",
                self._logins_left,
                self.file.path,
            )

    async def _ask(self, what: str, work: Any, token: Secret | None, wrapping: Secret) -> Any:
        try:
            return await self._calls.run(work, token)
        except VaultAnswer as error:
            reason = error.reason_without(wrapping)
            if error.status in {400, 403, 404}:
                why = (
                    "Vault's answer to its unwrapping was lost on its way here"
                    if self._lost
                    else "If its time was not over, somebody else has opened it: look into Vault's audit, destroy the secret id"
                )
                raise SecretDenied(
                    "",
                    f"the wrapped_file {self.file.path} holds {what}: Vault says {reason}. {why}; put a new wrapping token "
                    "there",
                ) from None
            raise SecretUnavailable(
                "", f"Vault did not unwrap the secret id: {reason}", retry_after_s=error.retry_after_s or 1.0
            ) from None
        except VaultUnreachable as error:
            raise SecretUnavailable("", f"Vault cannot be reached: {error}") from None
