"""Starting, being ready, reloading, ending: what operators and their scripts rely on."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.conftest import POLICY
from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.upstream import Seen, Upstream, Wire


@pytest.fixture(autouse=True)
def from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every start here loads its modules itself."""
    monkeypatch.setenv("OSTIARY_TEST_DIRECT", "1")


def run(proxy: Ostiary) -> tuple[int, str]:
    done = command("run", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_the_ready_line_tells_real_ports(ostiary: Callable[..., Ostiary]) -> None:
    proxy = ostiary(settings="\nvars: {env: test}\n")
    assert set(proxy.ready) == {"event", "listeners", "admin", "pid"}
    assert proxy.ready["listeners"][0]["name"] == "sidecar"
    assert proxy.port > 0
    assert proxy.process is not None
    assert proxy.ready["pid"] == proxy.process.pid


def test_p2_a_broken_start_lists_every_fault(ostiary: Callable[..., Ostiary]) -> None:
    policy = (
        POLICY.replace("allow: billing", "allow: biling").replace("inject:", "injekt:")
        + "  other: {match: {host: x.test}}\n"
    )
    proxy = ostiary(policy, start=False, settings="limits: {drain_timeout: soon}\nnonsense: 1\n")
    code, text = run(proxy)
    assert code == 78
    lines = text.splitlines()
    assert any("ostiary.yaml:10:25: 'drain_timeout' of limits is no duration: 'soon'" in line for line in lines)
    assert any("unknown key 'nonsense'" in line for line in lines)
    assert any("policy.yaml:7:12: workload 'biling' is not defined (did you mean 'billing'?)" in line for line in lines)
    assert any("unknown key 'injekt' in route api (did you mean 'inject'?)" in line for line in lines)
    assert any("route other needs 'allow'" in line for line in lines)


def test_a_listener_that_cannot_bind(ostiary: Callable[..., Ostiary]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        proxy = ostiary(
            start=False, listen=f'[{{name: sidecar, bind: "127.0.0.1:{taken.getsockname()[1]}", workload: billing}}]'
        )
        code, text = run(proxy)
    assert code == 71
    assert "listener sidecar cannot bind 127.0.0.1" in text
    assert "in use" in text


@pytest.mark.parametrize("path", ["missing/audit.jsonl", "ca"])
def test_an_audit_sink_that_cannot_be_opened(ostiary: Callable[..., Ostiary], path: str) -> None:
    code, text = run(ostiary(start=False, audit_block=f"audit: {{sinks: [{{file: {path}}}]}}"))
    assert code == 74
    assert "cannot be opened" in text


def test_two_processes_never_share_an_audit_file(ostiary: Callable[..., Ostiary]) -> None:
    proxy = ostiary()
    code, text = run(proxy)
    assert code == 74
    assert "another process" in text


def test_f4_a_hang_up_during_the_start_is_a_reload(ostiary: Callable[..., Ostiary]) -> None:
    """Whoever rotates logs must not end a process that has just been started."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        proxy = ostiary(
            start=False,
            store=f'vault: {{addresses: ["http://127.0.0.1:{silent.getsockname()[1]}"], auth: {{method: token_file, file: token}}}}',
        )
        (proxy.folder / "token").write_text("hvs.nobody\n")
        began = threading.Thread(target=proxy.run)
        began.start()
        with silent.accept()[0]:  # it logs in, and is not served yet
            assert proxy.process is not None
            proxy.process.send_signal(signal.SIGHUP)
    began.join(30)
    assert proxy.ready
    assert [record.get("by") for record in proxy.wait_audit("policy.loaded", 2)] == [None, "SIGHUP"]


def test_a_vault_address_that_is_our_own_listener(ostiary: Callable[..., Ostiary]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f'vault: {{addresses: ["http://127.0.0.1:{port}"], auth: {{method: token_file, file: token}}}}'
    proxy = ostiary(
        start=False, store=store, listen=f'[{{name: sidecar, bind: "127.0.0.1:{port}", workload: billing}}]'
    )
    code, text = run(proxy)
    assert code == 78
    assert "is one of our own listeners" in text


def test_a_wrong_secrets_key(ostiary: Callable[..., Ostiary]) -> None:
    proxy = ostiary(start=False)
    (proxy.folder / "secrets.key").write_text("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
    code, text = run(proxy)
    assert code == 78
    assert "wrong key" in text


def test_probes(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    assert proxy.get("/healthz")[0] == 200
    status, body = proxy.get("/readyz")
    assert (status, json.loads(body)["status"]) == (200, "ready")
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    proxy.wait_audit("credential.closed")
    text = proxy.get("/metrics")[1].decode()
    assert 'ostiary_requests_total{outcome="ok",route="api",workload="billing"} 1.0' in text
    assert 'ostiary_audit_records_total{event="credential.opened"} 1.0' in text
    assert 'ostiary_secret_version{secret="secret/egress/api"} 1.0' in text
    assert proxy.get("/nothing")[0] == 403  # without tokens nobody learns what else there is


def test_p1_p3_g26_reload_swaps_and_keeps_the_last_good(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    assert proxy.process is not None
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
        (proxy.folder / "policy.yaml").write_text("routes: [")
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_audit("policy.rejected")
        assert raw.request("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
        (proxy.folder / "policy.yaml").write_text(
            POLICY.replace("match: {host: api.test}", "match: {host: api.test, paths: /b}")
        )
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_audit("policy.loaded", 2)
        # G26: the next request of the open tunnel obeys the new one.
        assert raw.request("GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "path_denied"
        assert raw.request("GET /b HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200


def test_f4_sigterm_lets_a_request_finish(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(seen: Seen, wire: Wire) -> None:
        began.set()
        assert go.wait(10)
        wire.answer(200, b"late")

    proxy = ostiary(upstreams={"api.test:443": upstream(slow).port}, secrets={"secret/egress/api": {"key": canary()}})
    assert proxy.process is not None
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw, Raw(proxy.address("sidecar")) as idle:
        raw.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert began.wait(10)
        proxy.process.send_signal(signal.SIGTERM)
        assert idle.closed()
        time.sleep(0.2)
        assert proxy.process.poll() is None
        with pytest.raises(OSError):
            Raw(proxy.address("sidecar"))
        go.set()
        assert raw.answer().body == b"late"
    assert proxy.process.wait(10) == 0
    assert proxy.audit("credential.closed")[0]["outcome"] == "ok"


def test_f4_sigterm_does_not_wait_for_ever(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def never(seen: Seen, wire: Wire) -> None:
        time.sleep(20)

    proxy = ostiary(
        upstreams={"api.test:443": upstream(never).port},
        secrets={"secret/egress/api": {"key": canary()}},
        settings="limits: {drain_timeout: 500ms}\n",
    )
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        proxy.wait_audit("credential.opened")
        began = time.monotonic()
        assert proxy.stop() == 0
        assert time.monotonic() - began < 5
    assert proxy.audit("credential.closed")[0]["outcome"] == "client_gone"
