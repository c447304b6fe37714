"""The guides for sidecars and for a migration, word by word; what cannot be run is held against what can."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.canaries import canary, scan
from tests.harness.guides import Reader, blocks
from tests.harness.ostiary_process import command
from tests.harness.pki import Pki
from tests.harness.ports import free_port
from tests.harness.token_server import TokenServer, new_key
from tests.harness.upstream import Seen, Upstream, Wire
from tests.harness.vendors import openai


def slow_report(seen: Seen, wire: Wire) -> None:
    if seen.target == "/v1/report":
        time.sleep(2.5)
    wire.answer(200, b"hello")


def test_sidecar(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    api, key = upstream(slow_report, names=("api.example.com",)), canary()
    probes = free_port()
    one = reader(
        upstreams={"api.example.com:443": api.port},
        secrets=(key,),
        typed=key + "\n",
        replaced={
            ":8080": f":{free_port()}",
            "0.0.0.0:9090": f"127.0.0.1:{probes}",
            ":9090": f":{probes}",
            "uid: 1001": f"uid: {os.getuid()}",
        },
    )
    one.follow(blocks("sidecar"))
    assert [seen.target for seen in api.requests] == ["/v1/things", "/v1/report", "/v1/things"]
    assert {seen.get("Authorization") for seen in api.requests} == {f"Bearer {key}"}
    on_loopback = one.servers[0]
    assert on_loopback.process.wait(10) == 0
    assert on_loopback.output.count(b'"event":"credential.closed"') == 2
    # The service's user reads what it trusts, and the CA's folder stays closed to it.
    assert (one.folder / "certs").stat().st_mode & 0o005 == 0o005
    assert {path.stat().st_mode & 0o777 for path in (one.folder / "certs").iterdir()} == {0o644}
    assert (one.folder / "ca").stat().st_mode & 0o077 == 0
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in (one.folder / "certs").iterdir())


def test_migration(reader: Callable[..., Reader], upstream: Callable[..., Upstream], pki: Pki) -> None:
    hosts = ("api.example.com", "mail.example.com", "unknown.example.com")
    api = upstream(names=hosts)
    one = reader(
        upstreams={f"{host}:443": api.port for host in hosts},
        secrets=("old-key", "new-key"),
        replaced={":8080": f":{free_port()}", ":8081": f":{free_port()}"},
    )
    # What passes unopened shows the upstream's own certificate: this reader's system trusts its CA.
    one.environment = {**one.environment, "SSL_CERT_FILE": str(pki.ca_file)}
    one.follow(blocks("migration"))
    sent = [(seen.get("Host"), seen.target, seen.get("Authorization")) for seen in api.requests]
    old, new = "Bearer old-key", "Bearer new-key"
    things, report, mail = (
        ("api.example.com", "/v1/things"),
        ("api.example.com", "/v1/report"),
        ("mail.example.com", "/send"),
    )
    assert sent == [
        (*things, old), (*mail, None), (*report, old),   # watched
        (*things, new), (*report, new),                  # taken over, though the callers send the old one
        (*things, new), (*report, new),                  # the callers send none
        (*mail, None), (*things, new),                   # closed; one that sends a key is refused
    ]  # fmt: skip


# --- what no test runs here ---


@pytest.fixture
def manifest() -> dict[str, Any]:
    (text,) = (block.text for block in blocks("sidecar") if block.mark == "manifest")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_the_manifest_gives_the_service_what_env_prints(manifest: dict[str, Any], tmp_path: Path) -> None:
    settings, policy = (
        next(block.text for block in blocks("sidecar") if block.mark == mark) for mark in ("settings", "policy")
    )
    (tmp_path / "ostiary.yaml").write_text(settings)
    (tmp_path / "policy.yaml").write_text(policy)
    done = command("env", "--shell", "k8s", "--certs", "certs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode().replace(str((tmp_path / "certs").resolve()), "/certs")
    told = {one["name"]: one["value"] for one in yaml.safe_load(printed)["env"]}
    (app,) = manifest["spec"]["containers"]
    assert {one["name"]: one["value"] for one in app["env"]}.items() <= told.items()


def test_the_manifest_agrees_with_the_settings_beside_it(manifest: dict[str, Any]) -> None:
    settings = yaml.safe_load([block.text for block in blocks("sidecar") if block.mark == "settings"][-1])
    (ostiary,), (app,) = manifest["spec"]["initContainers"], manifest["spec"]["containers"]
    for name, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert ostiary[name]["httpGet"] == {"path": path, "port": int(settings["admin"]["probes"].rpartition(":")[2])}
    mounted = {one["mountPath"]: one for one in ostiary["volumeMounts"]}
    assert {one["name"] for one in ostiary["volumeMounts"]} == {one["name"] for one in manifest["spec"]["volumes"]}
    for path in (settings["ca"]["dir"], settings["policies"][0], settings["vault"]["auth"]["file"]):
        assert any(path.startswith(f"{mount}/") for mount in mounted), path
    assert "readOnly" not in mounted["/var/lib/ostiary"]
    # The service sees the certificates and nothing else, as another user.
    assert [one["mountPath"] for one in app["volumeMounts"]] == ["/certs"]
    assert app["securityContext"]["runAsUser"] != ostiary["securityContext"]["runAsUser"]
    grace_s = manifest["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > int(settings["limits"]["drain_timeout"].rstrip("s"))


def test_the_unit(tmp_path: Path) -> None:
    (text,) = (block.text for block in blocks("sidecar") if block.mark == "ostiary.service")
    commands = re.findall(r"/opt/ostiary/\.venv/bin/ostiary (\w+)", text)
    assert commands == ["check", "env", "run"]
    first = next(block.text for block in blocks("sidecar") if block.mark == "settings")
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(stop_s) > int(re.findall(r"drain_timeout: (\d+)s", first)[0])
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed: the rest of the unit is not checked")
    unit = tmp_path / "ostiary.service"
    unit.write_text(text.replace("/opt/ostiary/.venv/bin/ostiary", "/bin/true").replace("User=ostiary", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    told = [line for line in done.stderr.splitlines() if "ostiary.service" in line]
    assert not told, told


def test_base_url(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    api, key = upstream(openai, names=("api.openai.com",)), canary()
    one = reader(
        upstreams={"api.openai.com:443": api.port},
        secrets=(key,),
        written=("tls.key",),
        typed=key + "\n",
        replaced={":9001": f":{free_port()}", ":8443": f":{free_port()}"},
    )
    one.follow(blocks("base-url"))
    assert [seen.target for seen in api.requests] == ["/v1/chat/completions"] * 4
    assert {seen.get("Authorization") for seen in api.requests} == {f"Bearer {key}"}
    assert {seen.get("Host") for seen in api.requests} == {"api.openai.com"}
    listeners = [
        record["listener"]
        for record in map(json.loads, (one.folder / "audit.jsonl").read_text().splitlines())
        if record["event"] == "credential.opened"
    ]
    assert listeners == ["openai", "openai", "socket", "gateway"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_webhooks(reader: Callable[..., Reader]) -> None:
    one = reader(
        upstreams={},
        secrets=("whsec_the-first-one", "whsec_the-second-one", "chosen-at-github"),
        replaced={":8080": f":{free_port()}", "9000": str(free_port())},
    )
    one.follow(blocks("webhooks"))
    lines = bytes(one.servers[0].output).decode().splitlines()
    assert lines[1:] == [f'/stripe {{"id": "evt_{number}"}} None' for number in (1, 4, 5)]


def test_client_certificates(reader: Callable[..., Reader], upstream: Callable[..., Upstream], pki: Pki) -> None:
    def who(seen: Seen, wire: Wire) -> None:
        wire.answer(200, f"you are {seen.client}\n".encode())

    hosts = ("api.example.com", "partner.example.com")
    context = pki.asking(*hosts)
    api = Upstream(context, who)
    try:
        one = reader(
            upstreams={f"{host}:443": api.port for host in hosts},
            secrets=("ost_of-this-guide-alone",),
            replaced={":8080": f":{free_port()}", ":8200": f":{free_port()}"},
        )
        steps = blocks("client-certificates")
        handed = next(place for place, block in enumerate(steps) if "egress-ca.pem" in block.text) + 1
        one.follow(steps[:handed])
        context.load_verify_locations(str(one.folder / "egress-ca.pem"))
        one.follow(steps[handed:])
    finally:
        api.stop()
    assert [(seen.target, seen.client) for seen in api.requests] == [
        ("/accounts", "billing"), ("/orders", "billing"), ("/accounts", "billing"),
    ]  # fmt: skip
    first, _, again = api.requests
    assert first.connection != again.connection, "a connection is its certificate's"
    assert not [
        path
        for path in one.folder.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes() and path.name != "ca.key"
    ]


def test_derived_tokens(reader: Callable[..., Reader], upstream: Callable[..., Upstream]) -> None:
    """The first secret is typed; a token endpoint and GitHub that verify hand out tokens, and take no other."""
    key, pem = new_key()
    first = canary()
    login = TokenServer(secrets={"orders-client": first})
    app = TokenServer(keys={"12345": (key.public_key(), "12345")})

    def github(seen: Seen, wire: Wire) -> None:
        (app if seen.target.startswith("/app/") else app.api)(seen, wire)

    def api(seen: Seen, wire: Wire) -> None:
        sent = seen.get("X-Api-Token") or (seen.get("Authorization") or "").removeprefix("Bearer ")
        wire.answer(*((200, sent.encode()) if login.good(sent) else (401, b"no")))

    orders, hub = upstream(api, names=("api.example.com",)), upstream(github, names=("api.github.com",))
    endpoint = upstream(login, names=("login.example.com",))
    one = reader(
        upstreams={
            "api.example.com:443": orders.port,
            "api.github.com:443": hub.port,
            "login.example.com:443": endpoint.port,
        },
        secrets=(first, *pem.splitlines()[1:-1]),
        typed=first + "\n",
        replaced={":8080": f":{free_port()}"},
    )
    (one.folder / "app.private-key.pem").write_text(pem)
    one.follow(blocks("derived-tokens"))
    assert (len(login.given), len(app.given)) == (1, 1)
    assert [seen.target for seen in orders.requests] == ["/v1/orders/7", "/v1/reports/7"]
    assert orders.requests[1].get("X-Api-Token") == login.given[0]
    assert len(login.refused) == 1
    assert app.forms == [{"repositories": ["one"], "permissions": {"contents": "read"}}]
    assert not scan(one.outputs(), (*login.given, *app.given))
