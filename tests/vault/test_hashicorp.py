"""The Vault store against a real OpenBao, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.scripted_vault import scripted, send
from vault.hashicorp.config import AppRoleAuth, TokenAuth, TokenFileAuth, VaultAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.secret import Secret
from vault.store import SecretDenied, SecretMalformed, SecretMissing, SecretRef, SecretUnavailable

READ = 'path "secret/data/egress/*" { capabilities = ["read"] }\npath "secret/subkeys/egress/*" { capabilities = ["read"] }\npath "old/egress/*" { capabilities = ["read"] }\npath "auth/token/renew-self" { capabilities = ["update"] }\npath "auth/token/lookup-self" { capabilities = ["read"] }\npath "auth/token/revoke-self" { capabilities = ["update"] }\n'


@contextlib.asynccontextmanager
async def store(address: str | tuple[str, ...], auth: VaultAuth, **given: Any) -> AsyncIterator[VaultStore]:
    made = VaultStore(VaultConfig((address,) if isinstance(address, str) else address, auth, **given))
    try:
        yield made
    finally:
        await made.close()


def root(openbao: OpenBao) -> TokenAuth:
    return TokenAuth(Secret(openbao.token))


async def test_kv2_versions_and_metadata(openbao: OpenBao) -> None:
    openbao.put("egress/kv2", key="one", other=7, flag=True, nested={"a": 1})
    openbao.put("egress/kv2", key="two")
    async with store(openbao.address, root(openbao)) as vault:
        newest = await vault.fetch(SecretRef("secret/egress/kv2"))
        assert (newest.version, newest.fields["key"].reveal()) == ("2", "two")
        assert newest.created_at
        pinned = await vault.fetch(SecretRef("egress/kv2", mount="secret", version=1, kv=2))
        assert {name: value.reveal() for name, value in pinned.fields.items()} == {
            "key": "one",
            "other": "7",
            "flag": "true",
        }
        assert await vault.fields_of(SecretRef("secret/egress/kv2")) == {"key"}
        await vault.probe()


async def test_kv1(openbao: OpenBao) -> None:
    with contextlib.suppress(OSError):
        openbao.api("POST", "sys/mounts/old", {"type": "kv", "options": {"version": "1"}})
    openbao.api("POST", "old/egress/a", {"key": "one"})
    async with store(openbao.address, root(openbao)) as vault:
        found = await vault.fetch(SecretRef("old/egress/a"))
        assert (found.version, found.fields["key"].reveal()) == ("v1", "one")
        assert await vault.fields_of(SecretRef("old/egress/a", kv=1)) == {"key"}
        with pytest.raises(SecretMissing):
            await vault.fetch(SecretRef("old/egress/a", version=1))


async def test_v8_missing_deleted_and_destroyed(openbao: OpenBao) -> None:
    openbao.put("egress/gone", key="x")
    openbao.put("egress/gone", key="y")
    async with store(openbao.address, root(openbao)) as vault:
        openbao.delete("egress/gone")
        with pytest.raises(SecretMissing, match="deleted or destroyed"):
            await vault.fetch(SecretRef("secret/egress/gone"))
        openbao.destroy("egress/gone", 1)
        for ref in (
            SecretRef("secret/egress/gone", version=1),
            SecretRef("secret/egress/never"),
            SecretRef("secret/egress/gone", version=9),
        ):
            with pytest.raises(SecretMissing):
                await vault.fetch(ref)


async def test_a_token_file_is_read_again(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.policy("egress", READ)
    openbao.put("egress/file", key="x")
    path = tmp_path / "token"
    first = openbao.new_token("egress")
    path.write_text(first + "\n")
    async with store(openbao.address, TokenFileAuth(path)) as vault:
        ref = SecretRef("secret/egress/file", kv=2)
        assert (await vault.fetch(ref)).fields["key"].reveal() == "x"
        openbao.api("POST", "auth/token/revoke", {"token": first})
        with pytest.raises(SecretDenied):
            await vault.fetch(ref)
        path.write_text(openbao.new_token("egress"))
        assert (await vault.fetch(ref)).fields["key"].reveal() == "x"
        # A path outside the policy is denied, and stays so after the one new login.
        with pytest.raises(SecretDenied):
            await vault.fetch(SecretRef("secret/other/x", kv=2))
    # A token that was given to us is not ours to revoke.
    assert openbao.api("GET", "auth/token/lookup-self", token=path.read_text())


async def test_approle_logs_in_again_and_revokes_its_own_token(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.policy("egress", READ)
    openbao.put("egress/role", key="x")
    role, secret = openbao.approle("ostiary", "egress", token_ttl="1h")
    (tmp_path / "secret-id").write_text(secret)
    ref = SecretRef("secret/egress/role", kv=2)
    async with store(openbao.address, AppRoleAuth(Secret(role), tmp_path / "secret-id")) as vault:
        await vault.start()
        token = await vault._login.token()
        assert (await vault.fetch(ref)).fields["key"].reveal() == "x"
        openbao.api("POST", "auth/token/revoke", {"token": token.reveal()})
        # Twenty callers meet the 403 together: one new login serves them all.
        found = await asyncio.gather(*(vault.fetch(ref) for _ in range(20)))
        assert {one.fields["key"].reveal() for one in found} == {"x"}
        assert vault._login.generation == 2
        fresh = (await vault._login.token()).reveal()
        assert fresh != token.reveal()
    with pytest.raises(OSError):
        openbao.api("GET", "auth/token/lookup-self", token=fresh)


async def test_a_token_is_renewed_in_time_and_replaced_at_its_end(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.policy("egress", READ)
    openbao.put("egress/ttl", key="x")
    role, secret = openbao.approle("short", "egress", token_ttl="2s", token_max_ttl="4s")
    (tmp_path / "secret-id").write_text(secret)
    async with store(openbao.address, AppRoleAuth(Secret(role), tmp_path / "secret-id")) as vault:
        ends = time.monotonic() + 6
        while time.monotonic() < ends:
            assert (await vault.fetch(SecretRef("secret/egress/ttl", kv=2))).fields["key"].reveal() == "x"
            await asyncio.sleep(0.2)
        assert vault._login.generation >= 2


async def test_a_login_that_can_never_work_says_why(openbao: OpenBao, tmp_path: Path) -> None:
    (tmp_path / "secret-id").write_text("cnry-wrong-secret-id")
    role, _ = openbao.approle("reason", "egress")
    async with store(openbao.address, AppRoleAuth(Secret(role), tmp_path / "secret-id")) as vault:
        with pytest.raises(SecretDenied, match="invalid") as error:
            await vault.start()
        assert "cnry" not in str(error.value)
    async with store(openbao.address, TokenFileAuth(tmp_path / "missing")) as vault:
        with pytest.raises(SecretUnavailable, match="cannot be read"):
            await vault.start()


async def test_v1_sealed(tmp_path: Path) -> None:
    with openbao_server(tmp_path, sealable=True) as server:
        server.put("egress/a", key="x")
        async with store(server.address, root(server)) as vault:
            ref = SecretRef("secret/egress/a")
            assert (await vault.fetch(ref)).version == "1"
            server.seal()
            with pytest.raises(SecretUnavailable):
                await vault.fetch(ref)
            with pytest.raises(SecretUnavailable, match="sealed"):
                await vault.probe()
            server.unseal()
            assert (await vault.fetch(ref)).version == "1"


# --- servers that misbehave -------------------------------------------------------------------------------------------


REF = SecretRef("secret/egress/a", kv=2)
TOKEN = TokenAuth(Secret("cnry-token"))
GOOD = {"data": {"data": {"key": "x"}, "metadata": {"version": 4}}, "auth": None}


def lookup_or(
    answer: Callable[[http.server.BaseHTTPRequestHandler], None],
) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup-self"):
            send(handler, 200, {"data": {"ttl": 0}})
        else:
            answer(handler)

    return script


@pytest.mark.parametrize(
    ("status", "headers", "retry_after"),
    [
        (429, {"Retry_After": "7"}, 7.0),
        (500, {}, 1.0),
        (503, {}, 1.0),
        (412, {}, 1.0),
        (472, {}, 1.0),
        (473, {}, 1.0),
        (530, {}, 1.0),
        (502, {}, 1.0),
    ],
)
async def test_outages_by_status(status: int, headers: dict[str, str], retry_after: float) -> None:
    with scripted(lookup_or(lambda handler: send(handler, status, {"errors": ["cnry-server-text"]}, **headers))) as (
        address,
        _,
    ):
        async with store(address, TOKEN) as vault:
            with pytest.raises(SecretUnavailable) as error:
                await vault.fetch(REF)
    assert error.value.retry_after_s == retry_after
    assert "cnry" not in str(error.value)


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'"text"', b"{" * 100, b"{}", b'{"data": null}'])
async def test_g13_malformed_answers(body: bytes) -> None:
    with scripted(lookup_or(lambda handler: send(handler, 200, body))) as (address, _):
        async with store(address, TOKEN) as vault:
            with pytest.raises((SecretMalformed, SecretMissing, SecretUnavailable)):
                await vault.fetch(REF)


async def test_v3_a_dripping_server_does_not_hold_a_thread() -> None:
    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    with scripted(lookup_or(drip)) as (address, _):
        async with store(address, TOKEN, deadline_s=0.5, threads=2) as vault:
            await vault.start()
            for _ in range(3):
                began = time.monotonic()
                results = await asyncio.gather(*(vault.fetch(REF) for _ in range(4)), return_exceptions=True)
                assert all(isinstance(result, SecretUnavailable) for result in results)
                assert time.monotonic() - began < 1.5


async def test_v3_a_silent_server_and_a_head_that_drips() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with store(address, TOKEN, deadline_s=0.4) as vault:
            began = time.monotonic()
            with pytest.raises(SecretUnavailable):
                await vault.fetch(REF)
            assert time.monotonic() - began < 1.5


async def test_an_answer_over_the_cap() -> None:
    big = json.dumps({"data": {"data": {"key": "x" * 100_000}, "metadata": {"version": 1}}}).encode()
    with scripted(lookup_or(lambda handler: send(handler, 200, big))) as (address, _):
        async with store(address, TOKEN, max_answer_bytes=10_000) as vault:
            with pytest.raises(SecretUnavailable):
                await vault.fetch(REF)


async def test_v2_a_redirect_does_not_take_the_token_along() -> None:
    with scripted(lambda handler: send(handler, 200, GOOD)) as (elsewhere, stolen):
        with scripted(
            lookup_or(lambda handler: send(handler, 307, b"", Location=f"{elsewhere}/v1/secret/data/egress/a"))
        ) as (standby, _):
            async with store(standby, TOKEN) as vault:
                with pytest.raises(SecretUnavailable):
                    await vault.fetch(REF)
        assert stolen == []


async def test_v2_the_next_address_is_asked_once() -> None:
    with scripted(lookup_or(lambda handler: send(handler, 200, GOOD))) as (active, seen):
        with scripted(lambda handler: send(handler, 307, b"", Location="http://127.0.0.1:1/")) as (standby, _):
            async with store((standby, active), TOKEN) as vault:
                assert (await vault.fetch(REF)).version == "4"
        async with store(("http://127.0.0.1:9", active), TOKEN) as vault:
            assert (await vault.fetch(REF)).version == "4"
        assert all(headers["X-Vault-Token"] == "cnry-token" for _, headers in seen)


async def test_v4_nobody_there_and_bad_tls(tmp_path: Path) -> None:
    from tests.harness.pki import Pki
    from tests.harness.upstream import Upstream

    async with store("http://127.0.0.1:9", TOKEN) as vault:
        with pytest.raises(SecretUnavailable):
            await vault.fetch(REF)
        with pytest.raises(SecretUnavailable):
            await vault.probe()
    server = Upstream(Pki.make(tmp_path).context("vault.test"))
    try:
        async with store(f"https://127.0.0.1:{server.port}", TOKEN) as vault:
            with pytest.raises(SecretUnavailable, match="TLS"):
                await vault.fetch(REF)
    finally:
        server.stop()
    assert bytes(server.raw) == b""


async def test_proxy_variables_are_not_obeyed(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    openbao.put("egress/direct", key="x")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    async with store(openbao.address, root(openbao)) as vault:
        assert (await vault.fetch(SecretRef("secret/egress/direct"))).version == "1"


async def test_namespaces(openbao: OpenBao) -> None:
    openbao.api("PUT", "sys/namespaces/team-a", {})
    opener = SecretRef("secret/egress/ns", namespace="team-a", kv=2)
    import urllib.request

    for path, body in (
        ("sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}),
        ("secret/data/egress/ns", {"data": {"key": "in-a"}}),
    ):
        request = urllib.request.Request(
            f"{openbao.address}/v1/{path}",
            json.dumps(body).encode(),
            {"X-Vault-Token": openbao.token, "X-Vault-Namespace": "team-a"},
            method="POST",
        )
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).close()
    async with store(openbao.address, root(openbao)) as vault:
        assert (await vault.fetch(opener)).fields["key"].reveal() == "in-a"
        with pytest.raises(SecretMissing):
            await vault.fetch(SecretRef("secret/egress/ns", kv=2))
