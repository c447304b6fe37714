"""The AWS engine of HashiCorp Vault lends keys of IAM, which moto keeps in the place of Amazon."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from addons.clock import SystemClock
from tests.harness.installed import python_with
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import clean_environment
from tests.harness.ports import free_port
from tests.harness.two_ways import ROOT
from tests.harness.vault_binary import needs_aws
from vault.hashicorp.config import TokenAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.leases import LeaseRef, Leases
from vault.secret import Secret
from vault.store import SecretSource

pytestmark = [pytest.mark.slow, needs_aws]
MAY = """
path "aws/creds/egress" { capabilities = ["read"] }
path "sys/leases/renew" { capabilities = ["update"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "auth/token/*" { capabilities = ["read", "update"] }
"""


class Moto:
    """Its server, over plain http on loopback."""

    def __init__(self, python: Path) -> None:
        self.port = free_port()
        self._process = subprocess.Popen(
            [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment(),
        )  # fmt: skip
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                self.asked("ListUsers")
                return
            assert self._process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)

    def asked(self, action: str, **more: str) -> str:
        """What IAM answers."""
        scope = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0"
        data = urllib.parse.urlencode({"Action": action, "Version": "2010-05-08", **more}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/", data, {"Authorization": scope})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return cast("bytes", answer.read()).decode()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def moto() -> Iterator[Moto]:
    one = Moto(python_with("issuers", ROOT / "requirements" / "issuers.txt", patience_s=600))
    yield one
    one.stop()


@pytest.fixture
def lender(moto: Moto, tmp_path: Path) -> Iterator[OpenBao]:
    with openbao_server(tmp_path / "vault") as server:
        server.api("POST", "sys/mounts/aws", {"type": "aws"})
        here = f"http://127.0.0.1:{moto.port}"
        root = {"access_key": "test", "secret_key": "test", "region": "us-east-1"}
        server.api("POST", "aws/config/root", {**root, "iam_endpoint": here, "sts_endpoint": here})
        server.api("POST", "aws/config/lease", {"lease": "10m", "lease_max": "1h"})
        allow = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        server.api("POST", "aws/roles/egress", {"credential_type": "iam_user", "policy_document": document})
        server.policy("leases", MAY)
        yield server


class Record:
    def __init__(self, name: str, version: str) -> None:
        self.secret: str | None = name
        self.secret_version: str | None = version


async def test_v6_keys_of_iam_are_lent_and_taken_back(moto: Moto, lender: OpenBao) -> None:
    store = VaultStore(VaultConfig((lender.address,), TokenAuth(Secret(lender.new_token("leases")))))
    leases = Leases(cast("SecretSource", None), store, SystemClock().monotonic_s)
    ref = LeaseRef("aws/creds/egress", kv=1)
    try:
        sealed = await leases.read(ref, ttl_s=0, max_stale_s=0)
        fields = sealed.unseal(Record(sealed.name, sealed.version))
        key_id = fields["access_key"].reveal()
        assert fields["secret_key"].reveal()
        # Of a user there is no session token: a field that the engine leaves empty is none.
        assert set(fields) >= {"access_key", "secret_key"}
        assert "security_token" not in fields
        users = moto.asked("ListUsers")
        (name,) = [part.partition("</UserName>")[0] for part in users.split("<UserName>")[1:]]
        assert name.startswith("vault-")
        assert f"<AccessKeyId>{key_id}</AccessKeyId>" in moto.asked("ListAccessKeys", UserName=name)
        left_s = leases.left_s(ref)
        assert left_s is not None
        assert 500 < left_s <= 600
    finally:
        await leases.close()
        await store.close()
    assert "<UserName>" not in moto.asked("ListUsers")
    with pytest.raises(urllib.error.HTTPError):
        moto.asked("ListAccessKeys", UserName=name)
