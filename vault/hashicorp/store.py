"""Vault as a `SecretStore`: login, KV detection, and the one table from Vault's statuses to store errors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import hvac

from vault.hashicorp import kv, leases, pki
from vault.hashicorp.answers import DetectionRefused, VaultAnswer, VaultResting, VaultUnreachable
from vault.hashicorp.client import VaultCalls
from vault.hashicorp.config import VaultConfig
from vault.hashicorp.handed import Ask, HandedOn
from vault.hashicorp.login import Login
from vault.hashicorp.transit import Transit
from vault.issued import Issued, IssuedRef
from vault.keys import KeyRef, Operation
from vault.leases import Leased, LeaseRef
from vault.observer import Silent, StoreObserver
from vault.secret import Secret
from vault.store import (
    Described,
    SecretDenied,
    SecretMalformed,
    SecretMissing,
    SecretRef,
    SecretUnavailable,
    SecretVersion,
)

_log = logging.getLogger("ostiary.vault")

REFUSED_S: Final = 60.0
"""How long a 403 that a new login did not mend is put down to Vault's policy, not to the login. A role's new policies
need a new login, so it is tried again after that."""
MAX_REFUSED: Final = 10_000
KEPT_THREADS: Final = 2
"""Threads that signatures never take: reads of secrets go on beside them."""


class VaultStore:
    """Reads secrets from Vault or OpenBao.

    Args:
        config: addresses, login, deadlines.
        observer: told of health and token TTL.
        ask: gives a login of another process, in the place of one of its own.
    """

    name: Literal["vault", "sealed"] = "vault"

    def __init__(self, config: VaultConfig, observer: StoreObserver | None = None, ask: Ask | None = None) -> None:
        self._observer = observer or Silent()
        self._namespace = config.namespace
        self._deadline_s = config.deadline_s
        self._calls = VaultCalls(config)
        self._login = Login(self._calls, config.auth, self._observer, method=HandedOn(ask) if ask is not None else None)
        self._mounts: dict[tuple[str | None, str], Literal[1, 2]] = {}
        self._refused: dict[SecretRef, float] = {}
        self._lent: Callable[[], bool] = lambda: False
        self._transit = Transit(self._call, config.deadline_s, max(1, config.threads - KEPT_THREADS))

    async def start(self) -> None:
        """Logs in.

        Raises:
            SecretUnavailable, SecretDenied: with Vault's reason.
        """
        await self._login.token()

    async def examine(self) -> str:
        """For `doctor` and `check --live`: logs in, unless that would use up what `run` needs (a wrapped secret id, which
        can be unwrapped once). Empty after a login, else what was looked at instead; then no secret can be asked for.

        Raises:
            SecretUnavailable, SecretDenied: with Vault's reason.
        """
        return await self._login.examine()

    async def fetch(self, ref: SecretRef) -> SecretVersion:
        """See `SecretStore.fetch`."""
        return await self._call(ref, lambda client, version: kv.read(client, ref, version))

    async def fields_of(self, ref: SecretRef) -> frozenset[str]:
        """See `SecretStore.fields_of`."""
        return (await self.describe(ref)).fields

    async def unchanged(self, ref: SecretRef, known: SecretVersion) -> bool:
        """See `SecretStore.unchanged`. A refusal is no reason to log in anew: the read that follows is."""
        kv.split(ref)
        try:
            async with asyncio.timeout(self._deadline_s):
                token = await self._login.token()
                return await self._once(ref, lambda client, version: kv.unchanged(client, ref, version, known), token)
        except TimeoutError:
            self._observer.store_up(up=False)
            raise SecretUnavailable(ref.name, f"Vault did not answer within {self._deadline_s:g} s") from None
        except (SecretDenied, SecretMalformed):
            return False
        except VaultAnswer as answer:
            if answer.status in {400, 403, 404, 405}:
                return False
            raise self._mapped(ref, answer) from None

    async def write(self, ref: SecretRef, fields: Mapping[str, Secret], *, over: str) -> None:
        """See `SecretWriter.write`."""
        try:
            await self._call(ref, lambda client, version: kv.write(client, ref, version, fields, over))
        except SecretDenied:
            raise SecretDenied(ref.name, "Vault denies writing it: its policy needs update on it") from None

    async def describe(self, ref: SecretRef) -> Described:
        """See `SecretStore.describe`."""
        return await self._call(ref, lambda client, version: kv.describe(client, ref, version))

    async def compute(self, ref: KeyRef, operation: Operation, text: bytes) -> SecretVersion:
        """See `KeyStore.compute`."""
        return await self._transit.compute(ref, operation, text)

    async def issue(self, ref: IssuedRef) -> Issued:
        """See `IssuingStore.issue`."""
        return await pki.issue(self._call, ref)

    def login(self) -> int:
        """See `LeasingStore.login`."""
        return self._login.generation

    def keep_login(self, lent: Callable[[], bool]) -> None:
        """See `LeasingStore.keep_login`."""
        self._lent = lent

    async def lease(self, ref: LeaseRef) -> Leased:
        """See `LeasingStore.lease`."""
        return await leases.lease(self._call, ref, self._login.generation)

    async def renew(self, ref: LeaseRef, leased: Leased) -> float:
        """See `LeasingStore.renew`."""
        return await leases.renew(self._call_once, ref, leased)

    async def revoke(self, ref: LeaseRef, leased: Leased) -> None:
        """See `LeasingStore.revoke`."""
        await leases.revoke(self._call_once, ref, leased)

    async def capabilities(self, paths: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """What the login may do at these paths of Vault's API, as Vault tells it (`sys/capabilities-self`); an empty
        mapping where it may not even ask that.

        Raises:
            SecretUnavailable, SecretDenied: there is no login or no answer.
        """
        token = await self._login.token()
        try:
            answer = await self._calls.run(
                lambda client: client.adapter.post("/v1/sys/capabilities-self", json={"paths": list(paths)}), token
            )
        except VaultAnswer as refused:
            if refused.status == 403:
                return {}
            raise SecretUnavailable("", f"Vault does not tell what the login may do: {refused.reason}") from None
        except VaultUnreachable as error:
            raise SecretUnavailable("", str(error)) from None
        told = answer.get("data") if isinstance(answer, dict) else None
        found = told if isinstance(told, dict) else {}
        return {path: tuple(str(one) for one in what) for path in paths if isinstance(what := found.get(path), list)}

    async def probe(self) -> None:
        """Whether a node is unsealed and reachable (GET sys/health; standby counts as up). Asked of the next address
        too, should the first not do, and of the root namespace, where this endpoint is.
        """
        try:
            answer = await self._calls.run(
                lambda client: client.adapter.get("/v1/sys/health?standbyok=true&perfstandbyok=true"),
                None,
                namespace="",
                anyhow=True,
            )
        except VaultAnswer as error:
            self._observer.store_up(up=False)
            sealed = error.status in {501, 503}
            raise SecretUnavailable(
                "", "Vault is sealed or not initialised" if sealed else f"Vault is not healthy: {error}"
            ) from None
        except VaultUnreachable as error:
            self._observer.store_up(up=False)
            raise SecretUnavailable("", f"Vault is not healthy: {error}") from None
        if not isinstance(answer, dict) or answer.get("sealed") is not False:
            self._observer.store_up(up=False)
            raise SecretUnavailable("", "Vault is sealed or not initialised")
        self._observer.store_up(up=True)

    def peers(self) -> tuple[tuple[str, int], ...]:
        """Addresses that connections to Vault lead to, so that nothing else is led there."""
        return self._calls.peers()

    async def close(self) -> None:
        """Revokes an own login and ends the threads."""
        await self._transit.close()
        await self._login.close()
        self._calls.close()

    # --- one call ---

    async def _call[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T:
        kv.split(ref)
        try:
            # One deadline over everything a read may need: login, detection, a second login.
            async with asyncio.timeout(self._deadline_s):
                return await self._twice(ref, work)
        except TimeoutError:
            self._observer.store_up(up=False)
            raise SecretUnavailable(ref.name, f"Vault did not answer within {self._deadline_s:g} s") from None

    async def _call_once[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T:
        """As `_call`, but a 403 makes no new login: that would end all leases of the one in use."""
        kv.split(ref)
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._once(ref, work, await self._login.token())
        except TimeoutError:
            self._observer.store_up(up=False)
            raise SecretUnavailable(ref.name, f"Vault did not answer within {self._deadline_s:g} s") from None
        except VaultAnswer as answer:
            raise self._mapped(ref, answer) from None

    async def _twice[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T:
        token = await self._login.token()
        generation = self._login.generation
        try:
            return await self._once(ref, work, token)
        except VaultAnswer as first:
            if first.status != 403 or self._known_refusal(ref):
                raise self._mapped(ref, first) from None
        # Perhaps the token has died: one new login, shared by all who met this, and one more try.
        await self._login.doubted(generation, needed=self._lent())
        try:
            found = await self._once(ref, work, await self._login.token())
        except VaultAnswer as second:
            if second.status == 403:
                self._remember_refusal(ref)
            raise self._mapped(ref, second) from None
        self._refused.pop(ref, None)
        return found

    def _known_refusal(self, ref: SecretRef) -> bool:
        """Whether a login that was new refused this secret a moment ago: then a newer one would not help, and a route to
        a secret that is not allowed would log in at every read.
        """
        known_s = self._refused.get(ref)
        return known_s is not None and time.monotonic() - known_s < REFUSED_S

    def _remember_refusal(self, ref: SecretRef) -> None:
        self._refused.pop(ref, None)
        self._refused[ref] = time.monotonic()
        while len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    async def _once[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T], token: Secret) -> T:
        mount, _ = kv.split(ref)
        namespace = ref.namespace or self._namespace
        place = (namespace, mount)
        version = ref.kv or self._mounts.get(place)

        def job(client: hvac.Client) -> tuple[Literal[1, 2], T]:
            found = version or kv.detect(client, ref)
            return found, work(client, found)

        try:
            found, result = await self._calls.run(job, token, namespace=namespace)
        except VaultAnswer as answer:
            if answer.status in {400, 404, 405}:
                # Perhaps the mount was upgraded to KV version 2 since: the next read asks.
                self._mounts.pop(place, None)
            raise
        except VaultUnreachable as error:
            self._observer.store_up(up=False)
            wait_s = error.wait_s if isinstance(error, VaultResting) else 0.0
            raise SecretUnavailable(ref.name, str(error), retry_after_s=max(wait_s, 1.0)) from None
        except (AttributeError, KeyError, TypeError, ValueError):
            # JSON of another shape than any secret has; the exception's text may quote it.
            raise SecretMalformed(ref.name, "came in a shape that no secret has") from None
        self._observer.store_up(up=True)
        if ref.kv is None:
            self._mounts[place] = found
        return result

    def _mapped(self, ref: SecretRef, answer: VaultAnswer) -> SecretDenied | SecretMissing | SecretUnavailable:
        """Vault's status as a store error."""
        if answer.status in {400, 403, 404, 405} and not answer.passing:
            self._observer.store_up(up=True)
        match answer.status:
            case 403 if isinstance(answer, DetectionRefused):
                mount, _ = kv.split(ref)
                reason = (
                    f"Vault does not tell the KV version of mount {mount}: does it exist? Write kv: 1 or kv: 2, or let "
                    "Ostiary's policy read something on it"
                )
                _log.warning("%s: %s", ref.name, reason)
                return SecretDenied(ref.name, reason)
            case 403:
                _log.warning(
                    "Vault denies %s: %s (ostiary vault policy prints what is needed; kv must be given where the mount may not be asked about)",
                    ref.name,
                    answer.reason,
                )
                return SecretDenied(ref.name, "Vault denies reading it")
            case 404:
                return SecretMissing(ref.name, "is deleted or destroyed" if answer.reasons else "does not exist")
            case 400 | 405 if not answer.passing:
                _log.warning("Vault rejects the request for %s: %s", ref.name, answer.reason)
                return SecretMissing(ref.name, "cannot be read there: is the path right, and the KV version?")
            case _:
                self._observer.store_up(up=False)
                return SecretUnavailable(
                    ref.name, f"Vault answered {answer.status}", retry_after_s=answer.retry_after_s or 1.0
                )
