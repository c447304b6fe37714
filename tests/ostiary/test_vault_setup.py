"""`ostiary vault setup --dry-run`: what it prints is run against a real server, and what that allows is enough and no more."""

from __future__ import annotations

import asyncio
import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostiary.cli import run_command
from ostiary.vault_setup import Setup, commands
from tests.harness.issuer import Issuer, kubernetes_api
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import clean_environment
from tests.harness.pki import Pki
from vault.hashicorp.config import AppRoleAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.secret import Secret
from vault.store import SecretDenied, SecretRef

SETTINGS = """
listen: [{name: a, bind: "127.0.0.1:0", workload: app}]
ca: {dir: ca}
audit: {sinks: [{file: audit.jsonl}]}
policies: [policy.yaml]
vault: {addresses: ["ADDRESS"], auth: AUTH}
"""
POLICY = """
workloads: {app: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test}
    allow: app
    secret: {path: secret/egress/api, field: key}
    inject: {bearer: "{secret}"}
"""


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao")) as server:
        server.put("egress/api", key="x")
        server.put("egress/other", key="y")
        yield server


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """The command line without a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    split = next((number for number, one in enumerate(arguments) if one.startswith("-")), len(arguments))
    told = [*arguments[:split], "--config", str(cwd / "ostiary.yaml"), *arguments[split:]]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(told)
    return subprocess.CompletedProcess(told, code, out.getvalue().encode(), err.getvalue().encode())


def in_shell(folder: Path, script: bytes, bao: OpenBao, **environ: str) -> subprocess.CompletedProcess[bytes]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = clean_environment(PATH=path, BAO_ADDR=bao.address, BAO_TOKEN=bao.token, HOME=str(folder), **environ)
    return subprocess.run(
        ["sh"], input=script, cwd=folder, env=environment, capture_output=True, check=False, timeout=60
    )


def printed(folder: Path, bao: OpenBao, auth: str, *more: str) -> bytes:
    (folder / "ostiary.yaml").write_text(SETTINGS.replace("ADDRESS", bao.address).replace("AUTH", auth))
    (folder / "policy.yaml").write_text(POLICY)
    done = command("vault", "setup", "--dry-run", "--tool", "bao", *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def works(folder: Path) -> None:
    done = command("check", "--live", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert b"every secret has its fields" in done.stdout


def test_approle(bao: OpenBao, tmp_path: Path) -> None:
    auth = "{method: approle, role_id: file:role-id, secret_id_file: secret-id, mount: machines}"
    script = printed(tmp_path, bao, auth)
    for _ in range(2):  # a second time changes nothing but the secret id
        done = in_shell(tmp_path, script, bao)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "secret-id").stat().st_mode & 0o777 == 0o600
    works(tmp_path)
    # Enough, and no more.
    role, secret_id = (tmp_path / name for name in ("role-id", "secret-id"))
    config = VaultConfig((bao.address,), AppRoleAuth(role, secret_id, "machines"))

    async def elsewhere() -> None:
        store = VaultStore(config)
        try:
            assert (await store.fetch(SecretRef("secret/egress/api", kv=2))).version == "1"
            with pytest.raises(SecretDenied):
                await store.fetch(SecretRef("secret/egress/other", kv=2))
        finally:
            await store.close()

    asyncio.run(elsewhere())


def test_approle_wrapped_is_left_to_run(bao: OpenBao, tmp_path: Path) -> None:
    auth = "{method: approle, role_id: file:role-id, wrapped_file: wrapped}"
    done = in_shell(tmp_path, printed(tmp_path, bao, auth), bao)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "wrapped").stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        told = command("check", "--live", cwd=tmp_path)
        assert told.returncode == 0, told.stderr
        assert b"no secret was looked for: a secret id made at auth/approle/role/ostiary/secret-id waits" in told.stdout
    envelope = (tmp_path / "wrapped").read_text().strip()
    assert bao.api("POST", "sys/wrapping/unwrap", {}, token=envelope)["data"]["secret_id"]
    told = command("check", "--live", cwd=tmp_path)
    assert told.returncode == 78
    assert b"somebody else has opened it" in told.stderr
    assert envelope.encode() not in told.stderr


def test_kubernetes(bao: OpenBao, tmp_path: Path) -> None:
    with kubernetes_api(Pki.make(tmp_path / "pki"), Issuer()) as cluster:
        script = printed(tmp_path, bao, "{method: kubernetes, role: proxy, jwt_file: jwt}")
        told = in_shell(tmp_path, script, bao)
        assert told.returncode != 0
        assert b"KUBERNETES_HOST" in told.stderr, "what only the reader knows is asked for"
        (tmp_path / "cluster-ca.pem").write_text(cluster.ca)
        (tmp_path / "reviewer.jwt").write_text("reviewer")
        done = in_shell(
            tmp_path, script, bao, KUBERNETES_HOST=cluster.address, KUBERNETES_CA="cluster-ca.pem",
            REVIEWER_JWT="reviewer.jwt", SERVICE_ACCOUNT="ostiary", SERVICE_NAMESPACE="egress",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (tmp_path / "jwt").write_text(cluster.token("egress", "ostiary"))
        works(tmp_path)


def test_jwt(bao: OpenBao, tmp_path: Path) -> None:
    issuer = Issuer()
    script = printed(tmp_path, bao, "{method: jwt, role: proxy, jwt_file: jwt, mount: corp}")
    told = in_shell(tmp_path, script, bao)
    assert told.returncode != 0
    assert b"ISSUER_URL" in told.stderr
    (tmp_path / "issuer.pem").write_text(issuer.public_key)
    done = in_shell(tmp_path, script, bao, ISSUER_KEY="issuer.pem", AUDIENCE="vault", SUBJECT="ostiary")
    assert done.returncode == 0, done.stderr
    (tmp_path / "jwt").write_text(issuer.token(aud="vault", sub="ostiary"))
    works(tmp_path)
    (tmp_path / "jwt").write_text(cut := issuer.token(aud="vault", sub="stranger"))
    told = command("check", "--live", cwd=tmp_path)
    assert told.returncode == 78
    assert b"Vault refused the JWT login at auth/corp as role proxy" in told.stderr
    assert cut.encode() not in told.stderr + told.stdout


def test_without_dry_run_and_without_a_method(bao: OpenBao, tmp_path: Path) -> None:
    printed(tmp_path, bao, "{method: approle, role_id: r}")
    done = command("vault", "setup", cwd=tmp_path)
    assert (done.returncode, b"--dry-run" in done.stderr) == (64, True)
    text = (
        (tmp_path / "ostiary.yaml")
        .read_text()
        .replace("{method: approle, role_id: r}", "{method: token_file, file: t}")
    )
    (tmp_path / "ostiary.yaml").write_text(text)
    done = command("vault", "setup", "--dry-run", cwd=tmp_path)
    assert (done.returncode, b"--method" in done.stderr) == (64, True)
    done = command("vault", "setup", "--dry-run", "--method", "jwt", cwd=tmp_path)
    assert b"vault write auth/jwt/role/ostiary" in done.stdout


def test_names_are_quoted() -> None:
    config = VaultConfig(("https://v.test",), AppRoleAuth(Secret("cnry-role"), Path("a b; rm")), namespace="team $x")
    text = commands(Setup("approle", role="o'r", policy="p q"), config, [])
    for wanted in ("VAULT_NAMESPACE='team $x'", "'o'\"'\"'r'", "policy write 'p q' -", "> 'a b; rm'"):
        assert wanted in text
    assert "cnry" not in text
    assert subprocess.run(["sh", "-n"], input=text.encode(), check=False).returncode == 0
