"""The first guides and the README's first route, word by word against the real process."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.harness import lending
from tests.harness.canaries import canary
from tests.harness.guides import ROOT, Reader, blocks
from tests.harness.ports import free_port
from tests.harness.upstream import Seen, Upstream, Wire
from tests.harness.valkey import Valkey


def test_first_route(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    api, key = upstream(names=("api.example.com",)), canary()
    one = reader(
        upstreams={"api.example.com:443": api.port},
        secrets=(key,),
        typed=key + "\n",
        replaced={":8080": f":{free_port()}"},
    )
    one.follow(blocks("first-route"))
    assert [seen.target for seen in api.requests] == ["/v1/things", "/v1/things", "/v2/things"]
    assert {seen.get("X-Api-Key") for seen in api.requests} == {key}


def test_the_route_of_the_readme(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    api, key = upstream(names=("api.github.com",)), canary()
    one = reader(
        upstreams={"api.github.com:443": api.port},
        secrets=(key,),
        typed=key + "\n",
        replaced={":8080": f":{free_port()}"},
    )
    one.follow(blocks(ROOT / "README.md", "## The first real route, in five minutes"))
    assert [seen.target for seen in api.requests] == ["/user", "/user"]
    assert {seen.get("Authorization") for seen in api.requests} == {f"Bearer {key}"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_own_api(reader: Callable[..., Reader]) -> None:
    one = reader(
        upstreams={},
        secrets=("the-orders-key",),
        written=("api.py",),
        replaced={":8080": f":{free_port()}", "8443": str(free_port())},
    )
    one.follow(blocks("own-api"))


def test_vault(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    api = upstream(names=("api.example.com",))
    one = reader(
        upstreams={"api.example.com:443": api.port},
        secrets=("first-key", "second-key"),
        replaced={":8080": f":{free_port()}", ":8200": f":{free_port()}"},
    )
    one.follow(blocks("vault"))
    assert [seen.get("Authorization") for seen in api.requests] == [
        "Bearer first-key",
        "Bearer first-key",
        "Bearer second-key",
        "Bearer second-key",
    ]
    for name in ("secret-id", "wrapped", "vault-token"):
        assert (one.folder / name).stat().st_mode & 0o777 == 0o600


def test_vault_agent(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    api = upstream(lambda _, wire: wire.answer(200, b"hello\n"), names=("api.example.com",))
    one = reader(
        upstreams={"api.example.com:443": api.port},
        secrets=("first-key",),
        replaced={":8080": f":{free_port()}", ":8200": f":{free_port()}", ":9090": f":{free_port()}"},
    )
    one.follow(blocks("vault-agent"))
    assert [seen.get("Authorization") for seen in api.requests] == ["Bearer first-key"] * 2
    assert (one.folder / "vault-token").stat().st_mode & 0o777 == 0o600


def test_rotation(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    keys = [f"Bearer {name}-key" for name in ("first", "second", "third", "fourth")]

    def provider(seen: Seen, wire: Wire) -> None:
        # The second key is killed after its first use.
        sent = [one.get("Authorization") for one in api.requests]
        killed = seen.get("Authorization") == keys[1] and sent.count(keys[1]) > 1
        wire.answer(401 if killed else 200, b"rejected" if killed else b"hello\n")

    api = upstream(provider, names=("api.example.com",))
    one = reader(
        upstreams={"api.example.com:443": api.port},
        secrets=("first-key", "second-key", "third-key", "fourth-key"),
        written=("ostiary.yaml",),
        replaced={":8080": f":{free_port()}", ":8200": f":{free_port()}"},
    )
    one.follow(blocks("rotation"))
    first, second, third, fourth = keys
    assert [seen.get("Authorization") for seen in api.requests] == [first, first, second, second, third, fourth]


def test_transit_signing(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    api = upstream(names=("api.example.com",))
    one = reader(
        upstreams={"api.example.com:443": api.port},
        secrets=(),
        replaced={":8080": f":{free_port()}", ":8200": f":{free_port()}"},
    )
    one.follow(blocks("transit-signing"))
    keys = json.loads(one.type("bao read -format=json transit/keys/egress-bank"))["data"]["keys"]
    assert [seen.target for seen in api.requests] == ["/payments", "/payments"], "the third one was not signed"
    for number, seen in enumerate(api.requests, 1):
        params = (seen.get("signature-input") or "").removeprefix("sig1=")
        digest = base64.b64encode(hashlib.sha256(f"amount={11 + number}".encode()).digest()).decode()
        base = f'"@method": POST\n"@target-uri": https://api.example.com/payments\n"content-digest": sha-256=:{digest}:\n"@signature-params": {params}'
        signature = base64.b64decode((seen.get("signature") or "").removeprefix("sig1=:").removesuffix(":"))
        public = base64.b64decode(keys[str(number)]["public_key"])
        Ed25519PublicKey.from_public_bytes(public).verify(signature, base.encode())


def test_dynamic_credentials(reader: Callable[..., Reader], upstream: Callable[..., Upstream], tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey", password=lending.PASSWORD)
    try:
        api = upstream(lending.asks(valkey), names=("api.example.com",))
        one = reader(
            upstreams={"api.example.com:443": api.port},
            secrets=(lending.PASSWORD,),
            replaced={
                ":8080": f":{free_port()}",
                ":8200": f":{free_port()}",
                "$DATABASE_PASSWORD": lending.PASSWORD,
                "port=6379": f"port={valkey.port}",
                "valkey-database-plugin": lending.plugin(),
            },
        )
        one.follow(blocks("dynamic-credentials"))
        # One user, the one that the database knew no more, and the one in its place; then nothing was sent.
        shown = [seen.get("Authorization") for seen in api.requests]
        assert len(shown) == 3 + 1
        assert shown[0] == shown[1] != shown[2]
        assert lending.users(valkey) == []
    finally:
        valkey.kill()
