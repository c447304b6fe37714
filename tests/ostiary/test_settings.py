"""ostiary.yaml: what it means, every fault of it, and what the environment may change."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from addons.audit import FileSink, StdoutSink
from addons.state import StateConfig
from ostiary.settings import Settings, load_all, load_settings
from policies import FaultError
from vault.hashicorp.aws import AwsKeys, AwsProfile
from vault.hashicorp.config import AppRoleAuth, AwsAuth, CertAuth, JwtAuth, KubernetesAuth, TokenAuth, TokenFileAuth
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
    assert (settings.audit.durability, settings.store, settings.engine) == ("written", "sealed", "fast")
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
        ("{method: approle, role_id: file:not-there-yet, wrapped_file: w}", AppRoleAuth),
        ("{method: kubernetes, role: proxy}", KubernetesAuth),
        ("{method: kubernetes, role: proxy, jwt_file: jwt, mount: clusters/one}", KubernetesAuth),
        ("{method: jwt, jwt_file: jwt}", JwtAuth),
        ("{method: jwt, role: proxy, jwt_file: jwt, mount: jwt}", JwtAuth),
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


def test_vault_by_certificate(folder: Path) -> None:
    (folder / "client.pem").write_text("x")
    text = 'vault: {addresses: ["https://vault.test"], client_cert: client.pem, auth: {method: cert, role: proxy}}\n'
    settings = load(folder, BASE + text)
    assert settings.vault is not None
    assert settings.vault.auth == CertAuth("proxy")


@pytest.mark.parametrize(
    ("auth", "wanted"),
    [
        ("{method: kubernetes}", "needs 'role'"),
        ("{method: kubernetes, role: 'a/b'}", "'a/b' is no name of a role"),
        ("{method: kubernetes, role: a, file: x}", "'file' is no key of auth method kubernetes"),
        ("{method: jwt, role: a}", "needs 'jwt_file'"),
        ("{method: jwt, jwt_file: j, mount: ../sys}", "'../sys' is no mount of an auth method"),
        ("{method: jwt, jwt_file: j, mount: auth/jwt}", "write it without auth/"),
        ("{method: approle, role_id: r, secret_id_file: s, wrapped_file: w}", "exclude each other"),
        ("{method: approle, role_id: r, role: x}", "'role' is no key of auth method approle"),
        ("{method: cert}", "auth method cert needs client_cert"),
        ("{method: cert}", "auth method cert needs https://"),
        ("{method: aws, region: eu-west-1}", "needs 'role'"),
        ("{method: aws, role: a, region: europe}", "'europe' is no region of AWS"),
        ("{method: aws, role: a, region: eu-west-1.evil.test/x-1}", "is no region of AWS"),
        ("{method: aws, role: a, header_value: 'a b'}", "header_value must be visible ASCII"),
        ("{method: kubernetes, role: a, region: eu-west-1}", "'region' is no key of auth method kubernetes"),
        ("{method: kubernets, role: a}", "kubernetes"),
    ],
)
def test_faults_of_a_login(folder: Path, auth: str, wanted: str) -> None:
    found = faults(folder, BASE + f'vault: {{addresses: ["http://127.0.0.1:8200"], auth: {auth}}}\n')
    assert any(wanted in fault for fault in found), found


def test_keys_of_aws_are_found_as_sdks_find_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def auth(environ: dict[str, str]) -> AwsAuth:
        text = "{method: aws, role: egress, region: cn-north-1, header_value: vault.test, mount: clouds/aws}"
        vault = load(folder, BASE + f'vault: {{addresses: ["http://127.0.0.1:8200"], auth: {text}}}\n', **environ).vault
        assert vault is not None
        assert isinstance(vault.auth, AwsAuth)
        return vault.auth

    pair = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "cnry-aws-secret"}
    found = auth({**pair, "AWS_SESSION_TOKEN": "cnry-session", "HOME": "/h"})
    assert (found.role, found.region, found.header_value, found.mount) == (
        "egress",
        "cn-north-1",
        "vault.test",
        "clouds/aws",
    )
    assert isinstance(found.keys, AwsKeys)
    assert found.keys.secret_access_key.reveal() == "cnry-aws-secret"
    assert found.keys.session_token is not None
    assert "cnry" not in repr(found)
    # Then the file, which may come later, as what writes it does.
    assert auth({"HOME": "/h"}).keys == AwsProfile(Path("/h/.aws/credentials"), "default")
    given = {"HOME": "/h", "AWS_SHARED_CREDENTIALS_FILE": "aws/keys", "AWS_PROFILE": "egress"}
    assert auth(given).keys == AwsProfile(folder / "aws/keys", "egress")
    for environ, wanted in (
        ({"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE"}, "the variable AWS_SECRET_ACCESS_KEY is not set"),
        ({"AWS_SECRET_ACCESS_KEY": "cnry-x"}, "the variable AWS_ACCESS_KEY_ID is not set"),
        ({**pair, "AWS_SESSION_TOKEN": "cnry\nx"}, "the environment holds something that no AWS key is"),
    ):
        with pytest.raises(FaultError, match=wanted) as caught:
            auth(environ)
        assert "cnry" not in str(caught.value)
    # A user without a home, as containers have them.
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(FaultError, match="there are no AWS keys: neither in variables nor in a home"):
        auth({})


def test_every_fault_is_told(folder: Path) -> None:
    text = """
listen: [{name: a, bind: nowhere}, {name: a b, bind: "127.0.0.1:1"}, {name: c, bind: "127.0.0.1:1", workload: x, tls: {client_ca: ca.pem}}, {name: d, bind: "127.0.0.1:2", mode: transparent}]
ca: {vault_pki: x}
audit: {sinks: [{}], durability: maybe}
policies: ["*.nothing", {files: x, may: {}}]
vault: {addresses: ["http://vault.test", "vault"], auth: {method: aws, region: x}}
limits: {idle_timeout: soon, connections: 0, buffers: 1KiB, buffered_body: 8MiB}
listn: [x]
engine: slow
"""
    found = faults(folder, text)
    for wanted in (
        ":2:26: 'nowhere' is no address to listen on",
        "'a b' is no name for a listener",
        "127.0.0.1:1 is already listened on",
        "'client_ca' is not built yet",
        "tls of listener c needs 'cert'",
        "'mode' of a listener cannot be 'transparent'",
        "'vault_pki' is not built yet",
        "ca needs 'dir'",
        "an audit sink needs 'file'",
        "'durability' of audit cannot be 'maybe'",
        "no file matches '*.nothing'",
        "may needs 'define'",
        "no file matches 'x'",
        "secrets would cross the network in clear text",
        "'vault' is no Vault address",
        "auth of vault needs 'role'",
        "'idle_timeout' of limits is no duration",
        "'connections' of limits must lie between 1",
        "buffers is less than a single connection may hold (write at least 1MiB)",
        "buffered_body is more than all bodies together may hold (write less than buffers",
        ":8:1: unknown key 'listn' in the settings (did you mean 'listen'?)",
        "'engine' of the settings cannot be 'slow'",
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


# --- state ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{url: "memory:"}', StateConfig("memory")),
        ('{url: "sqlite:////var/lib/ostiary/state.db"}', StateConfig("sqlite", path=Path("/var/lib/ostiary/state.db"))),
        ('{url: "rediss://Cache.test"}', StateConfig("valkey", host="cache.test", port=6379, tls=True)),
        (
            '{url: "valkey://[::1]:7000/3", deadline: 1s}',
            StateConfig("valkey", host="::1", port=7000, database=3, deadline_s=1),
        ),
        (
            '{url: "redis://cache.test/", allow_cleartext: true, prefix: team-a}',
            StateConfig("valkey", host="cache.test", port=6379, prefix="team-a"),
        ),
        ('{url: "valkeys://c.test", ca_file: roots.pem}', "roots.pem"),
    ],
)
def test_a_state(folder: Path, text: str, expected: StateConfig | str) -> None:
    found = load(folder, BASE + f"state: {text}\n").state
    if isinstance(expected, str):
        assert found is not None
        assert found.ca_file == folder / expected
    else:
        assert found == expected


def test_a_relative_state_file_and_the_environment(folder: Path) -> None:
    found = load(folder, BASE + 'state: {url: "sqlite:///run/s.db"}\n').state
    assert found is not None
    assert found.path == folder / "run" / "s.db"
    found = load(folder, BASE, OSTIARY_STATE__URL="memory:").state
    assert found == StateConfig("memory")
    assert load(folder, BASE).state is None


def test_the_password_of_a_state_comes_from_elsewhere_and_is_never_shown(folder: Path) -> None:
    (folder / "pw").write_text("hunter-in-a-file\n")
    for given, environ, expected in (
        ("file:pw", {}, "hunter-in-a-file"),
        ("${PW}", {"PW": "hunter-in-env"}, "hunter-in-env"),
    ):
        text = f'state: {{url: "rediss://c.test", username: ostiary, password: "{given}"}}\n'
        found = load(folder, BASE + text, **environ).state
        assert found is not None
        assert found.password is not None
        assert found.password.reveal() == expected
        assert "hunter" not in repr(found) + str(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "'url'"),
        ('{url: "postgres://x"}', "no scheme that is known"),
        ('{url: "sqlite://state.db"}', "the URL names no file"),
        ('{url: "sqlite:///"}', "the URL names no file"),
        ('{url: "redis://:hunter2@127.0.0.1"}', "carries a login"),
        ('{url: "redis://[::1"}', "cannot be read"),
        ('{url: "redis://c.test:99999"}', "cannot be read"),
        ('{url: "rediss://c.test/x"}', "names no server"),
        ('{url: "rediss://c.test/?password=hunter2"}', "names no server"),
        ('{url: "redis://c.test"}', "allow_cleartext"),
        ('{url: "redis://127.0.0.1", ca_file: roots.pem}', "ca_file needs TLS"),
        ('{url: "rediss://c.test", ca_file: missing.pem}', "no file that can be read"),
        ('{url: "rediss://c.test", password: hunter2}', "does not stand in the settings"),
        ('{url: "rediss://c.test", password: "${NOT_SET}"}', "NOT_SET is not set"),
        ('{url: "rediss://c.test", username: u}', "username needs a password"),
        ('{url: "rediss://c.test", prefix: "a b"}', "a prefix has"),
        ('{url: "memory:", prefix: a}', "'prefix' belongs to a server"),
        ('{url: "memory:", deadline: 20s}', "between 10ms and 5s"),
        ('{url: "memory:", deadlin: 1s}', "did you mean 'deadline'?"),
    ],
)
def test_faults_of_a_state(folder: Path, text: str, expected: str) -> None:
    found = faults(folder, BASE + f"state: {text}\n")
    assert len(found) == 1
    assert expected in found[0]
    assert found[0].startswith("/ostiary.yaml:8:")
    assert "hunter2" not in found[0]


def test_a_server_needs_the_redis_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    (found,) = faults(folder, BASE + 'state: {url: "rediss://c.test"}\n')
    assert "install ostiary[redis]" in found


def test_a_single_body_fits_into_all_of_them(folder: Path) -> None:
    """Whoever bounds all bodies has not to think of the one, unless it is written."""
    assert load(folder, BASE + "limits: {buffers: 2MiB}\n").limits.buffered_body == 2 << 20
    assert load(folder, BASE + "limits: {buffers: 2GiB}\n").limits.buffered_body == 8 << 20
