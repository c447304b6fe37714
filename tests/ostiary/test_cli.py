"""The commands, as a new user meets them: each message names what is wrong and what to do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.ostiary_process import command

SETTINGS = """
listen: [{name: sidecar, bind: "127.0.0.1:8080", workload: w}]
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
audit: {sinks: [{file: audit.jsonl}]}
policies: [policy.yaml]
"""
POLICY = """
workloads: {w: {proofs: {any: true}}}
routes: {r: {match: {host: a.test}, allow: w, secret: {path: secret/a, field: key}, inject: {bearer: "{secret}"}}}
tests: [{as: w, request: "GET https://a.test/x", expect: {route: r, inject: Authorization}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ostiary.yaml").write_text(SETTINGS)
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


def run(folder: Path, *arguments: str, stdin: bytes = b"", code: int = 0, **environ: str) -> str:
    done: subprocess.CompletedProcess[bytes] = command(*arguments, cwd=folder, stdin=stdin, environ=environ)
    assert done.returncode == code, (done.stdout, done.stderr)
    return (done.stderr if code else done.stdout).decode()


def test_secrets_from_the_first_to_the_last(folder: Path) -> None:
    value = canary()
    assert "back up the key" in run(folder, "secret", "init")
    assert "already exists" in run(folder, "secret", "init", code=1)
    assert run(folder, "secret", "set", "secret/a", "key", stdin=f"{value}\n".encode()) == "secret/a version 1\n"
    assert run(folder, "secret", "set", "secret/a", "other", stdin=b"x") == "secret/a version 2\n"
    listed = run(folder, "secret", "list")
    assert "secret/a\tversion 2\t" in listed
    assert "key, other" in listed
    assert len(run(folder, "secret", "history", "secret/a").splitlines()) == 2
    assert (
        run(folder, "check", "--live")
        == "ostiary.yaml: 1 route for 1 workload, secrets from sealed, and every secret has its fields\n"
    )
    assert run(folder, "secret", "rm", "secret/a", "key") == "removed field key of secret/a\n"
    assert "policy.yaml:3:10: route r: secret secret/a has no field 'key' (it has other)" in run(
        folder, "check", "--live", code=78
    )
    assert run(folder, "secret", "rm", "secret/a") == "removed secret/a\n"
    assert "there is no secret/a" in run(folder, "secret", "rm", "secret/a", code=1)
    assert "there is no secret secret/a" in run(folder, "secret", "history", "secret/a", code=1)
    for path in folder.iterdir():
        if path.is_file():
            assert value.encode() not in path.read_bytes()


def test_a_newline_is_dropped_unless_raw(folder: Path) -> None:
    from vault.sealed import KeyFile, SealedFile, read_key

    run(folder, "secret", "init")
    for arguments, stdin, stored in (
        ((), b"a\n", b"a"),
        ((), b"a\r\n", b"a"),
        ((), b"a\n\n", b"a\n"),
        (("--raw",), b"a\n", b"a\n"),
    ):
        run(folder, "secret", "set", "secret/a", "key", *arguments, stdin=stdin)
        file = SealedFile(folder / "s.sealed", read_key(KeyFile(folder / "s.key"), {}))
        assert file.load()["secret/a"][-1].fields["key"].reveal_bytes() == stored
    assert "the value is empty" in run(folder, "secret", "set", "secret/a", "key", stdin=b"\n", code=1)
    assert "is no secret path" in run(folder, "secret", "set", "a", "key", stdin=b"x", code=1)


def test_without_a_settings_file(tmp_path: Path) -> None:
    text = run(tmp_path, "check", code=78)
    assert text == "ostiary: there is no settings file ostiary.yaml (name one with --config FILE or OSTIARY_CONFIG)\n"
    assert run(tmp_path, "check", "--config", "x.yaml", code=78) == "ostiary: there is no settings file x.yaml\n"


def test_check_in_words_and_as_json(folder: Path) -> None:
    assert run(folder, "check") == "ostiary.yaml: 1 route for 1 workload, secrets from sealed\n"
    assert json.loads(run(folder, "check", "--json"))["ok"] is True
    assert run(folder, "check", OSTIARY_CONFIG=str(folder / "ostiary.yaml")).endswith("secrets from sealed\n")
    (folder / "policy.yaml").write_text(POLICY.replace("allow: w", "allow: v").replace("inject:", "injct:"))
    text = run(folder, "check", code=78)
    assert text.splitlines()[-1] == "4 faults"
    assert "policy.yaml:3:44: workload 'v' is not defined" in text
    done = command("check", "--json", cwd=folder)
    assert done.returncode == 78
    assert len(json.loads(done.stdout)["faults"]) == 4


def test_policy_test_and_schema(folder: Path) -> None:
    assert run(folder, "policy", "test") == "1 passed, 0 failed; 1 of 1 routes covered\n"
    (folder / "policy.yaml").write_text(POLICY.replace("a.test/x", "b.test/x"))
    assert "w GET https://b.test/x: expected route r, came route_denied" in run(folder, "policy", "test", code=1)
    assert json.loads(run(folder, "policy", "schema"))["title"] == "Ostiary policy"


def test_key_mint(folder: Path) -> None:
    import hashlib

    minted = json.loads(run(folder, "key", "mint", "--workload", "w"))
    assert minted["key"].startswith("ost_")
    assert len(minted["key"]) >= 47
    assert minted["hash"] == "sha256:" + hashlib.sha256(minted["key"].encode()).hexdigest()
    assert json.loads(run(folder, "key", "mint", "--admin", "ci"))["key"] != minted["key"]


def test_ca(folder: Path) -> None:
    pem = run(folder, "ca", "export")
    assert pem.startswith("-----BEGIN CERTIFICATE-----")
    assert "PRIVATE" not in pem
    assert (folder / "ca" / "ca.pem").read_text() == pem
    shown = run(folder, "ca", "show")
    assert "CN=Ostiary CA" in shown
    (folder / "ca" / "ca.key").chmod(0o644)
    assert "chmod 600" in run(folder, "ca", "show", code=78)


def test_env_writes_what_clients_trust_where_they_may_read_it(folder: Path) -> None:
    text = run(folder, "env", "--shell", "docker", "--certs", "for/clients")
    told = dict(line.split("=", 1) for line in text.splitlines())
    certs = folder / "for" / "clients"
    assert told["SSL_CERT_FILE"] == str(certs / "bundle.pem")
    assert told["NODE_EXTRA_CA_CERTS"] == str(certs / "ca.pem")
    assert str(certs / "trust.p12") in told["JAVA_TOOL_OPTIONS"]
    assert sorted(path.name for path in certs.iterdir()) == ["bundle.pem", "ca.pem", "trust.p12"]
    assert (certs / "ca.pem").read_bytes() == (folder / "ca" / "ca.pem").read_bytes()
    assert not (folder / "ca" / "bundle.pem").exists()
    (folder / "taken").write_text("")
    done = command("env", "--certs", "taken", cwd=folder)
    assert done.returncode == 1
    assert b"cannot be written into taken" in done.stderr


@pytest.mark.parametrize("shell", ["sh", "fish", "powershell", "docker", "k8s"])
def test_env_in_every_shell(folder: Path, shell: str) -> None:
    text = run(folder, "env", "--shell", shell, OSTIARY_KEY="ost_a'b c")
    assert "http://ostiary:ost_a%27b%20c@127.0.0.1:8080" in text
    for name in ("HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "OPENAI_API_KEY"):
        assert name in text
    bundle = (folder / "ca" / "bundle.pem").read_text()
    assert (folder / "ca" / "ca.pem").read_text().strip() in bundle
    assert bundle.count("BEGIN CERTIFICATE") > 50
    if shell == "sh":
        done = subprocess.run(["sh", "-c", text + 'printf %s "$https_proxy"'], capture_output=True, check=True)
        assert done.stdout == b"http://ostiary:ost_a%27b%20c@127.0.0.1:8080"
    if shell == "powershell":
        assert "$env:https_proxy" not in text
    if shell == "k8s":
        import yaml

        assert {entry["name"] for entry in yaml.safe_load(text)["env"]} >= {"HTTPS_PROXY", "https_proxy"}


def test_exec_says_what_it_needs(folder: Path) -> None:
    assert "name the program after --" in run(folder, "exec", "--", code=64)
    assert "no policy defines workload 'x'; there are w" in run(
        folder, "exec", "--workload", "x", "--", "true", code=64
    )


def test_help_and_version(folder: Path) -> None:
    assert run(folder, "--version") == "ostiary 0.1.0\n"
    assert "COMMAND" in run(folder, "--help")
    assert command("nonsense", cwd=folder).returncode == 2


def test_the_descriptor_of_a_worker_is_for_a_supervisor_alone(folder: Path) -> None:
    for number in ("0", str(1 << 70)):
        assert "--worker-fd is for ostiary run itself" in run(folder, "run", "--worker-fd", number, code=64)
    assert "argument --workers: must be a whole number between 1 and 64" in run(folder, "run", "--workers", "0", code=2)
