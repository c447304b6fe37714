"""`doctor` over set-ups that are really broken: each break is found under its id, and the mend names the thing."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import http.server
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostiary import ca
from ostiary.doctor.chain import CHAIN, PARTS_OF, walk
from ostiary.doctor.finding import Finding
from ostiary.environment import client_environment, write_bundle
from tests.harness.admin import Token, block
from tests.harness.canaries import canary, scan
from tests.harness.issuer import Issuer
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.pki import Pki
from tests.harness.ports import free_port
from tests.harness.scripted_vault import scripted, send
from tests.harness.upstream import Upstream
from tests.harness.valkey import valkey_server

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api: {match: {host: api.test}, allow: billing, secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""
LIMITS = "limits: {connections: 100}\n"


class Patient:
    """One set-up: healthy until a test breaks it."""

    def __init__(self, folder: Path, api: Upstream, roots: Path) -> None:
        self.port = free_port()
        self.value = canary()
        self.ostiary = Ostiary(
            folder,
            POLICY,
            upstreams={"api.test:443": api.port},
            secrets={"secret/egress/api": {"key": self.value}},
            ca_file=roots,
            listen=f'[{{name: sidecar, bind: "127.0.0.1:{self.port}", workload: billing}}]',
            settings=LIMITS,
        ).write()
        self.folder = folder
        self.environ: dict[str, str] = {}
        self.make_ca()

    def make_ca(self) -> None:
        folder = self.folder / "ca"
        authority = ca.load_or_create(folder, dt.datetime.now(dt.UTC))
        bundle = write_bundle(folder, authority.pem)
        made = client_environment(f"http://127.0.0.1:{self.port}", folder / "ca.pem", bundle, {}, [])
        self.environ = dict(made.variables)

    def rewrite(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.ostiary, name, value)
        self.ostiary.write()

    def examine(self) -> dict[str, list[Finding]]:
        found = asyncio.run(walk(self.folder / "ostiary.yaml", self.environ, deadline_s=2.0))
        by_id: dict[str, list[Finding]] = {}
        for one in found:
            by_id.setdefault(one.id, []).append(one)
            assert one.state not in {"fail", "warn"} or one.mend, one
        assert not scan([("findings", repr(found).encode())], [self.value, *self.ostiary.canaries])
        return by_id

    def fails(self, check: str, found: str, mend: str, *, state: str = "fail") -> dict[str, list[Finding]]:
        by_id = self.examine()
        broken = [one for findings in by_id.values() for one in findings if one.mend]
        assert any(one.state == state and found in one.found and mend in one.mend for one in by_id.get(check, ())), (
            "\n".join(f"{one.state} {one.id}: {one.found} -> {one.mend}" for one in broken)
        )
        return by_id


@pytest.fixture
def patient(tmp_path: Path, upstream: Callable[..., Upstream], pki: Pki) -> Patient:
    return Patient(tmp_path / "patient", upstream(), pki.ca_file)


def test_a_healthy_set_up(patient: Patient) -> None:
    patient.ostiary.run()
    try:
        done = command("doctor", cwd=patient.folder, environ=patient.environ)
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert b"0 failed, 0 warnings" in done.stdout
        assert b"->" not in done.stdout
        told = command("doctor", "--json", cwd=patient.folder, environ=patient.environ)
        assert told.returncode == 0
        shown = json.loads(told.stdout)
        assert shown["ok"] is True
        assert [one["id"] for one in shown["findings"]] == [check.id for check in CHAIN]
        assert {one["id"] for one in shown["findings"] if one["state"] == "skip"} == {
            "store.login",
            "clock.skew",
            "state.reachable",
        }
        outputs = [("text", done.stdout + done.stderr), ("json", told.stdout + told.stderr)]
        assert not scan(outputs, [patient.value])
    finally:
        patient.ostiary.stop()


def test_nothing_is_sent_upstream(tmp_path: Path, upstream: Callable[..., Upstream], pki: Pki) -> None:
    api = upstream()
    found = Patient(tmp_path / "patient", api, pki.ca_file).examine()
    assert found["upstream.tls"][0].state == "ok"
    assert api.connections == 1
    assert not api.requests


# --- settings and files ---


def test_settings_with_a_fault(patient: Patient) -> None:
    patient.rewrite(policy=POLICY.replace("inject:", "injct:"))
    by_id = patient.fails("settings.load", "policy.yaml:4:", "inject")
    assert by_id["policy.reachable"][0] == Finding("policy.reachable", "skip", "settings.load failed")
    assert command("doctor", cwd=patient.folder).returncode == 1


@pytest.mark.parametrize("name", ["secrets.key", "secrets.sealed", "ca/ca.key"])
def test_a_private_file_open_to_others(patient: Patient, name: str) -> None:
    (patient.folder / name).chmod(0o644)
    patient.fails("files.modes", "mode 0644", f"chmod 600 {patient.folder / name}")


def test_an_audit_folder_open_to_all(patient: Patient) -> None:
    patient.folder.chmod(0o777)
    patient.fails("files.modes", "replace audit files", f"chmod o-w {patient.folder}")


def test_no_audit_folder(patient: Patient) -> None:
    patient.rewrite(audit_block="audit: {sinks: [{file: gone/audit.jsonl}]}")
    patient.fails("audit.writable", "there is no folder", f"mkdir -p {patient.folder / 'gone'}")


def test_a_full_disk(patient: Patient) -> None:
    patient.rewrite(audit_block="audit: {sinks: [{file: audit.jsonl}], reserve: 4000000GiB}")
    patient.fails("audit.writable", "less than audit.reserve", f"make room on the disk of {patient.folder}")


def test_too_few_descriptors(patient: Patient) -> None:
    patient.rewrite(settings="limits: {connections: 1000000}\n")
    patient.fails("limits.descriptors", "do not hold", "LimitNOFILE=2000064", state="warn")


# --- the CA ---


def test_no_ca_yet(patient: Patient) -> None:
    (patient.folder / "ca" / "ca.key").unlink()
    (patient.folder / "ca" / "ca.pem").unlink()
    by_id = patient.fails("ca.usable", "there is no CA", "ostiary run")
    assert by_id["env.ca_trusted"][0].state == "skip"
    assert not (patient.folder / "ca" / "ca.key").exists(), "doctor changes nothing"


def test_a_key_of_another_ca(patient: Patient, tmp_path: Path) -> None:
    ca.load_or_create(tmp_path / "other", dt.datetime.now(dt.UTC))
    (patient.folder / "ca" / "ca.pem").write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
    patient.fails("ca.usable", "does not belong to", str(patient.folder / "ca"))


@pytest.mark.parametrize(("days", "state", "found"), [(3651, "fail", "expired on"), (3645, "warn", "expires in")])
def test_an_old_ca(patient: Patient, days: int, state: str, found: str) -> None:
    for name in ("ca.key", "ca.pem"):
        (patient.folder / "ca" / name).unlink()
    ca.load_or_create(patient.folder / "ca", dt.datetime.now(dt.UTC) - dt.timedelta(days=3600))
    for name in ("ca.key", "ca.pem"):
        (patient.folder / "ca" / name).unlink()
    ca._create(patient.folder / "ca", dt.datetime.now(dt.UTC) - dt.timedelta(days=days))
    patient.fails("ca.usable", found, "remove ca.key and ca.pem", state=state)


def test_a_stale_bundle(patient: Patient) -> None:
    for name in ("ca.key", "ca.pem"):
        (patient.folder / "ca" / name).unlink()
    ca.load_or_create(patient.folder / "ca", dt.datetime.now(dt.UTC))
    patient.fails("env.ca_trusted", "SSL_CERT_FILE, REQUESTS_CA_BUNDLE, ", "ostiary env")


def test_no_ca_variable(patient: Patient) -> None:
    patient.environ = {name: value for name, value in patient.environ.items() if "proxy" in name.lower()}
    patient.fails("env.ca_trusted", "none of the CA variables", "SSL_CERT_FILE")


def test_an_environment_that_is_no_clients(patient: Patient) -> None:
    patient.environ = {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}
    assert patient.examine()["env.ca_trusted"][0].state == "skip"


def test_variables_that_name_one_file_are_one_finding(patient: Patient) -> None:
    foreign = patient.folder / "foreign.pem"
    foreign.write_text((patient.folder / "ca" / "ca.pem").read_text().replace("MII", "MIJ", 1))
    patient.environ |= {"CURL_CA_BUNDLE": str(foreign), "GIT_SSL_CAINFO": str(foreign)}
    by_id = patient.fails("env.ca_trusted", f"CURL_CA_BUNDLE, GIT_SSL_CAINFO name {foreign}", "ostiary env")
    assert len(by_id["env.ca_trusted"]) == 1


def test_a_ca_variable_that_names_nothing(patient: Patient) -> None:
    patient.environ["GIT_SSL_CAINFO"] = str(patient.folder / "no.pem")
    patient.fails("env.ca_trusted", "GIT_SSL_CAINFO names", "ostiary env")


# --- the environment and the proxy ---


def test_no_client_environment(patient: Patient) -> None:
    patient.environ = {}
    by_id = patient.fails("env.proxy", "HTTPS_PROXY is not set", "ostiary env", state="warn")
    assert by_id["env.ca_trusted"][0].state == "skip"


def test_a_proxy_of_somebody_else(patient: Patient) -> None:
    key = canary("caller")
    patient.ostiary.canaries.append(key)
    patient.environ["HTTPS_PROXY"] = patient.environ["https_proxy"] = f"http://x:{key}@127.0.0.1:1"
    patient.fails("env.proxy", "leads to 127.0.0.1:1", f"127.0.0.1:{patient.port}")


def test_spellings_that_differ(patient: Patient) -> None:
    patient.environ["https_proxy"] = "http://127.0.0.1:9"
    patient.fails("env.proxy", "HTTPS_PROXY and https_proxy differ", "ostiary env")


def test_a_proxy_url_with_tls(patient: Patient) -> None:
    patient.environ["HTTPS_PROXY"] = patient.environ["https_proxy"] = f"https://127.0.0.1:{patient.port}"
    patient.fails("env.proxy", "speaks plain HTTP", f"http:// before 127.0.0.1:{patient.port}")


def test_a_proxy_variable_that_is_no_url(patient: Patient) -> None:
    patient.environ["HTTPS_PROXY"] = patient.environ["https_proxy"] = "http://127.0.0.1:port"
    patient.fails("env.proxy", "is no proxy URL", "ostiary env")


def test_one_spelling_alone(patient: Patient) -> None:
    del patient.environ["https_proxy"]
    patient.fails("env.proxy", "https_proxy is not set", "set both", state="warn")


def test_an_audit_file_that_is_a_folder(patient: Patient) -> None:
    (patient.folder / "audit.jsonl").mkdir()
    patient.fails("audit.writable", "is a folder", "name a file under audit.sinks")


def test_a_no_proxy_that_bypasses(patient: Patient) -> None:
    patient.environ["NO_PROXY"] = "localhost,.test"
    patient.fails("env.no_proxy", "takes api.test past the proxy", "take .test out of NO_PROXY")


def test_a_proxy_that_does_not_run(patient: Patient) -> None:
    by_id = patient.fails("proxy.reachable", f"nothing listens on 127.0.0.1:{patient.port}", "ostiary run")
    assert by_id["proxy.caller"][0].found == "proxy.reachable failed"


def test_a_port_taken_by_something_else(patient: Patient) -> None:
    import threading

    server = http.server.HTTPServer(("127.0.0.1", patient.port), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        patient.fails("proxy.reachable", f"port {patient.port} is taken", f"127.0.0.1:{patient.port}")
    finally:
        server.shutdown()
        server.server_close()


def test_a_caller_without_key_and_with_a_wrong_one(patient: Patient) -> None:
    key, wrong = "ost_" + canary("caller"), "ost_" + canary("caller")
    patient.ostiary.canaries += [key, wrong]
    digest = hashlib.sha256(key.encode()).hexdigest()
    patient.rewrite(
        policy=POLICY.replace("any: true", f'key_hash: "sha256:{digest}"'),
        listen=f'[{{name: sidecar, bind: "127.0.0.1:{patient.port}"}}]',
    )
    patient.ostiary.run()
    try:
        patient.fails("proxy.caller", "there is no caller key", "OSTIARY_KEY")
        patient.environ["OSTIARY_KEY"] = wrong
        patient.fails("proxy.caller", "does not know the caller key", "key_hash")
        patient.environ["OSTIARY_KEY"] = key
        assert patient.examine()["proxy.caller"][0].state == "ok"
    finally:
        patient.ostiary.stop()


# --- the policy ---


def test_a_route_that_denies_all_it_matches(patient: Patient) -> None:
    text = POLICY.replace("allow: billing,", 'allow: billing, deny: [{workload: billing, paths: ["/**"]}],')
    patient.rewrite(policy=text)
    patient.fails("policy.reachable", "its own deny[0] refuses", "remove api at ")


def test_a_grant_outside_the_route(patient: Patient) -> None:
    text = POLICY.replace(
        "{host: api.test}, allow: billing",
        '{host: api.test, paths: ["/a/**"]}, allow: [{workload: billing, paths: ["/b"]}]',
    )
    patient.rewrite(policy=text)
    patient.fails("policy.reachable", "can never grant a request", "api at ")


def test_an_example_that_fails(patient: Patient) -> None:
    patient.rewrite(policy=POLICY + 'tests: [{as: billing, request: "GET https://b.test/", expect: {route: api}}]\n')
    patient.fails("policy.tests", "came route_denied", "policy.yaml:5:")


def test_a_route_that_another_one_always_overtakes(patient: Patient) -> None:
    more = """  wide: {match: {host: api.test, paths: ["/a/*"]}, allow: billing}
  narrow: {match: {host: api.test, paths: ["/a/b"], methods: [GET]}, allow: billing}
  late: {match: {host: api.test, paths: ["/a/b"]}, allow: {workload: billing, methods: [GET]}}
"""
    patient.rewrite(policy=POLICY + more)
    by_id = patient.fails("policy.reachable", "route late", "ostiary explain")
    assert "narrow always comes before it" in by_id["policy.reachable"][0].found


# --- the secret store ---


def test_a_wrong_key_of_the_secrets_file(patient: Patient) -> None:
    (patient.folder / "secrets.key").write_text("A" * 43 + "=\n")
    by_id = patient.fails("store.reachable", "does not open", "secrets.sealed")
    assert by_id["store.secrets"][0].state == "skip"


def test_a_secret_that_is_not_there(patient: Patient) -> None:
    patient.rewrite(policy=POLICY.replace("secret/egress/api", "secret/egress/other"))
    patient.fails("store.secrets", "secret/egress/other", "write secret/egress/other")


def test_a_field_that_is_not_there(patient: Patient) -> None:
    patient.rewrite(policy=POLICY.replace("field: key", "field: token"))
    patient.fails("store.secrets", "no field 'token' (it has key)", "write field token of secret/egress/api")


# --- the shared state ---


def state(patient: Patient, text: str) -> None:
    patient.rewrite(settings=LIMITS + f"state: {text}\n")


def test_a_healthy_state(patient: Patient, tmp_path: Path) -> None:
    state(patient, '{url: "sqlite:///state.db"}')
    assert "made at the first start" in patient.examine()["state.reachable"][0].found
    assert not (patient.folder / "state.db").exists(), "doctor made the file"
    with valkey_server(tmp_path / "valkey") as server:
        state(patient, f'{{url: "redis://127.0.0.1:{server.port}", deadline: 2s}}')
        assert patient.examine()["state.reachable"][0].state == "ok"


def test_a_state_that_cannot_be_used(patient: Patient, tmp_path: Path) -> None:
    state(patient, '{url: "sqlite:///state.db"}')
    (patient.folder / "state.db").write_bytes(b"garbage " * 600)
    (patient.folder / "state.db").chmod(0o600)
    patient.fails("state.reachable", "damaged or no state file", "state.db whole")
    (patient.folder / "state.db").chmod(0o644)
    patient.fails("state.reachable", "open to others", "mode 0600")
    state(patient, '{url: "sqlite:///nowhere/state.db"}')
    patient.fails("state.reachable", "cannot be made", "nowhere")
    address = f"127.0.0.1:{free_port()}"
    state(patient, f'{{url: "redis://{address}"}}')
    patient.fails("state.reachable", "out of reach", f"running at {address}")
    password, wrong = canary(), canary()
    patient.ostiary.canaries += [password, wrong]
    (tmp_path / "wrong").write_text(wrong)
    with valkey_server(tmp_path / "valkey", "--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru") as server:
        state(patient, f'{{url: "redis://127.0.0.1:{server.port}", deadline: 2s}}')
        patient.fails("state.reachable", "evicts", "noeviction")
    with valkey_server(tmp_path / "locked", password=password) as server:
        state(
            patient, f'{{url: "redis://127.0.0.1:{server.port}", deadline: 2s, password: "file:{tmp_path / "wrong"}"}}'
        )
        patient.fails("state.reachable", "login", "state.password")


def vault(patient: Patient, address: str, token: str) -> None:
    (patient.folder / "vault-token").write_text(token)
    (patient.folder / "vault-token").chmod(0o600)
    patient.rewrite(
        store=f'vault: {{addresses: ["{address}"], auth: {{method: token_file, file: vault-token}}}}', secrets={}
    )


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with openbao_server(tmp_path_factory.mktemp("bao")) as server:
        yield server


def test_a_healthy_vault(patient: Patient, bao: OpenBao) -> None:
    bao.put("egress/api", key=patient.value)
    vault(patient, bao.address, bao.token)
    patient.ostiary.canaries.append(bao.token)
    by_id = patient.examine()
    for check in ("store.reachable", "store.login", "store.secrets", "clock.skew"):
        assert [one.state for one in by_id[check]] == ["ok"], by_id


def test_a_vault_that_is_down(patient: Patient) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    vault(patient, address, "x")
    patient.fails("store.reachable", "no connection", address)


def test_a_token_that_vault_does_not_know(patient: Patient, bao: OpenBao) -> None:
    token = canary("token")
    patient.ostiary.canaries.append(token)
    vault(patient, bao.address, token)
    patient.fails("store.login", "does not accept the token", "vault.auth (TokenFile)")


def test_a_token_that_ends_soon(patient: Patient, bao: OpenBao) -> None:
    bao.put("egress/api", key=patient.value)
    bao.policy("short", 'path "*" { capabilities = ["read"] }')
    vault(patient, bao.address, bao.new_token("short", "default", ttl="60s"))
    patient.fails("store.login", "the token lives", "TTL", state="warn")


def test_a_policy_of_vault_that_denies(patient: Patient, bao: OpenBao) -> None:
    bao.put("egress/api", key=patient.value)
    # It may look itself up and see the mount, and read another secret.
    paths = ("secret/data/other", "auth/token/lookup-self")
    bao.policy("other", "".join(f'path "{path}" {{ capabilities = ["read"] }}\n' for path in paths))
    vault(patient, bao.address, bao.new_token("other", "default"))
    patient.fails("store.secrets", "denies reading", "read on secret/egress/api")


def test_a_field_that_vault_does_not_have(patient: Patient, bao: OpenBao) -> None:
    bao.put("egress/api", other=patient.value)
    vault(patient, bao.address, bao.token)
    patient.fails("store.secrets", "no field 'key' (it has other)", "write field key of secret/egress/api")


def test_a_sealed_vault(patient: Patient, tmp_path: Path) -> None:
    with openbao_server(tmp_path / "sealable", sealable=True) as server:
        vault(patient, server.address, server.token)
        server.seal()
        patient.fails("store.reachable", "Vault is sealed", f"unseal Vault at {server.address}")


def test_a_clock_that_is_wrong(patient: Patient) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.date_time_string = lambda timestamp=None: "Mon, 23 Nov 2020 10:00:00 GMT"  # type: ignore[method-assign]  # how this server is told its time
        send(handler, 200, {"sealed": False, "initialized": True, "data": {"ttl": 3600}})

    with scripted(answer) as (address, _):
        vault(patient, address, "x")
        patient.fails("clock.skew", "ahead of Vault's", "NTP")


def approle(patient: Patient, address: str, role: str, secret_id: str | None) -> None:
    path = patient.folder / "secret-id"
    if secret_id is not None:
        path.write_text(secret_id)
        path.chmod(0o600)
    auth = f"{{method: approle, role_id: {role}, secret_id_file: secret-id}}"
    patient.rewrite(store=f'vault: {{addresses: ["{address}"], auth: {auth}}}', secrets={})


def test_a_secret_id_that_is_used_up(patient: Patient, bao: OpenBao) -> None:
    role, _ = bao.approle("short", "default")
    wrong = canary("secret-id")
    patient.ostiary.canaries.append(wrong)
    approle(patient, bao.address, role, wrong)
    patient.fails("store.login", "invalid", "write -f -field=secret_id auth/approle/role/")


def test_a_secret_id_file_that_is_not_there(patient: Patient, bao: OpenBao) -> None:
    role, _ = bao.approle("short", "default")
    approle(patient, bao.address, role, None)
    patient.fails("store.login", "secret-id", "write -f -field=secret_id auth/approle/role/")


def test_a_secret_id_file_open_to_others(patient: Patient, bao: OpenBao) -> None:
    role, secret_id = bao.approle("open", "default")
    patient.ostiary.canaries.append(secret_id)
    approle(patient, bao.address, role, secret_id)
    (patient.folder / "secret-id").chmod(0o640)
    patient.fails("files.modes", "the secret id file", f"chmod 600 {patient.folder / 'secret-id'}")


def login(patient: Patient, addresses: str, auth: str) -> None:
    patient.rewrite(store=f"vault: {{addresses: [{addresses}], auth: {auth}}}", secrets={})


def test_a_jwt_that_vault_refuses(patient: Patient, bao: OpenBao) -> None:
    issuer, file = Issuer(), patient.folder / "jwt"
    bao.enable("jwt")
    bao.api("POST", "auth/jwt/config", {"jwt_validation_pubkeys": [issuer.public_key]})
    bao.api("POST", "auth/jwt/role/proxy", {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"]})
    file.write_text(token := issuer.token(aud="other", sub="x"))
    patient.ostiary.canaries.append(token)
    login(patient, f'"{bao.address}"', "{method: jwt, role: proxy, jwt_file: jwt}")
    by_id = patient.fails("store.login", "audience", f"the one in {file}")
    assert by_id["store.secrets"][0].state == "skip"


def test_a_wrapped_secret_id_is_left_to_run(patient: Patient, bao: OpenBao) -> None:
    role, _ = bao.approle("waiting", "default")
    envelope = bao.wrapped("auth/approle/role/waiting/secret-id")
    patient.ostiary.canaries.append(envelope)
    (patient.folder / "wrapped").write_text(envelope)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        login(patient, f'"{bao.address}", "{dead}"', f"{{method: approle, role_id: {role}, wrapped_file: wrapped}}")
        patient.fails("store.reachable", f"{dead}: ", "take it out of vault.addresses", state="warn")
        # Looked at twice, and still closed.
        by_id = patient.fails("files.modes", "the file of the wrapped secret id", "chmod 600")
    assert (by_id["store.login"][0].state, by_id["store.secrets"][0].state) == ("ok", "skip")
    assert "waits to be unwrapped" in by_id["store.login"][0].found
    assert bao.api("POST", "sys/wrapping/unwrap", {}, token=envelope)["data"]["secret_id"]
    patient.fails("store.login", "somebody else has opened it", "-wrap-ttl=5m")


def test_a_vault_with_a_ca_that_nobody_knows(patient: Patient, upstream: Callable[..., Upstream]) -> None:
    address = f"https://127.0.0.1:{upstream(names=('127.0.0.1',)).port}"
    vault(patient, address, "x")
    patient.fails("store.reachable", "TLS", f"set vault.ca_file to the CA of {address}")


def test_a_vault_that_speaks_no_tls(patient: Patient, bao: OpenBao) -> None:
    vault(patient, bao.address.replace("http:", "https:"), "x")
    patient.fails("store.reachable", "TLS", "http://")


def test_a_path_that_vault_does_not_have(patient: Patient, bao: OpenBao) -> None:
    vault(patient, bao.address, bao.token)
    patient.ostiary.canaries.append(bao.token)
    patient.rewrite(policy=POLICY.replace("secret/egress/api", "secret/egress/nowhere"))
    patient.fails("store.secrets", "secret/egress/nowhere", "write secret/egress/nowhere")


def test_a_vault_address_that_is_our_own_listener(patient: Patient) -> None:
    vault(patient, f"http://127.0.0.1:{patient.port}", "x")
    patient.fails("store.reachable", "one of our own listeners", "vault.addresses")


# --- upstreams ---


def test_an_upstream_without_a_name(patient: Patient) -> None:
    patient.rewrite(policy=POLICY.replace("api.test", "api.nowhere.invalid"))
    patient.fails("upstream.dns", "api.nowhere.invalid:443", "api.nowhere.invalid spelt right")


def test_an_upstream_inside_the_network(patient: Patient) -> None:
    patient.rewrite(policy=POLICY.replace("api.test", "10.1.2.3"))
    patient.fails("upstream.egress", "10.1.2.3:443", "egress.allow")


def test_an_upstream_that_is_down(patient: Patient) -> None:
    port = free_port()
    patient.rewrite(upstreams={"api.test:443": port})
    patient.fails("upstream.tcp", "ConnectionRefusedError", f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("names", "options", "reason", "mend"),
    [
        (
            ("other.test",),
            {},
            "hostname mismatch",
            "under match.host of route api a name that stands in the certificate",
        ),
        (("api.test",), {"expired": True}, "certificate has expired", "renew the certificate of api.test"),
        (("api.test",), {"self_signed": True}, "self", "put the CA of api.test into "),
    ],
)
def test_an_upstream_with_a_wrong_certificate(
    patient: Patient,
    upstream: Callable[..., Upstream],
    names: tuple[str, ...],
    options: dict[str, bool],
    reason: str,
    mend: str,
) -> None:
    api = upstream(names=names, **options)
    patient.rewrite(upstreams={"api.test:443": api.port})
    patient.fails("upstream.tls", reason, mend)
    assert not api.requests


# --- the documents ---


def test_the_admin_api(patient: Patient) -> None:
    assert patient.examine()["admin.api"][0].found == "no admin token: only the probes answer"
    token = Token("ci", "admin")
    patient.ostiary.canaries.append(token.value)
    patient.rewrite(admin=block(token))
    assert patient.examine()["admin.api"][0].found.startswith("1 admin token for 127.0.0.1:0")
    (patient.folder / "run").mkdir()
    patient.rewrite(admin=block(token, bind="unix:run/admin.sock"))
    assert patient.examine()["admin.api"][0].state == "ok"
    (patient.folder / "run").chmod(0o777)
    patient.fails("admin.api", "anybody may put a socket in the place of", f"chmod o-w {patient.folder / 'run'}")
    (patient.folder / "run").chmod(0o1777)
    assert patient.examine()["admin.api"][0].state == "ok"
    patient.rewrite(admin='{probes: "127.0.0.1:0"}')
    assert patient.examine()["admin.api"][0].found == "the admin API is not opened"


def test_the_troubleshooting_table_names_every_check() -> None:
    import re

    text = (Path(__file__).parents[2] / "docs/guides/troubleshooting.md").read_text()
    told = re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE)
    known = [name for check in CHAIN for name in (*PARTS_OF.get(check.id, ()), check.id)]
    assert told == known


# --- listeners ---


def secured(patient: Patient, certificate: Path, more: str = "") -> None:
    """The listener speaks TLS with a certificate of its own."""
    (patient.folder / "tls.pem").write_bytes(certificate.read_bytes())
    (patient.folder / "tls.pem").chmod(0o600)
    patient.rewrite(
        listen=f'[{{name: sidecar, bind: "127.0.0.1:{patient.port}", workload: billing, tls: {{cert: tls.pem, key: tls.pem}}}}{more}]'
    )
    patient.environ["HTTPS_PROXY"] = patient.environ["https_proxy"] = f"https://127.0.0.1:{patient.port}"


def test_a_listeners_certificate(patient: Patient, pki: Pki) -> None:
    secured(patient, pki.certificate("localhost", "127.0.0.1"))
    healthy = patient.examine()
    assert (healthy["listeners.tls"][0].state, healthy["env.proxy"][0].state) == ("ok", "ok")
    (patient.folder / "tls.pem").chmod(0o644)
    patient.fails("files.modes", "the key of listener sidecar", "chmod 600")
    patient.environ["HTTPS_PROXY"] = patient.environ["https_proxy"] = f"http://127.0.0.1:{patient.port}"
    patient.fails("env.proxy", "speaks TLS", f"https:// before 127.0.0.1:{patient.port}")
    secured(patient, pki.certificate("localhost", expired=True))
    patient.fails("listeners.tls", "expired on", "renew")
    other = ', {name: local, bind: "127.0.0.1:0", mode: reverse, workload: billing, hosts: gw.test, tls: {cert: tls.pem, key: tls.pem}}'
    secured(patient, pki.certificate("localhost", "*.test"), other)
    assert patient.examine()["listeners.tls"][0].state == "ok"
    secured(patient, pki.certificate("localhost"), other)
    patient.fails("listeners.tls", "does not name gw.test", "hosts of local", state="warn")
    (patient.folder / "tls.pem").write_text("nothing")
    patient.fails("settings.load", "listener 'sidecar':", "leaf first")


def test_another_certificate_than_the_listeners_is_given_no_key(patient: Patient, pki: Pki) -> None:
    secured(patient, pki.certificate("localhost", "127.0.0.1"))
    patient.environ["OSTIARY_KEY"] = "ost_key"
    patient.ostiary.run()
    try:
        assert patient.examine()["proxy.reachable"][0].state == "ok"
        assert patient.examine()["proxy.caller"][0].state == "fail"  # it is reached, and the key is not known
        (patient.folder / "tls.pem").write_bytes(pki.certificate("127.0.0.1").read_bytes())
        found = patient.fails("proxy.reachable", "another certificate", "SIGHUP")
        assert found["proxy.caller"][0].state == "skip"
    finally:
        patient.ostiary.stop()
