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
from tests.harness.vault_binary import needs_namespaces
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


async def test_v5_a_token_file_is_read_again(openbao: OpenBao, tmp_path: Path) -> None:
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


async def test_f4_v5_approle_logs_in_again_and_revokes_its_own_token(openbao: OpenBao, tmp_path: Path) -> None:
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


@needs_namespaces
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


# --- logins that are shared, and what no secret is --------------------------------------------------------------------


def live_tokens(openbao: OpenBao) -> int:
    return len(openbao.api("LIST", "auth/token/accessors")["data"]["keys"])


async def test_a_read_in_another_namespace_leaves_the_login_where_it_was(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.policy("egress", READ)
    role, secret = openbao.approle("spaces", "egress", token_ttl="1h")
    (tmp_path / "secret-id").write_text(secret)
    async with store(openbao.address, AppRoleAuth(Secret(role), tmp_path / "secret-id"), threads=1) as vault:
        await vault.start()
        with contextlib.suppress(SecretDenied, SecretMissing):
            await vault.fetch(SecretRef("secret/egress/a", namespace="nobody-here", kv=2))
        await vault._login.again(vault._login.generation)
        await vault.probe()


@needs_namespaces
async def test_a_mount_is_detected_in_each_namespace(openbao: OpenBao) -> None:
    openbao.put("egress/spaces", key="root")
    async with store(openbao.address, root(openbao)) as vault:
        await vault.fetch(SecretRef("secret/egress/spaces"))
        assert vault._mounts == {(None, "secret"): 2}
        with pytest.raises((SecretDenied, SecretMissing)):
            await vault.fetch(SecretRef("secret/egress/spaces", namespace="nobody-here"))
        assert (await vault.fetch(SecretRef("secret/egress/spaces"))).version == "1"


async def test_v5_a_young_login_is_doubted_once_it_is_dead(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.policy("egress", READ)
    role, secret = openbao.approle("young", "egress", token_ttl="1h")
    (tmp_path / "secret-id").write_text(secret)
    async with store(openbao.address, AppRoleAuth(Secret(role), tmp_path / "secret-id")) as vault:
        for path in ("x", "y", "z"):
            with pytest.raises(SecretDenied):
                await vault.fetch(SecretRef(f"secret/other/{path}", kv=2))
        assert vault._login.generation == 1
        openbao.put("egress/young", key="x")
        openbao.api("POST", "auth/token/revoke", {"token": (await vault._login.token()).reveal()})
        assert (await vault.fetch(SecretRef("secret/egress/young", kv=2))).version == "1"
        assert vault._login.generation == 2


async def test_v5_a_denied_path_does_not_log_in_at_every_read(
    openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vault.hashicorp.login.YOUNG_S", 0.0)
    openbao.policy("egress", READ)
    role, secret = openbao.approle("denied", "egress", token_ttl="1h")
    (tmp_path / "secret-id").write_text(secret)
    before = live_tokens(openbao)
    async with store(openbao.address, AppRoleAuth(Secret(role), tmp_path / "secret-id")) as vault:
        for _ in range(5):
            with pytest.raises(SecretDenied):
                await vault.fetch(SecretRef("secret/other/x", kv=2))
        assert vault._login.generation == 2
        # The remembered refusal is the path's, not the login's: a token that dies is still replaced.
        openbao.put("egress/denied", key="x")
        openbao.api("POST", "auth/token/revoke", {"token": (await vault._login.token()).reveal()})
        assert (await vault.fetch(SecretRef("secret/egress/denied", kv=2))).version == "1"
    # Every token of ours is revoked, those that were replaced too.
    assert live_tokens(openbao) == before


@pytest.mark.parametrize(
    "ref",
    [
        SecretRef("auth/token/lookup-self", kv=1),
        SecretRef("auth/token/lookup-self"),
        SecretRef("token/lookup-self", mount="auth", kv=1),
        SecretRef("lookup-self", mount="auth/token", kv=1),
        SecretRef("lookup-self", mount="x/../auth/token", kv=1),
        SecretRef("../../auth/token/lookup-self", mount="secret", kv=2),
        SecretRef("sys/mounts", kv=1),
        SecretRef("cubbyhole/response"),
        SecretRef("secret/a?version=1", kv=2),
        SecretRef("secret/a%2f..", kv=2),
        SecretRef("secret//a", kv=2),
        SecretRef("secret", kv=2),
    ],
)
async def test_what_is_vaults_own_is_no_secret(openbao: OpenBao, ref: SecretRef) -> None:
    """`auth/token/lookup-self` would be the token itself, on its way to an upstream."""
    async with store(openbao.address, root(openbao)) as vault:
        for ask in (vault.fetch, vault.fields_of):
            with pytest.raises(SecretMalformed) as error:
                await ask(ref)
            assert openbao.token not in str(error.value)


@needs_namespaces
async def test_a_namespace_in_the_path_leads_to_no_token(openbao: OpenBao) -> None:
    """Vault takes namespaces from the path too, so no list of names is enough: the value itself is looked at."""
    with contextlib.suppress(OSError):
        openbao.api("POST", "sys/namespaces/team", {})
    token = openbao.new_token(policies=["root"])
    async with store(openbao.address, TokenAuth(Secret(token))) as vault:
        for ref in (
            SecretRef("team/auth/token/lookup-self", kv=1),
            SecretRef("token/lookup-self", mount="team/auth", kv=1),
        ):
            with pytest.raises((SecretMalformed, SecretDenied)) as error:
                await vault.fetch(ref)
            assert token not in str(error.value)


async def test_the_token_inside_a_longer_value_is_no_secret() -> None:
    answer = {"data": {"key": "Bearer cnry-token"}}
    with scripted(lookup_or(lambda handler: send(handler, 200, answer))) as (address, _):
        async with store(address, TOKEN) as vault:
            with pytest.raises(SecretMalformed, match="the very token"):
                await vault.fetch(SecretRef("team/egress/a", kv=1))


async def test_v5_two_denied_paths_do_not_take_turns_in_logging_in(
    openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vault.hashicorp.login.YOUNG_S", 0.0)
    openbao.policy("egress", READ)
    role, secret = openbao.approle("turns", "egress", token_ttl="1h")
    (tmp_path / "secret-id").write_text(secret)
    async with store(openbao.address, AppRoleAuth(Secret(role), tmp_path / "secret-id")) as vault:
        for path in ("x", "y") * 4:
            with pytest.raises(SecretDenied):
                await vault.fetch(SecretRef(f"secret/other/{path}", kv=2))
        assert vault._login.generation == 3


async def test_only_kv_mounts_are_read(openbao: OpenBao) -> None:
    with contextlib.suppress(OSError):
        openbao.api("POST", "sys/mounts/tr", {"type": "transit"})
    openbao.api("POST", "tr/keys/k", {})
    async with store(openbao.address, root(openbao)) as vault:
        with pytest.raises(SecretMalformed, match="no KV"):
            await vault.fetch(SecretRef("tr/keys/k"))


@pytest.mark.parametrize(
    "answer",
    [
        {"data": {"id": "cnry-token"}},
        {"data": {"key": "x"}, "mount_type": "database"},
        {"data": {"key": "x"}, "lease_id": "database/creds/a/1"},
    ],
)
async def test_an_answer_of_another_engine_is_no_secret(answer: dict[str, Any]) -> None:
    with scripted(lookup_or(lambda handler: send(handler, 200, answer))) as (address, _):
        async with store(address, TOKEN) as vault:
            with pytest.raises(SecretMalformed) as error:
                await vault.fetch(SecretRef("team/egress/a", kv=1))
    assert "cnry" not in str(error.value)


async def test_the_kv_version_that_nobody_tells(openbao: OpenBao) -> None:
    token = openbao.new_token()
    async with store(openbao.address, TokenAuth(Secret(token))) as vault:
        with pytest.raises(SecretDenied, match="kv: 1 or kv: 2"):
            await vault.fetch(SecretRef("nowhere/egress/a"))


async def test_nested_values_are_neither_told_nor_read(openbao: OpenBao) -> None:
    openbao.put("egress/nested", key="x", nested={"a": 1})
    async with store(openbao.address, root(openbao)) as vault:
        ref = SecretRef("secret/egress/nested", kv=2)
        assert await vault.fields_of(ref) == set((await vault.fetch(ref)).fields) == {"key"}


async def test_an_answer_in_another_version_than_pinned() -> None:
    with scripted(lookup_or(lambda handler: send(handler, 200, GOOD))) as (address, _):
        async with store(address, TOKEN) as vault:
            with pytest.raises(SecretMalformed, match="version 3 was asked for"):
                await vault.fetch(SecretRef("secret/egress/a", kv=2, version=3))


@pytest.mark.parametrize("status", [301, 302, 303, 308])
async def test_a_redirect_is_an_outage(status: int) -> None:
    with scripted(lookup_or(lambda handler: send(handler, status, b"", Location="http://127.0.0.1:9/"))) as (
        address,
        _,
    ):
        async with store(address, TOKEN) as vault:
            with pytest.raises(SecretUnavailable):
                await vault.fetch(REF)


async def test_g13_answers_that_would_break_a_parser() -> None:
    answers: list[tuple[bytes, dict[str, str]]] = [
        (b"[" * 200_000, {}),
        (b"\x1f\x8b\x08", {"Content_Encoding": "gzip"}),
    ]
    with scripted(lookup_or(lambda handler: send(handler, 200, answers[0][0], **answers[0][1]))) as (address, seen):
        async with store(address, TOKEN) as vault:
            while answers:
                with pytest.raises(SecretUnavailable):
                    await vault.fetch(REF)
                answers.pop(0)
    assert {headers["Accept-Encoding"] for _, headers in seen} == {"identity"}


@pytest.mark.parametrize(
    "body", [b"{}", b'{"auth": null}', b'{"auth": {"client_token": "t", "lease_duration": "x"}}', b""]
)
async def test_a_login_answer_in_another_shape_is_an_outage(body: bytes) -> None:
    with scripted(lambda handler: send(handler, 200, body)) as (address, _):
        async with store(address, AppRoleAuth(Secret("role"))) as vault:
            with pytest.raises(SecretUnavailable):
                await vault.fetch(REF)


async def test_a_slow_refused_login_is_shared_with_its_failure() -> None:
    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(0.4)
        send(handler, 400, {"errors": ["invalid secret id"]})

    with scripted(slow) as (address, seen):
        async with store(address, AppRoleAuth(Secret("role"))) as vault:
            began = time.monotonic()
            refs = [SecretRef(f"secret/egress/{number}", kv=2) for number in range(10)]
            results = await asyncio.gather(*map(vault.fetch, refs), return_exceptions=True)
            with pytest.raises(SecretDenied, match="invalid secret id"):
                await vault.fetch(REF)
            assert time.monotonic() - began < 1.5
    assert all(isinstance(result, SecretDenied) for result in results)
    assert len(seen) == 1


async def test_a_caller_that_goes_away_leaves_the_login_to_the_others() -> None:
    """A single-use secret id would be lost with it."""

    def login(handler: http.server.BaseHTTPRequestHandler) -> None:
        if "login" in handler.path:
            time.sleep(0.3)
            send(handler, 200, {"auth": {"client_token": "t", "lease_duration": 3600, "renewable": True}})
        else:
            send(handler, 200, GOOD)

    with scripted(login) as (address, seen):
        async with store(address, AppRoleAuth(Secret("role"))) as vault:
            first = asyncio.create_task(vault.fetch(REF))
            await asyncio.sleep(0.1)
            first.cancel()
            assert (await vault.fetch(REF)).version == "4"
        assert sum("login" in path for path, _ in seen) == 1


async def test_v3_one_deadline_over_login_and_read() -> None:
    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(0.35)
        send(handler, 200, {"auth": {"client_token": "t", "lease_duration": 0}} if "login" in handler.path else GOOD)

    with scripted(slow) as (address, _):
        async with store(address, AppRoleAuth(Secret("role")), deadline_s=0.5) as vault:
            began = time.monotonic()
            with pytest.raises(SecretUnavailable):
                await vault.fetch(REF)
            assert time.monotonic() - began < 0.65
            # The login was kept, so the next read has the time it needs.
            assert (await vault.fetch(REF)).version == "4"


async def test_v2_probe_asks_the_next_address() -> None:
    with scripted(lambda handler: send(handler, 503, {"sealed": True})) as (sealed, _):
        with scripted(lambda handler: send(handler, 200, {"sealed": False})) as (active, seen):
            async with store((sealed, active), TOKEN) as vault:
                await vault.probe()
        assert all(path.startswith("/v1/sys/health") and "X-Vault-Token" not in headers for path, headers in seen)
        async with store((sealed, sealed), TOKEN) as vault:
            with pytest.raises(SecretUnavailable, match="sealed"):
                await vault.probe()


async def test_a_token_file_that_holds_no_token(tmp_path: Path) -> None:
    for content in (b"", b"two\nlines", b"\xff\xfe", b"t\x00", b"x" * 20_000):
        (tmp_path / "token").write_bytes(content)
        async with store("http://127.0.0.1:9", TokenFileAuth(tmp_path / "token")) as vault:
            with pytest.raises(SecretUnavailable, match="visible ASCII"):
                await vault.start()


async def test_a_token_that_may_not_look_itself_up_is_used_as_it_is(
    openbao: OpenBao, caplog: pytest.LogCaptureFixture
) -> None:
    openbao.put("egress/blind", key="x")
    openbao.policy("reads-only", 'path "secret/data/egress/*" { capabilities = ["read"] }')
    token = openbao.new_token("reads-only")
    async with store(openbao.address, TokenAuth(Secret(token))) as vault:
        assert (await vault.fetch(SecretRef("secret/egress/blind", kv=2))).version == "1"
    assert "auth/token/lookup-self" in caplog.text
    async with store(openbao.address, TokenAuth(Secret("s.dead"))) as vault:
        with pytest.raises(SecretDenied, match="does not accept the token: permission denied"):
            await vault.start()
