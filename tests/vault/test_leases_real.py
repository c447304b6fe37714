"""Leases of a real OpenBao for real users of a real Valkey: lent, renewed, revoked, and what is said no to."""

from __future__ import annotations

import contextlib
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from addons.clock import SystemClock
from tests.harness.lending import MAY, PASSWORD, connect, opens, role
from tests.harness.openbao import OpenBao
from tests.harness.valkey import Valkey
from vault.hashicorp.config import AppRoleAuth, TokenAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.leases import LeaseGone, LeaseRef, Leases
from vault.secret import Secret
from vault.store import SealedSecret, SecretDenied, SecretMalformed, SecretMissing, SecretRef


class Record:
    def __init__(self, sealed: SealedSecret) -> None:
        self.secret: str | None = sealed.name
        self.secret_version: str | None = sealed.version


@pytest.fixture(scope="module")
def database(openbao: OpenBao, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    valkey = Valkey(tmp_path_factory.mktemp("valkey"), password=PASSWORD)
    connect(openbao, valkey)
    role(openbao, "egress-ro", "10m", "15m")
    with contextlib.suppress(urllib.error.HTTPError):
        openbao.api("POST", "sys/mounts/plain", {"type": "kv"})
    openbao.api("POST", "plain/creds/it", {"password": "of-kv"})
    openbao.policy("leases", MAY + 'path "plain/creds/*" { capabilities = ["read"] }')
    openbao.policy("lends-only", 'path "database/creds/*" { capabilities = ["read"] }')
    yield valkey
    valkey.kill()


def store_of(openbao: OpenBao, policy: str = "leases") -> VaultStore:
    return VaultStore(VaultConfig((openbao.address,), TokenAuth(Secret(openbao.new_token(policy)))))


def ref(path: str = "database/creds/egress-ro") -> LeaseRef:
    return LeaseRef(path, kv=1)


async def test_lent_renewed_revoked(openbao: OpenBao, database: Valkey) -> None:
    store = store_of(openbao)
    try:
        leased = await store.lease(ref())
        assert (leased.life_s, leased.renewable) == (600.0, True)
        assert opens(database, leased.version.fields)
        assert 590 < await store.renew(ref(), leased) <= 600
        await store.revoke(ref(), leased)
        assert not opens(database, leased.version.fields)
        await store.revoke(ref(), leased)  # gone already: no error
        with pytest.raises(LeaseGone):
            await store.renew(ref(), leased)
    finally:
        await store.close()


async def test_a_new_one_before_the_old_goes_and_none_is_left_at_the_end(openbao: OpenBao, database: Valkey) -> None:
    store = store_of(openbao)
    leases = Leases(cast("Any", None), store, SystemClock().monotonic_s)
    try:
        first = await leases.read(ref(), ttl_s=0, max_stale_s=0)
        old = first.unseal(Record(first))
        second = await leases.read_other(ref(), first, ttl_s=0)
        assert second is not None
        new = second.unseal(Record(second))
        assert opens(database, old), "a request still holds it"
        assert opens(database, new)
        left_s = leases.left_s(ref())
        assert left_s is not None
        assert 500 < left_s <= 600
    finally:
        await leases.close()
        await store.close()
    assert not opens(database, new)
    assert not opens(database, old)


async def test_what_is_said_no_to(openbao: OpenBao, database: Valkey) -> None:
    store, bare = store_of(openbao), store_of(openbao, "lends-only")
    try:
        with pytest.raises(SecretMissing):
            await store.lease(ref("database/creds/nobody"))
        with pytest.raises(SecretDenied, match="read"):
            await store.lease(ref("elsewhere/creds/it"))
        with pytest.raises(SecretMalformed, match="without a lease"):
            await store.lease(ref("plain/creds/it"))
        with pytest.raises(SecretMalformed):
            await store.lease(ref("auth/token/lookup-self"))
        leased = await bare.lease(ref())
        login = bare.login()
        with pytest.raises(SecretDenied, match="sys/leases/renew"):
            await bare.renew(ref(), leased)
        assert bare.login() == login, "a new login would end every lease of this one"
        openbao.api("POST", "sys/leases/revoke", {"lease_id": leased.lease_id, "sync": True})
        assert not opens(database, leased.version.fields)
    finally:
        await store.close()
        await bare.close()


async def test_v5_a_denied_path_ends_no_login_that_leases_hang_on(
    openbao: OpenBao, database: Valkey, tmp_path: Path
) -> None:
    role_id, secret_id = openbao.approle("lent-to", "leases")
    (tmp_path / "secret-id").write_text(secret_id)
    config = VaultConfig((openbao.address,), AppRoleAuth(Secret(role_id), tmp_path / "secret-id"))
    store = VaultStore(config)
    store.keep_login(lambda: True)
    leases = Leases(cast("Any", None), store, SystemClock().monotonic_s)
    try:
        first = await leases.read(ref(), ttl_s=0, max_stale_s=0)
        with pytest.raises(SecretDenied):
            await store.fetch(SecretRef("secret/not-ours", kv=2))
        assert store.login() == 1
        assert opens(database, first.unseal(Record(first)))
        # A token that is dead takes its leases along: both are had anew.
        openbao.api("POST", "auth/token/revoke", {"token": (await store._login.token()).reveal()})
        with pytest.raises(SecretDenied):
            await store.fetch(SecretRef("secret/not-ours-either", kv=2))
        assert store.login() == 2
        leases.tick()
        second = await leases.read(ref(), ttl_s=0, max_stale_s=0, bypass=True)
        assert second.version != first.version
        assert opens(database, second.unseal(Record(second)))
    finally:
        await leases.close()
        await store.close()
