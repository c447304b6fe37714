"""A real cluster of three nodes: the active one steps down, is sealed, unsealed and killed, and reads go on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.harness.openbao_cluster import Cluster, openbao_cluster
from vault.hashicorp.config import AppRoleAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.store import SecretRef, SecretUnavailable

REF = SecretRef("secret/egress/a", kv=2)
POLICY = (
    'path "secret/data/egress/*" { capabilities = ["read"] }\npath "auth/token/*" { capabilities = ["read", "update"] }'
)


def furnish(cluster: Cluster, folder: Path) -> AppRoleAuth:
    active, token = cluster.active(), cluster.token
    active.api("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}, token)
    active.api("PUT", "sys/policies/acl/egress", {"policy": POLICY}, token)
    active.api("POST", "sys/auth/approle", {"type": "approle"}, token)
    active.api("POST", "auth/approle/role/r", {"token_policies": ["egress"], "token_ttl": "1h"}, token)
    role = active.api("GET", "auth/approle/role/r/role-id", None, token)["data"]["role_id"]
    secret_id = active.api("POST", "auth/approle/role/r/secret-id", {}, token)["data"]["secret_id"]
    (folder / "role").write_text(role)
    (folder / "secret-id").write_text(secret_id)
    return AppRoleAuth(folder / "role", folder / "secret-id")


def write(cluster: Cluster, value: str) -> None:
    ends_s = time.monotonic() + 60
    while True:
        try:
            cluster.active().api("POST", "secret/data/egress/a", {"data": {"key": value}}, cluster.token)
        except OSError:
            assert time.monotonic() < ends_s
            time.sleep(0.2)
        else:
            return


async def read_until(vault: VaultStore, value: str) -> int:
    """Reads until a value is there: how many reads met an outage. Nothing else is met, or it would be raised."""
    outages, ends_s = 0, time.monotonic() + 40
    while True:
        assert time.monotonic() < ends_s
        try:
            found = await vault.fetch(REF)
        except SecretUnavailable:
            outages += 1
        else:
            if found.fields["key"].reveal() == value:
                return outages
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_v2_step_down_and_a_node_that_is_killed(tmp_path: Path) -> None:
    with openbao_cluster(tmp_path / "cluster") as cluster:
        auth = await asyncio.to_thread(furnish, cluster, tmp_path)
        await asyncio.to_thread(write, cluster, "one")
        vault = VaultStore(VaultConfig(cluster.addresses, auth))
        try:
            await read_until(vault, "one")
            active = await asyncio.to_thread(cluster.active)
            await asyncio.to_thread(active.api, "PUT", "sys/step-down", {}, cluster.token)
            writing = asyncio.create_task(asyncio.to_thread(write, cluster, "two"))
            await read_until(vault, "two")
            await writing
            # Whatever the election brought, nobody took it for a dead token or a denied path.
            assert vault._login.generation == 1
            # Sealed, it is one of three that does not serve; unsealed, a standby.
            active = await asyncio.to_thread(cluster.active)
            await asyncio.to_thread(active.api, "PUT", "sys/seal", {}, cluster.token)
            writing = asyncio.create_task(asyncio.to_thread(write, cluster, "three"))
            await read_until(vault, "three")
            await writing
            await asyncio.to_thread(cluster.unseal, active)
            active = await asyncio.to_thread(cluster.active)
            active.stop()
            writing = asyncio.create_task(asyncio.to_thread(write, cluster, "four"))
            await read_until(vault, "four")
            await writing
            # A login, which only the active node can make, works too.
            await vault._login.again(vault._login.generation)
            assert vault._login.generation == 2
            await vault.probe()
        finally:
            await vault.close()
