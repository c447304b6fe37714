"""Vault's engines that lend: a read at `creds/ROLE` makes a credential and a lease.

A read that is answered without a lease is no credential of such an engine, and none is made of it: it may be a KV secret,
which has rules of its own.
https://developer.hashicorp.com/vault/api-docs/system/leases
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal, Protocol

import hvac

from vault.hashicorp.answers import VaultAnswer, VaultUnreachable
from vault.leases import Leased, LeaseGone, LeaseRef
from vault.secret import Secret
from vault.store import SecretDenied, SecretMalformed, SecretMissing, SecretRef, SecretVersion

MAX_FIELDS: Final = 64
MAX_VALUE: Final = 64 * 1024
MAX_ID: Final = 1024
_NOT_FOUND: Final = ("lease not found", "invalid lease")


class Calls(Protocol):
    """One call by the rules of the store: one deadline, its errors as `StoreError`. After a 403 it may log in anew to make
    a lease, never to renew or revoke one.
    """

    async def __call__[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T: ...


async def lease(calls: Calls, ref: LeaseRef, login: int) -> Leased:
    """See `LeasingStore.lease`."""

    def work(client: hvac.Client, _: Literal[1, 2]) -> Leased:
        told = client.adapter.get(f"/v1/{ref.name}")
        try:
            return _read(told, login)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            _give_back(client, told)
            raise ValueError("nothing that is lent, or not usable") from None

    try:
        return await calls(ref, work)
    except SecretDenied:
        raise SecretDenied(ref.name, "Vault denies it: its policy needs read on it") from None
    except SecretMissing:
        raise SecretMissing(ref.name, "is no role of that engine") from None
    except SecretMalformed:
        raise SecretMalformed(ref.name, "was answered without a lease: is it a path of an engine that lends?") from None


async def renew(calls: Calls, ref: LeaseRef, leased: Leased) -> float:
    """See `LeasingStore.renew`."""
    body = {"lease_id": leased.lease_id, "increment": int(leased.life_s)}

    def work(client: hvac.Client, _: Literal[1, 2]) -> float | None:
        try:
            answer = client.adapter.post("/v1/sys/leases/renew", json=body, repeatable=True)
        except VaultAnswer as refused:
            if refused.status == 400 and any(text in one for one in refused.reasons for text in _NOT_FOUND):
                return None
            raise
        return _seconds(answer["lease_duration"])

    try:
        granted_s = await calls(ref, work)
    except SecretDenied:
        raise SecretDenied(ref.name, "Vault denies update on sys/leases/renew") from None
    except SecretMissing:
        raise SecretDenied(ref.name, "Vault does not renew it") from None
    if granted_s is None:
        raise LeaseGone
    return granted_s


async def revoke(calls: Calls, ref: LeaseRef, leased: Leased) -> None:
    """See `LeasingStore.revoke`. Synchronous at the server: once it has answered, the credential is no more."""
    body = {"lease_id": leased.lease_id, "sync": True}

    def work(client: hvac.Client, _: Literal[1, 2]) -> None:
        client.adapter.post("/v1/sys/leases/revoke", json=body, repeatable=True)

    try:
        await calls(ref, work)
    except SecretMissing:
        return  # there is none of that name


def _give_back(client: hvac.Client, told: object) -> None:
    """Ends the lease of an answer that is of no use: requests go on asking, and each answer may be one more user."""
    lease_id = told.get("lease_id") if isinstance(told, dict) else None
    if not isinstance(lease_id, str) or not lease_id:
        return
    with suppress(VaultAnswer, VaultUnreachable):  # it ends by itself
        client.adapter.post("/v1/sys/leases/revoke", json={"lease_id": lease_id, "sync": True}, repeatable=True)


def _read(told: dict[str, Any], login: int) -> Leased:
    """Raises KeyError, TypeError, ValueError: it is nothing that is lent."""
    lease_id, life_s, data = told["lease_id"], _seconds(told["lease_duration"]), told["data"]
    if not isinstance(lease_id, str) or not 0 < len(lease_id) <= MAX_ID or not isinstance(data, dict):
        raise ValueError("no lease")
    if not lease_id.isprintable():
        raise ValueError("would be a line of its own where it is shown")
    if not 0 < len(data) <= MAX_FIELDS:
        raise ValueError("no fields")
    # Engines give null where a kind of credential has no such field (AWS: `security_token`).
    # Lists and mappings (LDAP: `distinguished_names`) are nothing that could be put into a request.
    fields = {str(name): _value(value) for name, value in data.items() if isinstance(value, str | int)}
    if not fields:
        raise ValueError("no fields")
    number = hashlib.sha256(lease_id.encode()).hexdigest()[:16]
    return Leased(SecretVersion(fields, number, lease=lease_id), lease_id, life_s, told.get("renewable") is True, login)


def _value(value: str | int) -> Secret:
    # Consul: `local: false`
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if len(text) > MAX_VALUE:
        raise ValueError("too long")
    return Secret(text)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("no duration")
    return float(value)
