"""The least Vault policy: what it says, that it suffices in a real Vault, and that `check --live` misses what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostiary.vault_policy import beyond, least_policy, missing
from policies.model import SecretSpec
from policies.sign import TransitKey, TransitUse
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import command

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  one: {match: {host: one.test}, allow: billing, secret: {path: secret/egress/one, field: key}, inject: {bearer: "{secret}"}}
  two: {match: {host: two.test}, allow: billing, secret: {path: secret/egress/two, field: key, kv: 2}, inject: {bearer: "{secret}"}}
  old: {match: {host: old.test}, allow: billing, secret: {path: old/egress/three, field: key, kv: 1}, inject: {bearer: "{secret}"}}
  signed: {match: {host: signed.test}, allow: billing, sign: [{hmac: {transit: {key: egress-mac}}}, {http_message: {key_id: a, algorithm: ed25519, transit: {key: egress-ed, mount: keys/transit}, components: "@method"}}]}
"""


def test_what_is_lent() -> None:
    found = least_policy(
        [
            SecretSpec("database/creds/a", engine="database"),
            SecretSpec("creds/b", mount="deep/aws", engine="aws", namespace="team/a"),
        ],
        "team",
    )
    assert [(rule.path, rule.capability) for rule in found.rules][:6] == [
        ("database/creds/a", "read"),
        ("a/deep/aws/creds/b", "read"),
        ("sys/leases/renew", "update"),
        ("sys/leases/revoke", "update"),
        ("a/sys/leases/renew", "update"),
        ("a/sys/leases/revoke", "update"),
    ]


def test_rules() -> None:
    found = least_policy(
        [
            SecretSpec("secret/a", kv=2),
            SecretSpec("secret/a", kv=2, version=3),
            SecretSpec("b/c", mount="deep/mount", watch_s=15),
            SecretSpec("old/d", kv=1),
            SecretSpec("secret/e", kv=2, namespace="team/a"),
            SecretSpec("secret/f", kv=2, namespace="other"),
            SecretSpec("secret/*", kv=2),
        ],
        "team",
        [
            TransitUse(TransitKey("mac"), "hmac-sha512"),
            TransitUse(TransitKey("mac", version=2), "hmac-sha256"),
            TransitUse(TransitKey("ed", "deep/mount", "team/a"), "ed25519"),
            TransitUse(TransitKey("far", namespace="other"), "ed25519"),
        ],
    )
    assert str(found).splitlines() == [
        "# secret/f is in namespace other, which this policy cannot reach.",
        "# secret/* is not granted here: a policy would read some of its characters as a pattern.",
        "# transit/sign/far is in namespace other, which this policy cannot reach.",
        'path "secret/data/a" { capabilities = ["read"] }',
        'path "secret/subkeys/a" { capabilities = ["read"] }',
        'path "deep/mount/data/b/c" { capabilities = ["read"] }',
        'path "deep/mount/subkeys/b/c" { capabilities = ["read"] }',
        'path "deep/mount/metadata/b/c" { capabilities = ["read"] }',
        'path "deep/mount/b/c" { capabilities = ["read"] }',
        'path "old/d" { capabilities = ["read"] }',
        'path "a/secret/data/e" { capabilities = ["read"] }',
        'path "a/secret/subkeys/e" { capabilities = ["read"] }',
        'path "transit/hmac/mac" { capabilities = ["update"] }',
        'path "a/deep/mount/sign/ed" { capabilities = ["update"] }',
        'path "auth/token/lookup-self" { capabilities = ["read"] }',
        'path "auth/token/renew-self" { capabilities = ["update"] }',
        'path "auth/token/revoke-self" { capabilities = ["update"] }',
        'path "sys/capabilities-self" { capabilities = ["update"] }',
    ]


def test_held_against_what_a_token_may() -> None:
    least = least_policy([SecretSpec("secret/a", kv=2), SecretSpec("kv/b")], None)
    told = {rule.path: ("deny",) for rule in least.rules}
    assert len(missing(least, told)) == 5
    assert (
        missing(least, told | {"secret/data/a": ("read",), "secret/subkeys/a": ("root",), "kv/b": ("read", "list")})
        == []
    )
    (one,) = missing(least, told | {"secret/data/a": ("read",), "kv/b": ("read",)})
    assert one == "the Vault token may not read secret/subkeys/a"
    assert beyond(least, told) == []
    (more,) = beyond(least, told | {"secret/data/a": ("read", "update", "delete")})
    assert more == "the Vault token may also delete, update secret/data/a: read is enough"


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao")) as server:
        server.api("POST", "sys/mounts/old", {"type": "kv", "options": {"version": "1"}})
        for name in ("one", "two"):
            server.put(f"egress/{name}", key="cnry-x")
        server.api("POST", "old/egress/three", {"key": "cnry-x"})
        yield server


def test_what_it_prints_suffices_and_no_less_does(bao: OpenBao, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "ostiary.yaml").write_text(
        'listen: [{name: sidecar, bind: "127.0.0.1:0", workload: billing}]\n'
        "ca: {dir: ca}\naudit: {sinks: [{file: audit.jsonl}]}\npolicies: [policy.yaml]\n"
        f'vault:\n  addresses: ["{bao.address}"]\n  auth: {{method: token_file, file: vault-token}}\n'
    )

    def run(*arguments: str, code: int = 0) -> str:
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert b"cnry" not in done.stdout + done.stderr
        return (done.stdout + done.stderr).decode()

    printed = run("vault", "policy")
    assert printed.count("path ") == 12
    bao.policy("least", printed)
    (tmp_path / "vault-token").write_text(bao.new_token("least"))
    assert "every secret has its fields" in run("check", "--live")
    # Less: names of fields are still to be had, but not the secret.
    less = printed.replace('path "secret/data/egress/two"', 'path "secret/data/egress/other"')
    less = less.replace('path "keys/transit/sign/egress-ed"', 'path "keys/transit/sign/egress-other"')
    bao.policy("less", less)
    (tmp_path / "vault-token").write_text(bao.new_token("less"))
    told = run("check", "--live", code=78)
    assert "the Vault token may not read secret/data/egress/two\n" in told
    assert "the Vault token may not update keys/transit/sign/egress-ed\n" in told
    assert "egress-mac" not in told
    assert "egress/one" not in told
    assert json.loads(run("check", "--live", "--json", code=78).partition("\n")[0])["ok"] is False
    # One that may not even ask says so; one that may more than is needed too.
    bao.policy("mute", less.replace("sys/capabilities-self", "sys/other"))
    (tmp_path / "vault-token").write_text(bao.new_token("mute"))
    assert "note: the Vault token may not ask what it may do" in run("check", "--live")
    bao.policy(
        "more",
        printed.replace(
            'data/egress/one" { capabilities = ["read"]', 'data/egress/one" { capabilities = ["read", "update"]'
        ),
    )
    (tmp_path / "vault-token").write_text(bao.new_token("more"))
    assert "note: the Vault token may also update secret/data/egress/one: read is enough" in run("check", "--live")
    # What the owners say is told ahead.
    (tmp_path / "vault-token").write_text(bao.token)
    bao.api(
        "POST",
        "secret/metadata/egress/one",
        {"custom_metadata": {"expires_at": "2020-01-01T00:00:00Z", "owner": "team-pay", "overlap_until": "soon"}},
    )
    bao.api("POST", "secret/metadata/egress/two", {"custom_metadata": {"pending_version": "next"}})
    told = command("doctor", cwd=tmp_path).stdout.decode()
    assert "secret secret/egress/one has expired at 2020-01-01T00:00:00Z, as its owners say (owner: team-pay)" in told
    assert "correct its custom_metadata: pending_version is not a version number" in told
