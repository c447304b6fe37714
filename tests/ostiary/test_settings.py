"""ostiary.yaml: what it means, every fault of it, and what the environment may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from addons.audit import FileSink, StdoutSink
from ostiary.settings import Settings, load_all, load_settings
from policies import FaultError
from vault.hashicorp.config import AppRoleAuth, TokenAuth, TokenFileAuth
from vault.sealed import KeyCredential, KeyEnv, KeyFile

BASE = """
listen: [{name: sidecar, bind: "127.0.0.1:0", workload: w}]
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
audit: {sinks: [{file: audit.jsonl}]}
policies: ["*.policy.yaml"]
"""
POLICY = "workloads: {w: {proofs: {any: true}}}\nroutes: {r: {match: {host: a.test}, allow: w}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.policy.yaml").write_text(POLICY)
    (tmp_path / "roots.pem").write_text("x")
    return tmp_path


def load(folder: Path, text: str, **environ: str) -> Settings:
    path = folder / "ostiary.yaml"
    path.write_text(text)
    return load_settings(path, environ)


def faults(folder: Path, text: str, **environ: str) -> list[str]:
    path = folder / "ostiary.yaml"
    path.write_text(text)
    with pytest.raises(FaultError) as error:
        load_all(path, environ)
    return [str(fault).replace(str(folder), "") for fault in error.value.faults]


def test_defaults_are_those_of_the_contract(folder: Path) -> None:
    settings = load(folder, BASE)
    limits = settings.limits
    assert (limits.request_line, limits.header_bytes, limits.header_count) == (16384, 65536, 128)
    assert (limits.header_timeout, limits.connect_timeout, limits.first_byte_timeout, limits.idle_timeout) == (
        10,
        5,
        300,
        300,
    )
    assert limits.buffers == 256 << 20
    assert (limits.total_timeout, limits.drain_timeout, limits.connections, limits.connections_per_source) == (
        0,
        10,
        10000,
        1000,
    )
    assert (settings.audit.durability, settings.store, settings.engine) == ("written", "sealed", "mitmproxy")
    assert [(source.pattern, source.folder, source.rights) for source in settings.policies] == [
        ("*.policy.yaml", folder, None)
    ]
    assert settings.audit.sinks == (FileSink(folder / "audit.jsonl"),)
    assert settings.secrets_key == KeyFile(folder / "s.key")


def test_everything_at_once(folder: Path) -> None:
    settings = load(
        folder,
        BASE.replace("{file: s.key}", "{env: KEY}").replace(
            "[{file: audit.jsonl}]", "[{file: /var/a}, {stdout: true}], durability: fsync, wait: 1s, reserve: 1MiB"
        )
        + 'admin: {bind: "unix:admin.sock", probes: "[::1]:9090"}\nvars: {env: prod}\n'
        + 'egress: {allow: 10.0.0.0/8, resolve: {"a.test:443": "10.0.0.1:443"}, ca_file: roots.pem}\nlimits: {total_timeout: 1h, header_bytes: 8KiB, connections: 5}\nengine: mitmproxy\n',
    )
    assert settings.secrets_key == KeyEnv("KEY")
    assert settings.audit.sinks == (FileSink(Path("/var/a")), StdoutSink())
    assert (settings.audit.durability, settings.audit.wait_s, settings.audit.reserve_bytes) == ("fsync", 1.0, 1048576)
    assert settings.admin is not None
    assert str(settings.admin.bind) == f"unix:{folder}/admin.sock"
    assert str(settings.admin.probes) == "[::1]:9090"
    assert (settings.egress.allow, settings.egress.resolve, settings.egress.ca_file) == (
        ("10.0.0.0/8",),
        {"a.test:443": ("10.0.0.1", 443)},
        folder / "roots.pem",
    )
    assert (
        settings.limits.total_timeout,
        settings.limits.header_bytes,
        settings.limits.connections,
        settings.variables,
    ) == (3600, 8192, 5, {"env": "prod"})


@pytest.mark.parametrize(
    ("auth", "kind"),
    [
        ("{method: token_file, file: token}", TokenFileAuth),
        ("{method: token, env: VAULT_TOKEN}", TokenAuth),
        ("{method: approle, role_id: r, secret_id_file: s}", AppRoleAuth),
        ('{method: approle, role_id: "${ROLE}"}', AppRoleAuth),
        ("{method: approle, role_id: file:role, mount: other}", AppRoleAuth),
    ],
)
def test_vault(folder: Path, auth: str, kind: type) -> None:
    (folder / "role").write_text("cnry-role\n")
    text = (
        BASE
        + f'vault: {{addresses: ["https://vault.test:8200/", "http://127.0.0.1:8200"], namespace: team, ca_file: roots.pem, auth: {auth}}}\n'
    )
    settings = load(folder, text, VAULT_TOKEN="cnry-token", ROLE="cnry-role")
    assert settings.store == "vault"
    assert settings.vault is not None
    assert settings.vault.addresses == ("https://vault.test:8200", "http://127.0.0.1:8200")
    assert isinstance(settings.vault.auth, kind)
    assert "cnry" not in repr(settings)


def test_every_fault_is_told(folder: Path) -> None:
    text = """
listen: [{name: a, bind: nowhere}, {name: a b, bind: "127.0.0.1:1"}, {name: c, bind: "127.0.0.1:1", workload: x, tls: {}}, {name: d, bind: "127.0.0.1:2", mode: reverse}]
ca: {vault_pki: x}
audit: {sinks: [{}], durability: maybe}
policies: ["*.nothing", {files: x, may: {}}]
vault: {addresses: ["http://vault.test", "vault"], auth: {method: kubernetes, role: x}}
limits: {idle_timeout: soon, connections: 0, buffers: 1KiB, buffered_body: 8MiB}
listn: [x]
engine: fast
"""
    found = faults(folder, text)
    for wanted in (
        ":2:26: 'nowhere' is no address to listen on",
        "'a b' is no name for a listener",
        "127.0.0.1:1 is already listened on",
        "'tls' is not built yet",
        "mode: reverse is not built yet",
        "'vault_pki' is not built yet",
        "ca needs 'dir'",
        "an audit sink needs 'file'",
        "'durability' of audit cannot be 'maybe'",
        "no file matches '*.nothing'",
        "may needs 'define'",
        "no file matches 'x'",
        "secrets would cross the network in clear text",
        "'vault' is no Vault address",
        "auth method kubernetes is not built yet",
        "'role' is not built yet",
        "'idle_timeout' of limits is no duration",
        "'connections' of limits must lie between 1",
        "buffers is less than a single connection may hold (write at least 1MiB)",
        "'buffered_body' is not built yet",
        ":8:1: unknown key 'listn' in the settings (did you mean 'listen'?)",
        "engine: fast is not built yet",
    ):
        assert any(wanted in fault for fault in found), (wanted, found)


def test_what_is_required(folder: Path) -> None:
    found = faults(folder, "vars: {a: b}\n")
    assert [fault.split(": ", 1)[1] for fault in found] == [
        "the settings name no place where secrets live (add vault: {…}, or secrets_file: and secrets_key: for the embedded store)",
        "the settings needs 'audit' (add audit: …)",
        "the settings needs 'ca' (add ca: …)",
        "the settings needs 'listen' (add listen: …)",
        "the settings needs 'policies' (add policies: …)",
    ]


def test_settings_and_policy_are_checked_together(folder: Path) -> None:
    found = faults(folder, BASE.replace("workload: w", "workload: ww"))
    assert any("names workload 'ww', which no policy defines (did you mean 'w'?)" in fault for fault in found)
    assert any("workload 'w' has the proof any: true, and no listener names it" in fault for fault in found)


def test_the_environment_overrides_scalars(folder: Path) -> None:
    settings = load(
        folder, BASE, OSTIARY_LIMITS__DRAIN_TIMEOUT="3s", OSTIARY_CA__DIR="/elsewhere", OSTIARY_CONFIG="x", OTHER="y"
    )
    assert settings.limits.drain_timeout == 3
    assert settings.ca_dir == Path("/elsewhere")
    found = faults(folder, BASE, OSTIARY_LIMITS__DRAIN_TIMEOUT="soon", OSTIARY_LIMTS__X="1", OSTIARY_LISTEN__BIND="y")
    assert any(
        fault.startswith("$OSTIARY_LIMITS__DRAIN_TIMEOUT:1:1: 'drain_timeout' of limits is no duration")
        for fault in found
    )
    assert sum("names no setting that can be overridden" in fault for fault in found) == 2


@pytest.mark.parametrize(("text", "kind"), [("{credential: c}", KeyCredential("c")), ("{env: E}", KeyEnv("E"))])
def test_key_sources(folder: Path, text: str, kind: object) -> None:
    assert load(folder, BASE.replace("{file: s.key}", text)).secrets_key == kind
