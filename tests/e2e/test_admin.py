"""The admin API of a real process: over loopback and over a Unix socket, with and without tokens, and `ostiary reload`."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import POLICY
from tests.harness.admin import Token, block, call, kind
from tests.harness.canaries import canary
from tests.harness.client import tunnel
from tests.harness.ostiary_process import Ostiary, clean_environment, command
from tests.harness.upstream import Upstream

TOLD = ("/openapi.json", "/routes")


def start(
    ostiary: Callable[..., Ostiary], *tokens: Token, bind: str = "127.0.0.1:0", more: str = "", **given: object
) -> Ostiary:
    proxy = ostiary(admin=block(*tokens, bind=bind, more=more), **given)
    proxy.canaries += [token.value for token in tokens]
    return proxy


def test_without_tokens_only_the_probes_answer(ostiary: Callable[..., Ostiary]) -> None:
    proxy = ostiary()
    for path in ("/healthz", "/readyz", "/metrics"):
        assert call(proxy, "GET", path).status == 200
    for method, path in (("GET", "/routes"), ("GET", "/openapi.json"), ("POST", "/reload"), ("GET", "/nothing")):
        for token in (None, Token("x", "admin")):
            answer = call(proxy, method, path, token=token)
            assert kind(answer) == (403, "no_tokens")
            assert "ostiary key mint --admin NAME" in answer.json()["detail"]
    assert len(proxy.audit("policy.loaded")) == 1


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0", "localhost:0", "unix:admin.sock"])
def test_the_api_on_every_kind_of_address(ostiary: Callable[..., Ostiary], bind: str) -> None:
    eyes, hands = Token("eyes", "viewer"), Token("hands", "operator")
    proxy = start(ostiary, eyes, hands, bind=bind)
    assert call(proxy, "GET", "/healthz").json() == {"status": "alive"}
    ready = call(proxy, "GET", "/readyz").json()
    assert (ready["status"], ready["problems"]) == ("ready", [])
    answer = call(proxy, "GET", "/routes", token=eyes)
    assert answer.json() == {
        "version": ready["policy"],
        "routes": [{"name": "api", "hosts": ["api.test"], "port": 443, "mode": "enforce"}],
    }
    # Names and places of secrets are not among what is told.
    assert b"egress" not in answer.body
    assert kind(call(proxy, "GET", "/routes")) == (401, "token_required")
    assert kind(call(proxy, "GET", "/routes", token=Token("x", "admin"))) == (401, "token_invalid")
    assert kind(call(proxy, "POST", "/reload", token=eyes)) == (403, "role_denied")
    assert call(proxy, "POST", "/reload", token=hands).json() == {
        "version": ready["policy"],
        "routes": 1,
        "changed": False,
    }
    assert [record.get("by") for record in proxy.audit("policy.loaded")] == [None, "hands"]
    refused = {record["code"]: record for record in proxy.wait_audit("request.refused", 3)}
    assert set(refused) == {"token_required", "token_invalid", "role_denied"}
    source = f"unix:uid={os.getuid()}" if bind.startswith("unix") else "::1" if "::1" in bind else "127.0.0.1"
    assert {(one["listener"], one["source"], one["outcome"]) for one in refused.values()} == {
        ("admin", source, "refused")
    }
    assert (refused["role_denied"]["by"], refused["role_denied"]["path"]) == ("eyes", "/reload")
    assert "by" not in refused["token_invalid"]


@pytest.mark.parametrize(("more", "mode"), [("", 0o600), (", socket_mode: 0660", 0o660)])
def test_the_socket_is_private_and_goes_with_the_process(ostiary: Callable[..., Ostiary], more: str, mode: int) -> None:
    proxy = start(ostiary, Token("ci", "admin"), bind="unix:admin.sock", more=more)
    path = proxy.folder / "admin.sock"
    assert proxy.ready["admin"] == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert call(proxy, "GET", "/healthz", host="anything.at.all").status == 200
    proxy.stop()
    assert not path.exists()


def test_an_admin_bind_that_others_can_reach_is_a_fault(ostiary: Callable[..., Ostiary]) -> None:
    proxy = ostiary(admin='{bind: "0.0.0.0:0"}', start=False)
    done = command("run", cwd=proxy.folder)
    assert done.returncode == 78
    assert b"the admin API listens on loopback or a Unix socket alone" in done.stderr


def test_the_probes_listener_serves_nothing_else(ostiary: Callable[..., Ostiary]) -> None:
    token = Token("ci", "admin")
    proxy = start(ostiary, token, more=', probes: "0.0.0.0:0"')
    proxy.ready["probes"] = proxy.ready["probes"].replace("0.0.0.0", "127.0.0.1")
    for path in ("/healthz", "/readyz", "/metrics"):
        assert call(proxy, "GET", path, where="probes", host="pod-7.cluster.test:9090").status == 200
    for method, path in (("GET", "/routes"), ("GET", "/openapi.json"), ("POST", "/reload"), ("GET", "/")):
        assert kind(call(proxy, method, path, where="probes", token=token)) == (404, "not_found")


def test_p1_p3_reload_swaps_and_keeps_the_last_good(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api, token = upstream(), Token("deploy", "operator")
    proxy = start(
        ostiary, token, upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}}
    )
    before = call(proxy, "GET", "/readyz").json()["policy"]
    (proxy.folder / "policy.yaml").write_text(POLICY.replace("allow: billing", "alow: billing") + "  x: {}\n")
    answer = call(proxy, "POST", "/reload", token=token)
    assert kind(answer) == (422, "policy_rejected")
    shown = answer.json()
    assert shown["policy"] == before
    assert len(shown["faults"]) >= 2
    assert any(
        "policy.yaml:7:5: unknown key 'alow'" in one and "did you mean 'allow'" in one for one in shown["faults"]
    )
    (rejected,) = proxy.audit("policy.rejected")
    assert (rejected["by"], rejected["version"]) == ("deploy", before)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
        (proxy.folder / "policy.yaml").write_text(
            POLICY.replace("match: {host: api.test}", "match: {host: api.test, paths: /b}")
        )
        found = call(proxy, "POST", "/reload", token=token).json()
        assert found["changed"] is True
        assert found["version"] not in {before, ""}
        # When the answer is there, the new policy is in force.
        assert raw.request("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "path_denied"
    assert call(proxy, "GET", "/routes", token=token).json()["version"] == found["version"]
    text = call(proxy, "GET", "/metrics").body.decode()
    assert 'ostiary_policy_reloads_total{result="rejected"} 1.0' in text
    assert f'ostiary_policy_info{{version="{found["version"]}"}} 1.0' in text


def test_p3_signals_and_calls_together(ostiary: Callable[..., Ostiary]) -> None:
    """Each reload is whole: every record of it is followed by no half of another, and requests go on."""
    token = Token("ci", "admin")
    proxy = start(ostiary, token)
    assert proxy.process is not None
    statuses: list[int] = []

    def put(text: str) -> None:
        """At once: half a file is a policy too."""
        (proxy.folder / "next.yaml").write_text(text)
        (proxy.folder / "next.yaml").rename(proxy.folder / "policy.yaml")

    def reload() -> None:
        for _ in range(10):
            statuses.append(call(proxy, "POST", "/reload", token=token).status)  # noqa: PERF401 - one after the other

    threads = [threading.Thread(target=reload) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        proxy.process.send_signal(signal.SIGHUP)
        put(POLICY if int(time.monotonic() * 50) % 2 else "routes: [")
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert len(statuses) == 30
    assert set(statuses) <= {200, 422}
    put(POLICY)
    assert call(proxy, "POST", "/reload", token=token).status == 200
    told = proxy.audit("policy.loaded") + proxy.audit("policy.rejected")
    assert sum(record.get("by") == "ci" for record in told) == 31
    assert any(record.get("by") == "SIGHUP" for record in told)
    assert len({record["version"] for record in told}) == 1


def test_ostiary_reload(ostiary: Callable[..., Ostiary]) -> None:
    token = Token("ci", "operator")
    proxy = start(ostiary, token, bind="unix:admin.sock")

    def run(*arguments: str, code: int, **environ: str) -> str:
        done = command("reload", *arguments, cwd=proxy.folder, environ=environ)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert token.value.encode() not in done.stdout + done.stderr
        return (done.stderr if code else done.stdout).decode()

    mine = {"OSTIARY_ADMIN_TOKEN": token.value}
    assert run(code=0, **mine).endswith(" with 1 routes is in force, unchanged\n")
    (proxy.folder / "policy.yaml").write_text(POLICY + "# another\n")
    kept = proxy.folder / "caller-key"
    kept.write_text(token.value + "\n")
    assert run("--token-file", "caller-key", code=0).endswith(" with 1 routes is in force\n")
    (proxy.folder / "policy.yaml").write_text("routes: [\n")
    told = run(code=78, **mine)
    assert "policy.yaml:" in told
    assert "stays in force" in told
    assert "no admin token" in run(code=78)
    assert "not known" in run(code=1, OSTIARY_ADMIN_TOKEN="ost_wrong")
    assert "cannot be reached" in run("--admin", "unix:nothing.sock", code=1, **mine)
    assert "no admin API" in run("--admin", proxy.address("sidecar"), code=1, **mine)
    assert "holds no token" in run("--token-file", "nothing", code=78)
    assert [record.get("by") for record in proxy.audit("policy.loaded")] == [None, "ci", "ci"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_over_both(ostiary: Callable[..., Ostiary], tmp_path: Path) -> None:
    token = Token("ci", "viewer")
    (tmp_path / "header").write_text(f"Authorization: Bearer {token.value}\n")
    unix, tcp = (start(ostiary, token, bind=bind) for bind in ("unix:admin.sock", "127.0.0.1:0"))
    for proxy, given in (
        (unix, ("--unix-socket", str(unix.folder / "admin.sock"), "http://localhost/routes")),
        (tcp, (f"http://{tcp.ready['admin']}/routes",)),
    ):
        done = subprocess.run(
            ["curl", "-sS", "-H", f"@{tmp_path}/header", *given],
            env=clean_environment(),
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert b'"name": "api"' in done.stdout, done.stderr
        assert proxy.audit("request.refused") == []
