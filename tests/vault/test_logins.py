"""Logins by every method against a real OpenBao: what they take, what they keep to, and what they say when they cannot."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.issuer import Issuer, kubernetes_api
from tests.harness.openbao import OpenBao
from tests.harness.pki import Pki
from tests.harness.scripted_vault import scripted, send
from tests.harness.vault_binary import needs_namespaces
from vault.hashicorp.config import (
    AppRoleAuth,
    CertAuth,
    JwtAuth,
    KubernetesAuth,
    TokenAuth,
    TokenFileAuth,
    VaultAuth,
    VaultConfig,
)
from vault.hashicorp.login import due_s, pause_s
from vault.hashicorp.store import VaultStore
from vault.observer import Silent
from vault.secret import Secret
from vault.store import SecretDenied, SecretRef, SecretUnavailable

READ = """
path "secret/data/egress/*" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
"""
REF = SecretRef("secret/egress/logins", kv=2)


class Heard(Silent):
    def __init__(self) -> None:
        self.logins: list[str] = []
        self.ttls: list[float] = []

    def store_login(self, result: str) -> None:
        self.logins.append(result)

    def token_ttl(self, ttl_s: float) -> None:
        self.ttls.append(ttl_s)


@contextlib.asynccontextmanager
async def store(
    address: str | tuple[str, ...], auth: VaultAuth, observer: Heard | None = None, **given: Any
) -> AsyncIterator[VaultStore]:
    config = VaultConfig((address,) if isinstance(address, str) else address, auth, **given)
    made = VaultStore(config, observer)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def bao(openbao: OpenBao) -> OpenBao:
    openbao.policy("logins", READ)
    openbao.put("egress/logins", key="x")
    return openbao


async def reads(vault: VaultStore) -> bool:
    return (await vault.fetch(REF)).fields["key"].reveal() == "x"


def alive(bao: OpenBao, token: str) -> bool:
    try:
        bao.api("GET", "auth/token/lookup-self", token=token)
    except OSError:
        return False
    return True


async def token_of(vault: VaultStore) -> str:
    return (await vault._login.token()).reveal()


async def until(holds: Callable[[], bool], timeout_s: float = 15) -> None:
    ends_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends_s
        await asyncio.sleep(0.05)


# --- when ---


def test_when_a_token_is_renewed() -> None:
    assert due_s(90, 0, renewable=True) == pytest.approx(60)
    assert due_s(90, 1, renewable=True) == pytest.approx(54)
    assert due_s(100, 0, renewable=False) == pytest.approx(85)
    assert due_s(0.01, 0, renewable=True) == pytest.approx(0.2)
    assert due_s(float("inf"), 0, renewable=True) == float("inf")


def test_how_long_a_failed_login_waits() -> None:
    assert [pause_s(number, 300, 0, -1, 0) for number in (1, 2, 3, 9, 10, 400)] == [1, 2, 4, 256, 300, 300]
    assert pause_s(3, 300, 0, -1, 0.5) == pytest.approx(3.8)
    # As long as Vault asks for, up to a minute; never past what is left of the token.
    assert pause_s(1, 300, 20, -1, 0) == 20
    assert pause_s(1, 300, 86400, -1, 0) == 60
    assert pause_s(9, 300, 0, 30, 0) == 10
    assert pause_s(9, 300, 0, 0.5, 0) == 1


# --- AppRole, wrapped ---


async def test_a_wrapped_secret_id_is_unwrapped_once_and_its_token_is_revoked(bao: OpenBao, tmp_path: Path) -> None:
    role, _ = bao.approle("wrapped", "logins", token_ttl="1h", secret_id_num_uses=1)
    envelope = bao.wrapped("auth/approle/role/wrapped/secret-id")
    file, heard = tmp_path / "wrapped", Heard()
    file.write_text(envelope + "\n")
    auth = AppRoleAuth(Secret(role), wrapped_file=file)
    async with store(bao.address, auth, heard) as vault:
        # `doctor` and `check --live` leave the envelope to `run`.
        assert "auth/approle/role/wrapped/secret-id" in await vault.examine()
        assert await reads(vault)
        token = await token_of(vault)
        # A path that Vault denies is no reason to use up a login: the token lives.
        with pytest.raises(SecretDenied, match="denies reading"):
            await vault.fetch(SecretRef("secret/other/x", kv=2))
        assert (await token_of(vault), vault._login.generation, heard.logins) == (token, 1, ["ok"])
        # The one login is used up: a dead token is told as that, and a new envelope mends it.
        bao.api("POST", "auth/token/revoke", {"token": token})
        with pytest.raises(SecretDenied, match="has served all its logins"):
            await vault.fetch(REF)
        file.write_text(bao.wrapped("auth/approle/role/wrapped/secret-id"))
        assert await reads(vault)
        token = await token_of(vault)
    assert not alive(bao, token)
    # An envelope that is open is an alarm.
    file.write_text(envelope)
    async with store(bao.address, auth) as vault:
        for ask in (vault.start, vault.examine):
            with pytest.raises(SecretDenied, match="somebody else has opened it") as error:
                await ask()
            assert envelope not in str(error.value)


async def test_an_envelope_that_was_made_elsewhere_is_not_opened(bao: OpenBao, tmp_path: Path) -> None:
    role, secret = bao.approle("rewrapped", "logins")
    forged = bao.wrapped("sys/wrapping/wrap", secret_id=secret)
    (tmp_path / "wrapped").write_text(forged)
    async with store(bao.address, AppRoleAuth(Secret(role), wrapped_file=tmp_path / "wrapped")) as vault:
        with pytest.raises(SecretDenied, match="was made at sys/wrapping/wrap and not by AppRole"):
            await vault.start()
    # It can still be opened, by those who look into it.
    assert bao.api("POST", "sys/wrapping/unwrap", {}, token=forged)["data"] == {"secret_id": secret}
    # So can one of another mount's role.
    bao.enable("approle", "others")
    bao.api("POST", "auth/others/role/x", {})
    (tmp_path / "wrapped").write_text(bao.wrapped("auth/others/role/x/secret-id"))
    async with store(bao.address, AppRoleAuth(Secret(role), wrapped_file=tmp_path / "wrapped")) as vault:
        with pytest.raises(SecretDenied, match="was made at auth/others/role/x/secret-id"):
            await vault.start()


async def test_an_unwrapping_whose_answer_was_lost_says_so(tmp_path: Path) -> None:
    lookups = []

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup"):
            lookups.append(1)
            if len(lookups) == 1:
                send(handler, 200, {"data": {"creation_path": "auth/approle/role/r/secret-id"}})
            else:
                send(handler, 400, {"errors": ["wrapping token is not valid or does not exist"]})
        else:
            handler.close_connection = True  # cut before an answer

    (tmp_path / "wrapped").write_text("cnry-envelope")
    with scripted(script) as (address, seen):
        async with store(address, AppRoleAuth(Secret("r"), wrapped_file=tmp_path / "wrapped")) as vault:
            with pytest.raises(SecretUnavailable):
                await vault.start()
            # Opened once, not twice: what may have used something up is not sent again.
            assert [path.rpartition("/")[2] for path, _ in seen] == ["lookup", "unwrap"]
            vault._login._retry_s = 0
            with pytest.raises(SecretDenied, match="was lost on its way here") as error:
                await vault.start()
            assert "cnry" not in str(error.value)


async def test_a_login_that_did_not_reach_vault_uses_up_nothing(tmp_path: Path) -> None:
    away = [True]

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        match handler.path.rpartition("/")[2]:
            case "lookup":
                send(handler, 200, {"data": {"creation_path": "auth/approle/role/r/secret-id"}})
            case "unwrap":
                send(handler, 200, {"data": {"secret_id": "s", "secret_id_num_uses": 1}})
            case "login" if away[0]:
                away[0] = False
                send(handler, 503, {"errors": ["Vault is sealed"]})
            case "login":
                send(handler, 200, {"auth": {"client_token": "t", "lease_duration": 60}})
            case _:
                send(handler, 204, b"")

    (tmp_path / "wrapped").write_text("envelope")
    with scripted(script) as (address, seen):
        async with store(address, AppRoleAuth(Secret("r"), wrapped_file=tmp_path / "wrapped")) as vault:
            with pytest.raises(SecretUnavailable):
                await vault.start()
            vault._login._retry_s = 0
            await vault.start()
    paths = [path.rpartition("/")[2] for path, _ in seen]
    assert paths == ["lookup", "unwrap", "login", "login", "revoke-self"]


@needs_namespaces
async def test_a_login_in_a_namespace(bao: OpenBao, tmp_path: Path) -> None:
    """Method, role, envelope and secret are the namespace's own; the root has none of that name."""
    with contextlib.suppress(OSError):
        bao.api("POST", "sys/namespaces/login-team", {})
    inside = functools.partial(bao.api, namespace="login-team")
    inside("POST", "sys/auth/approle", {"type": "approle"})
    inside("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
    inside("PUT", "sys/policies/acl/reads", {"policy": READ})
    inside("POST", "secret/data/egress/logins", {"data": {"key": "of the team"}})
    inside("POST", "auth/approle/role/in-team", {"token_policies": ["reads"], "token_ttl": "1h"})
    role = inside("GET", "auth/approle/role/in-team/role-id")["data"]["role_id"]
    (tmp_path / "wrapped").write_text(bao.wrapped("auth/approle/role/in-team/secret-id", namespace="login-team"))
    auth = AppRoleAuth(Secret(role), wrapped_file=tmp_path / "wrapped")
    async with store(bao.address, auth, namespace="login-team") as vault:
        assert (await vault.fetch(REF)).fields["key"].reveal() == "of the team"
        await vault.probe()
        token = await token_of(vault)
    with pytest.raises(OSError):
        inside("GET", "auth/token/lookup-self", token=token)


async def test_a_token_in_its_last_second_does_not_live_for_ever(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = [{"ttl": 0, "expire_time": "2026-01-01T00:00:00Z"}, {"ttl": 0, "expire_time": None}]
    heard = Heard()
    with scripted(lambda handler: send(handler, 200, {"data": told[0]})) as (address, _):
        async with store(address, TokenAuth(Secret("t")), heard) as vault:
            await vault.start()
            told.pop(0)
            await vault._login.again(vault._login.generation)
    assert heard.ttls == [0.0, float("inf")]


# --- Kubernetes, JWT, certificate ---


async def test_kubernetes(bao: OpenBao, vault_pki: Pki, tmp_path: Path) -> None:
    bao.enable("kubernetes", "clusters/one")
    file = tmp_path / "token"
    with kubernetes_api(vault_pki, Issuer()) as cluster:
        config = {
            "kubernetes_host": cluster.address,
            "kubernetes_ca_cert": cluster.ca,
            "token_reviewer_jwt": "reviewer",
        }
        bao.api("POST", "auth/clusters/one/config", config)
        role = {
            "bound_service_account_names": "ostiary",
            "bound_service_account_namespaces": "egress",
            "token_policies": ["logins"],
            "token_ttl": "1h",
        }
        bao.api("POST", "auth/clusters/one/role/proxy", role)
        file.write_text(cluster.token("egress", "ostiary"))
        auth = KubernetesAuth("proxy", file, "clusters/one")
        async with store(bao.address, auth) as vault:
            assert await reads(vault)
            first = await token_of(vault)
            # Kubernetes renews the file; each login reads it again.
            file.write_text(fresh := cluster.token("egress", "ostiary"))
            bao.api("POST", "auth/token/revoke", {"token": first})
            assert await reads(vault)
            assert cluster.reviewed[-1] == fresh
            last = await token_of(vault)
        assert not alive(bao, last)
        # What can never work is told, with Vault's reason and without the token.
        for token, said in (
            (cluster.token("egress", "other"), "service account name not authorized"),
            (cluster.issuer.service_account("egress", "ostiary"), "auth/clusters/one as role proxy"),
        ):
            file.write_text(token)
            async with store(bao.address, auth) as vault:
                with pytest.raises(SecretDenied, match=said) as error:
                    await vault.start()
                assert token not in str(error.value)
        async with store(bao.address, KubernetesAuth("nobody", file, "clusters/one")) as vault:
            with pytest.raises(SecretDenied, match='invalid role name "nobody"'):
                await vault.start()
        async with store(bao.address, KubernetesAuth("proxy", tmp_path / "none", "clusters/one")) as vault:
            with pytest.raises(SecretUnavailable, match=r"jwt_file .*none cannot be read"):
                await vault.start()


async def test_jwt_whose_file_is_read_again(bao: OpenBao, tmp_path: Path) -> None:
    issuer, file = Issuer(), tmp_path / "jwt"
    bao.enable("jwt")
    bao.api("POST", "auth/jwt/config", {"jwt_validation_pubkeys": [issuer.public_key]})
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "bound_subject": "ostiary", "token_policies": ["logins"], "token_type": "batch", "token_ttl": "2s"}  # fmt: skip
    bao.api("POST", "auth/jwt/role/proxy", role)
    heard = Heard()
    file.write_text(issuer.token(aud="vault", sub="ostiary"))
    async with store(bao.address, JwtAuth("proxy", file), heard) as vault:
        assert await reads(vault)
        # A batch token cannot be renewed: before its end a new login is made, with what the file holds then.
        file.write_text(issuer.token(aud="vault", sub="ostiary"))
        await until(lambda: heard.logins.count("ok") >= 2)
        assert await reads(vault)
    expired = issuer.token(aud="vault", sub="ostiary", lives_s=-600)
    for token, said in (
        (expired, "auth/jwt as role proxy"),
        (issuer.token(aud="other", sub="ostiary"), "audience"),
        (Issuer().token(aud="vault", sub="ostiary"), "signature"),
    ):
        file.write_text(token)
        async with store(bao.address, JwtAuth("proxy", file)) as vault:
            with pytest.raises(SecretDenied, match=said) as error:
                await vault.start()
            assert token not in str(error.value)


async def test_certificate(bao: OpenBao, vault_pki: Pki, tmp_path: Path) -> None:
    bao.enable("cert")
    role = {"certificate": vault_pki.ca_file.read_text(), "allowed_common_names": "proxy.test", "token_policies": ["logins"], "token_ttl": "1h"}  # fmt: skip
    bao.api("POST", "auth/cert/certs/proxy", role)
    client = tmp_path / "client.pem"
    client.write_bytes(vault_pki.certificate("proxy.test").read_bytes())
    given: dict[str, Any] = {"ca_file": vault_pki.ca_file, "client_cert": client}
    async with store(bao.tls_address, CertAuth("proxy"), **given, threads=1) as vault:
        assert await reads(vault)
        first = await token_of(vault)
        # The certificate is renewed on disk: the next login shows the new one, on a connection of its own.
        client.write_bytes(vault_pki.certificate("stranger.test").read_bytes())
        bao.api("POST", "auth/token/revoke", {"token": first})
        with pytest.raises(SecretDenied, match="certificate login at auth/cert as role proxy"):
            await vault.fetch(REF)
        client.write_bytes(vault_pki.certificate("proxy.test").read_bytes())
        vault._login._retry_s = 0
        assert await reads(vault)
        last = await token_of(vault)
    assert not alive(bao, last)
    async with store(bao.tls_address, CertAuth("proxy"), ca_file=vault_pki.ca_file) as vault:
        with pytest.raises(SecretDenied, match="certificate"):
            await vault.start()
    # A CA that did not sign the server's certificate.
    other = Pki.make(tmp_path / "other")
    async with store(bao.tls_address, CertAuth("proxy"), ca_file=other.ca_file, client_cert=client) as vault:
        with pytest.raises(SecretUnavailable, match="TLS with Vault failed"):
            await vault.start()


# --- keeping ---


async def test_a_renewal_keeps_the_token_and_the_max_ttl_ends_it(bao: OpenBao, tmp_path: Path) -> None:
    role, secret = bao.approle("keeps", "logins", token_ttl="2s", token_max_ttl="5s")
    (tmp_path / "secret-id").write_text(secret)
    (tmp_path / "role-id").write_text(role)
    heard, tokens = Heard(), []
    async with store(bao.address, AppRoleAuth(tmp_path / "role-id", tmp_path / "secret-id"), heard) as vault:
        ends_s = time.monotonic() + 6
        while time.monotonic() < ends_s:
            assert await reads(vault)
            if (token := await token_of(vault)) not in tokens:
                tokens.append(token)
            await asyncio.sleep(0.1)
        assert 2 <= len(tokens) <= 4
        # More was told than there were logins: the others are renewals.
        assert len(heard.ttls) > len(heard.logins)
        assert set(heard.logins) == {"ok"}
    await until(lambda: not any(alive(bao, token) for token in tokens))


async def test_an_outage_at_renewal_keeps_the_token_and_makes_no_login(tmp_path: Path) -> None:
    down = [True]
    paths: list[str] = []

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        paths.append(handler.path)
        if handler.path.endswith("login"):
            send(handler, 200, {"auth": {"client_token": "t1", "lease_duration": 6, "renewable": True}})
        elif handler.path.endswith("renew-self") and down[0]:
            down[0] = False
            send(handler, 500, {"errors": ["storage is away"]})
        elif handler.path.endswith("renew-self"):
            send(handler, 200, {"auth": {"client_token": "t1", "lease_duration": 600, "renewable": True}})
        else:
            send(handler, 200, {"data": {"data": {"key": "x"}, "metadata": {"version": 4}}})

    heard = Heard()
    with scripted(script) as (address, _):
        async with store(address, AppRoleAuth(Secret("r")), heard) as vault:
            await vault.start()
            await until(lambda: 600 in heard.ttls)
            assert await token_of(vault) == "t1"
    assert [path.rpartition("/")[2] for path in paths] == ["login", "renew-self", "renew-self", "revoke-self"]


async def test_a_login_that_fails_is_tried_again_with_nobody_asking(tmp_path: Path) -> None:
    answers = [400, 500]

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        if answers:
            send(handler, answers.pop(0), {"errors": ["role cnry-role is not there"]})
        else:
            send(handler, 200, {"auth": {"client_token": "t", "lease_duration": 0}})

    heard = Heard()
    with scripted(script) as (address, _):
        async with store(address, AppRoleAuth(Secret("cnry-role")), heard) as vault:
            with pytest.raises(SecretDenied, match="role … is not there"):
                await vault.start()
            await until(lambda: "ok" in heard.logins)
            assert heard.logins == ["denied", "unavailable", "ok"]


async def test_a_token_file_is_followed_without_a_read_and_never_revoked(
    bao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vault.hashicorp.login.WATCH_S", 0.05)
    file, heard = tmp_path / "token", Heard()
    tokens = [bao.new_token("logins", ttl=ttl) for ttl in ("1h", "2h")]
    file.write_text(tokens[0])
    async with store(bao.address, TokenFileAuth(file), heard) as vault:
        await vault.start()
        assert 3500 < heard.ttls[-1] <= 3600
        # An Agent writes beside it and renames.
        (tmp_path / "new").write_text(tokens[1])
        (tmp_path / "new").rename(file)
        await until(lambda: heard.ttls[-1] > 3600)
        assert await token_of(vault) == tokens[1]
        # A file that is gone, or holds nothing good, leaves the token that is there.
        file.unlink()
        assert await reads(vault)
        file.write_text('{"wrap_info": {}}')
        await until(lambda: heard.logins[-1] == "unavailable")
        assert await reads(vault)
        assert "holds JSON" in caplog.text
    assert all(alive(bao, token) for token in tokens)
    assert not any(token in caplog.text for token in tokens)


async def test_a_dead_token_is_not_sent(tmp_path: Path) -> None:
    """Its end is known: a read does not need a 403 to learn of it."""
    seen_tokens: list[str] = []

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("login"):
            send(handler, 200, {"auth": {"client_token": f"t{len(seen_tokens)}", "lease_duration": 3600}})
        elif handler.path.endswith("revoke-self"):
            send(handler, 204, b"")
        else:
            seen_tokens.append(handler.headers["X-Vault-Token"])
            send(handler, 200, {"data": {"data": {"key": "x"}, "metadata": {"version": 4}}})

    with scripted(script) as (address, _):
        async with store(address, AppRoleAuth(Secret("r"))) as vault:
            await vault.fetch(REF)
            vault._login._ends_s = time.monotonic()
            await vault.fetch(REF)
    assert seen_tokens == ["t0", "t1"]


async def test_the_token_is_revoked_even_if_the_end_comes_during_a_login() -> None:
    revoked: list[str] = []

    def script(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("login"):
            time.sleep(0.3)
            send(handler, 200, {"auth": {"client_token": "late", "lease_duration": 60}})
        else:
            revoked.append(handler.headers["X-Vault-Token"])
            send(handler, 204, b"")

    with scripted(script) as (address, seen):
        vault = VaultStore(VaultConfig((address,), AppRoleAuth(Secret("r"))))
        starting = asyncio.create_task(vault.start())
        await until(lambda: bool(seen))
        starting.cancel()
        await vault.close()
    assert revoked == ["late"]


async def test_a_second_factor_and_a_token_of_few_uses(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[dict[str, Any]] = [
        {"client_token": "", "mfa_requirement": {"mfa_request_id": "1"}},
        {"client_token": "t", "lease_duration": 60, "num_uses": 3},
    ]
    with scripted(lambda handler: send(handler, 200, {"auth": answers[0]})) as (address, _):
        async with store(address, CertAuth("r")) as vault:
            with pytest.raises(SecretDenied, match="second factor"):
                await vault.start()
            answers.pop(0)
            vault._login._retry_s = 0
            await vault.start()
    assert "token_num_uses=0" in caplog.text


async def test_a_vault_that_wants_to_be_left_alone_is_not_asked_for_a_login(bao: OpenBao, tmp_path: Path) -> None:
    """A real rate quota on the login path: Retry-After is what the login waits for."""
    bao.api("POST", "sys/quotas/config", {"enable_rate_limit_response_headers": True})
    bao.enable("approle", "quota")
    bao.api("POST", "auth/quota/role/x", {"token_policies": ["logins"], "bind_secret_id": False, "secret_id_bound_cidrs": "127.0.0.0/8"})  # fmt: skip
    role = bao.api("GET", "auth/quota/role/x/role-id")["data"]["role_id"]
    bao.api("POST", "sys/quotas/rate-limit/quota", {"rate": 1, "interval": "30s", "path": "auth/quota"})
    heard = Heard()
    async with (
        store(bao.address, AppRoleAuth(Secret(role), mount="quota")) as first,
        store(bao.address, AppRoleAuth(Secret(role), mount="quota"), heard) as vault,
    ):
        with contextlib.suppress(SecretUnavailable):
            await first.start()
        for _ in range(5):
            with pytest.raises(SecretUnavailable, match="rate limit quota exceeded") as error:
                await vault.fetch(REF)
            assert error.value.retry_after_s > 1
        assert heard.logins == ["unavailable"]
        assert vault._login._retry_s - time.monotonic() > 5
    bao.api("DELETE", "sys/quotas/rate-limit/quota")


async def test_a_static_token_is_warned_about_once(bao: OpenBao, caplog: pytest.LogCaptureFixture) -> None:
    async with store(bao.address, TokenAuth(Secret(bao.token))) as vault:
        await vault.start()
        await vault._login.again(vault._login.generation)
    assert caplog.text.count("for development only") == 1
    assert alive(bao, bao.token)
    assert bao.token not in caplog.text
