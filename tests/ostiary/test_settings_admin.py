"""`admin:` of the settings: where the API may listen, and who may call it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostiary.settings import Settings, load_settings
from ostiary.settings.admin import is_loopback
from ostiary.settings.model import AdminToken
from policies import FaultError

BASE = """listen: [{name: sidecar, bind: "127.0.0.1:0"}]
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
audit: {sinks: [{file: audit.jsonl}]}
policies: ["policy.yaml"]
"""
DIGEST = "ab" * 32
OTHER = "cd" * 32


def load(folder: Path, admin: str, **environ: str) -> Settings:
    (folder / "policy.yaml").write_text("workloads: {w: {proofs: {any: true}}}\n")
    (folder / "ostiary.yaml").write_text(BASE + f"admin: {admin}\n")
    return load_settings(folder / "ostiary.yaml", environ)


def faults(folder: Path, admin: str, **environ: str) -> list[str]:
    with pytest.raises(FaultError) as error:
        load(folder, admin, **environ)
    return [str(fault).replace(f"{folder}/ostiary.yaml", "") for fault in error.value.faults]


def test_a_whole_block(tmp_path: Path) -> None:
    admin = load(
        tmp_path,
        '{bind: "unix:admin.sock", socket_mode: 0660, probes: "0.0.0.0:9090", tokens: ['
        f'{{name: ci, hash: "sha256:{DIGEST}", roles: operator}}, {{name: eve, hash: "sha256:{OTHER}", roles: [viewer, approver]}}]}}',
    ).admin
    assert admin is not None
    assert (str(admin.bind), str(admin.probes), admin.socket_mode) == (
        f"unix:{tmp_path}/admin.sock",
        "0.0.0.0:9090",
        0o660,
    )
    assert admin.tokens == (
        AdminToken("ci", DIGEST, frozenset({"operator"})),
        AdminToken("eve", OTHER, frozenset({"viewer", "approver"})),
    )


def test_the_socket_is_its_owners_alone_by_default(tmp_path: Path) -> None:
    admin = load(tmp_path, '{bind: "unix:admin.sock"}').admin
    assert admin is not None
    assert (admin.socket_mode, admin.tokens) == (0o600, ())


@pytest.mark.parametrize("bind", ["127.0.0.1:9901", "127.9.9.9:0", "[::1]:9901", "localhost:9901", "unix:a.sock"])
def test_where_the_api_may_listen(tmp_path: Path, bind: str) -> None:
    assert load(tmp_path, f'{{bind: "{bind}"}}').admin is not None


@pytest.mark.parametrize(
    "bind", ["0.0.0.0:9901", "[::]:9901", "10.0.0.7:9901", "admin.test:9901", "localhost.evil.test:1"]
)
def test_g41_where_it_may_not(tmp_path: Path, bind: str) -> None:
    (told,) = faults(tmp_path, f'{{bind: "{bind}"}}')
    assert told.startswith(":7:15: the admin API listens on loopback or a Unix socket alone")
    assert f"probes: {bind} for /healthz" in told
    # The probes may.
    assert load(tmp_path, f'{{probes: "{bind}"}}').admin is not None
    # Nor by way of the environment.
    (told,) = faults(tmp_path, '{bind: "127.0.0.1:9901"}', OSTIARY_ADMIN__BIND=bind)
    assert told.startswith("$OSTIARY_ADMIN__BIND:1:1: the admin API listens on loopback")


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "LOCALHOST"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "localhost.", "0x7f.1", "", "fe80::1"))


@pytest.mark.parametrize(
    ("admin", "wanted"),
    [
        ("{socket_mode: 0600}", "admin needs bind or probes"),
        (
            f'{{probes: "127.0.0.1:1", tokens: [{{name: a, hash: "sha256:{DIGEST}", roles: admin}}]}}',
            "tokens are for the admin API, which bind opens",
        ),
        ('{bind: "unix:a", socket_mode: 0666}', "'0666' would let strangers in (write 0600 or 0660)"),
        ('{bind: "unix:a", socket_mode: rw}', "'rw' is no file mode (write 0600 or 0660)"),
        ('{bind: "127.0.0.1:1", socket_mode: 0600}', "socket_mode is for a Unix socket"),
        ('{bind: "127.0.0.1:1", token: x}', "unknown key 'token' in admin (did you mean 'tokens'?)"),
        ('{bind: "127.0.0.1:1", tokens: x}', "an admin token must be a mapping"),
    ],
)
def test_faults_of_the_block(tmp_path: Path, admin: str, wanted: str) -> None:
    assert any(wanted in told for told in faults(tmp_path, admin)), faults(tmp_path, admin)


@pytest.mark.parametrize(
    ("token", "wanted"),
    [
        ("{name: a}", "an admin token needs 'hash'"),
        (f'{{name: a b, hash: "sha256:{DIGEST}", roles: admin}}', "'a b' is no name for a token"),
        (f'{{name: SIGHUP, hash: "sha256:{DIGEST}", roles: admin}}', "'SIGHUP' is no name for a token"),
        ("{name: a, hash: cnry-the-token, roles: admin}", "hash is not of the form sha256:<64"),
        (f'{{name: a, hash: "sha256:{DIGEST.upper()}", roles: admin}}', "hash is not of the form sha256:<64"),
        (f'{{name: a, hash: "{DIGEST}", roles: admin}}', "hash is not of the form sha256:<64"),
        (
            f'{{name: a, hash: "sha256:{DIGEST}", roles: [operater]}}',
            "'operater' is no role (did you mean 'operator'?)",
        ),
        (f'{{name: a, hash: "sha256:{DIGEST}", roles: root}}', "'root' is no role (one of viewer, operator, approver"),
        (f'{{name: a, hash: "sha256:{DIGEST}", roles: []}}', "is an empty list"),
        (f'{{name: a, hash: "sha256:{DIGEST}", role: admin}}', "unknown key 'role' in an admin token"),
        (f'{{name: ok, hash: "sha256:{OTHER}", roles: admin}}', "token 'ok' is already defined at"),
        (f'{{name: a, hash: "sha256:{OTHER}", roles: admin}}', "this hash already stands at"),
    ],
)
def test_faults_of_a_token(tmp_path: Path, token: str, wanted: str) -> None:
    admin = f'{{bind: "127.0.0.1:1", tokens: [{{name: ok, hash: "sha256:{OTHER}", roles: viewer}}, {token}]}}'
    told = faults(tmp_path, admin)
    assert any(wanted in one for one in told), told
    # A token that was written where its hash belongs is not repeated.
    assert "cnry" not in "".join(told)
