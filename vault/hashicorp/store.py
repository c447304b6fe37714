"""Vault as a `SecretStore`: login, KV detection, and the one table from Vault's statuses to store errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import hvac

from vault.hashicorp import kv
from vault.hashicorp.client import VaultAnswer, VaultCalls, VaultUnreachable
from vault.hashicorp.config import VaultConfig
from vault.hashicorp.login import Login
from vault.observer import Silent, StoreObserver
from vault.store import SecretDenied, SecretMalformed, SecretMissing, SecretRef, SecretUnavailable, SecretVersion

_log = logging.getLogger("ostiary.vault")


class VaultStore:
    """Reads secrets from Vault or OpenBao.

    Args:
        config: addresses, login, deadlines.
        observer: told of health and token TTL.
    """

    name: Literal["vault", "sealed"] = "vault"

    def __init__(self, config: VaultConfig, observer: StoreObserver | None = None) -> None:
        self._observer = observer or Silent()
        self._namespace = config.namespace
        self._calls = VaultCalls(config)
        self._login = Login(self._calls, config.auth, self._observer)
        self._mounts: dict[str, Literal[1, 2]] = {}

    async def start(self) -> None:
        """Logs in.

        Raises:
            SecretUnavailable, SecretDenied: with Vault's reason.
        """
        await self._login.token()

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        """See `SecretStore.fetch`."""
        return await self._call(ref, lambda client, version: kv.read(client, ref, version))

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        """See `SecretStore.fields_of`."""
        return await self._call(ref, lambda client, version: kv.field_names(client, ref, version))

    async def probe(self) -> None:
        """Whether a node is unsealed and reachable (GET sys/health; standby counts as up)."""
        try:
            answer = await self._calls.run(lambda client: client.sys.read_health_status(method="GET"), None)
        except (VaultAnswer, VaultUnreachable) as error:
            self._observer.store_up(up=False)
            raise SecretUnavailable("", f"Vault is not healthy: {error}") from None
        sealed = answer.get("sealed") if isinstance(answer, dict) else None
        if sealed is not False:
            self._observer.store_up(up=False)
            raise SecretUnavailable("", "Vault is sealed or not initialised")
        self._observer.store_up(up=True)

    async def close(self) -> None:
        """Revokes an own login and ends the threads."""
        await self._login.close()
        self._calls.close()

    # --- one call ---

    async def _call[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T:
        generation = self._login.generation
        try:
            return await self._once(ref, work)
        except VaultAnswer as first:
            if first.status != 403:
                raise self._mapped(ref, first) from None
        # Perhaps the token has died: one new login, shared by all who met this, and one more try.
        await self._login.again(generation or self._login.generation)
        try:
            return await self._once(ref, work)
        except VaultAnswer as second:
            raise self._mapped(ref, second) from None

    async def _once[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T:
        token = await self._login.token()
        mount, _ = kv.split(ref)
        version = ref.kv or self._mounts.get(mount)

        def job(client: hvac.Client) -> tuple[Literal[1, 2], T]:
            # Clients are shared by all secrets: the namespace is said anew for each.
            client.adapter.namespace = ref.namespace or self._namespace
            found = version or kv.detect(client, mount)
            return found, work(client, found)

        try:
            found, result = await self._calls.run(job, token)
        except VaultUnreachable as error:
            self._observer.store_up(up=False)
            raise SecretUnavailable(ref.name, str(error)) from None
        except (AttributeError, KeyError, TypeError, ValueError):
            # JSON of another shape than any secret has; the exception's text may quote it.
            raise SecretMalformed(ref.name, "came in a shape that no secret has") from None
        self._observer.store_up(up=True)
        self._mounts[mount] = found
        return result

    def _mapped(self, ref: SecretRef, answer: VaultAnswer) -> SecretDenied | SecretMissing | SecretUnavailable:
        """Vault's status as a store error."""
        match answer.status:
            case 403:
                _log.warning(
                    "Vault denies %s: %s (does the policy allow read on it, and on its mount if kv is not given?)",
                    ref.name,
                    answer.reason,
                )
                return SecretDenied(ref.name, "Vault denies reading it")
            case 404:
                return SecretMissing(ref.name, "is deleted or destroyed" if answer.reasons else "does not exist")
            case 400 | 405:
                _log.warning("Vault rejects the request for %s: %s", ref.name, answer.reason)
                return SecretMissing(ref.name, "cannot be read there: is the path right, and the KV version?")
            case _:
                self._observer.store_up(up=False)
                return SecretUnavailable(
                    ref.name, f"Vault answered {answer.status}", retry_after_s=answer.retry_after_s or 1.0
                )
