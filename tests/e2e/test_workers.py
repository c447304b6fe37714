"""Several workers on one port (`workers: N`): from outside one process, whatever becomes of its parts."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import POLICY
from tests.harness.admin import Token, block, call, kind
from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import ENGINES, Ostiary, command
from tests.harness.scripted_vault import scripted, send
from tests.harness.upstream import Seen, Upstream, Wire

REQUEST = "GET {} HTTP/1.1\r\nHost: api.test\r\n\r\n"
SERVES = re.compile(r'"worker (\d+) serves as process (\d+)"')


class Crew:
    """A process with two workers, and which of them is which."""

    def __init__(self, proxy: Ostiary) -> None:
        self.proxy = proxy
        self.asked = 0

    def records(self, number: int, event: str | None = None) -> list[dict[str, Any]]:
        path = self.proxy.folder / ("audit.jsonl" if number == 0 else f"audit.w{number}.jsonl")
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        records = [json.loads(line) for line in lines]
        return [record for record in records if event is None or record["event"] == event]

    def pids(self, number: int) -> list[int]:
        """Of all that have served in one place, the newest last."""
        return [int(pid) for at, pid in SERVES.findall(self.proxy.stderr.decode()) if int(at) == number]

    def where(self, path: str) -> int:
        """The worker whose records have a path."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for number in (0, 1):
                if any(record.get("path") == path for record in self.records(number, "credential.opened")):
                    return number
            time.sleep(0.01)
        raise AssertionError(f"{path} stands in no audit file")

    @contextlib.contextmanager
    def tunnel_to(self, number: int) -> Iterator[Raw]:
        """A tunnel that this worker serves: the kernel chooses, so it is asked until it chooses right."""
        for _ in range(60):
            with tunnel(self.proxy.address("sidecar"), self.proxy.ca) as raw:
                self.asked += 1
                path = f"/at/{self.asked}"
                assert raw.request(REQUEST.format(path)).status == 200
                if self.where(path) == number:
                    yield raw
                    return
        raise AssertionError(f"worker {number} was never chosen")

    def counted(self) -> float:
        """Requests that ended well, as the metrics have it."""
        text = self.proxy.get("/metrics")[1].decode()
        found = re.search(
            r'^ostiary_requests_total\{outcome="ok",route="api",workload="billing"\} (\S+)$', text, re.MULTILINE
        )
        return float(found[1]) if found else 0.0


def until(condition: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def refused(address: str) -> bool:
    try:
        with Raw(address):
            return False
    except OSError:
        return True


def gone(pid: int) -> bool:
    """Whether it has ended; perhaps nobody has asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def hold() -> Iterator[threading.Event]:
    """Upstreams answer `/held/…` once it is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def crew(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], hold: threading.Event
) -> Iterator[Callable[..., Crew]]:
    def script(seen: Seen, wire: Wire) -> None:
        if seen.target.startswith("/held/"):
            hold.wait(30)
        wire.answer(200, b"x")

    def make(*tokens: Token, settings: str = "") -> Crew:
        proxy = ostiary(
            upstreams={"api.test:443": upstream(script).port},
            secrets={"secret/egress/api": {"key": canary()}},
            listen='[{name: sidecar, bind: "127.0.0.1:0", workload: billing}, {name: local, bind: "unix:proxy.sock", workload: billing}]',
            admin=block(*tokens) if tokens else '{bind: "127.0.0.1:0"}',
            settings=f"workers: 2\n{settings}",
            patience_s=60,
        )
        proxy.canaries += [token.value for token in tokens]
        return Crew(proxy)

    yield make


def test_f5_a_worker_is_killed_while_the_other_serves(crew: Callable[..., Crew], hold: threading.Event) -> None:
    hands = Token("hands", "operator")
    both = crew(hands)
    proxy = both.proxy
    assert proxy.process is not None
    assert proxy.ready["workers"] == 2
    assert proxy.ready["pid"] == proxy.process.pid
    assert proxy.get("/readyz")[0] == 200
    until(lambda: both.pids(0) and both.pids(1), "the log has come")
    (first,), (second,) = both.pids(0), both.pids(1)
    assert get("unix:" + str(proxy.folder / "proxy.sock"), proxy.ca, "/by/file").status == 200

    if proxy.engine == ENGINES[-1]:  # no engine is built by then: once is enough
        # A second one on the same files does not start, and tells why.
        settings = (proxy.folder / "ostiary.yaml").read_text()
        (proxy.folder / "second.yaml").write_text(settings.replace("unix:proxy.sock", "unix:second.sock"))
        other = command("run", "--config", "second.yaml", cwd=proxy.folder)
        assert (other.returncode, other.stdout) == (74, b"")
        assert b"written by another process" in other.stderr

    with both.tunnel_to(0) as living, both.tunnel_to(1) as falling:
        before = both.asked + 1
        until(lambda: both.counted() == before, "every request of both workers is counted once")
        falling.send(REQUEST.format("/held/1").encode())
        assert both.where("/held/1") == 1
        os.kill(second, signal.SIGKILL)
        # Nobody else notices: neither who is served by the other, nor who comes now, whomever the kernel chooses.
        while len(both.pids(1)) < 2:
            assert living.request(REQUEST.format("/living")).status == 200
            assert get(proxy.address("sidecar"), proxy.ca, "/new").status == 200
            before += 2
            assert proxy.get("/readyz") == (200, proxy.get("/readyz")[1])
        assert falling.closed()
        assert gone(second)

    # What was open in it is closed by the one that took its place, and the other's file is left alone.
    opened = next(record for record in both.records(1, "credential.opened") if record["path"] == "/held/1")
    until(lambda: len(both.records(1, "credential.closed")) == len(both.records(1, "credential.opened")), "closed")
    closed = next(record for record in both.records(1, "credential.closed") if record["id"] == opened["id"])
    assert (closed["outcome"], closed["secret_version"]) == ("interrupted", "1")
    assert not [record for record in both.records(0, "credential.closed") if record["outcome"] == "interrupted"]
    # Sums never go down: what the fallen one had told is still in them.
    until(lambda: both.counted() == before, "nothing that was told is lost, and nothing counted twice")
    text = proxy.get("/metrics")[1].decode()
    assert 'ostiary_worker_restarts_total{reason="SIGKILL"} 1.0' in text
    assert 'ostiary_workers{state="serving"} 2.0' in text
    assert both.pids(0) == [first]

    # Both take a reload, or none does.
    with both.tunnel_to(0) as one, both.tunnel_to(1) as two:
        (proxy.folder / "policy.yaml").write_text(POLICY.replace("allow: billing", "alow: billing"))
        rejected = call(proxy, "POST", "/reload", token=hands)
        assert kind(rejected) == (422, "policy_rejected")
        assert any("unknown key 'alow'" in fault for fault in rejected.json()["faults"])
        for raw in (one, two):
            assert raw.request(REQUEST.format("/still")).status == 200
        until(lambda: both.records(0, "policy.rejected") + both.records(1, "policy.rejected"), "recorded")
        assert len(both.records(0, "policy.rejected") + both.records(1, "policy.rejected")) == 1
        (proxy.folder / "policy.yaml").write_text(POLICY.replace("{host: api.test}", "{host: api.test, paths: /b}"))
        answer = call(proxy, "POST", "/reload", token=hands)
        version = answer.json()["version"]
        assert (answer.status, answer.json()["changed"]) == (200, True)
        # By the time of the answer every worker has it.
        for number in (0, 1):
            assert both.records(number, "policy.loaded")[-1]["version"] == version
            assert both.records(number, "policy.loaded")[-1]["by"] == "hands"
        for raw in (one, two):
            assert raw.request(REQUEST.format("/still")).code == "path_denied"
            assert raw.request(REQUEST.format("/b")).status == 200
    # A secret that is read anew is read by both before the answer, and what is known of it is known of both.
    proxy.set_secret("secret/egress/api", "key", canary())
    answer = call(proxy, "POST", "/secrets/secret%2Fegress%2Fapi/refresh", token=hands)
    assert (answer.status, answer.json()["version"]) == (200, "2")
    assert [both.records(number, "secret.refreshed")[-1]["secret_version"] for number in (0, 1)] == ["2", "2"]
    (known,) = call(proxy, "GET", "/secrets", token=hands).json()["secrets"]
    assert (known["secret"], known["version"]) == ("secret/egress/api", "2")
    assert call(proxy, "POST", "/secrets/secret%2Fother/refresh", token=hands).status == 404
    # Whoever replaces a fallen one begins with the policy in force, not with what the file says by now.
    (proxy.folder / "policy.yaml").write_text("routes: [")
    os.kill(both.pids(0)[-1], signal.SIGTERM)
    until(lambda: len(both.pids(0)) == 2, "the drained one is replaced")
    assert both.records(0, "policy.loaded")[-1]["version"] == version
    assert 'ostiary_worker_restarts_total{reason="exit 0"} 1.0' in proxy.get("/metrics")[1].decode()
    # A call that was refused is recorded by one of them.
    assert kind(call(proxy, "GET", "/routes", token=Token("x", "admin"))) == (401, "token_invalid")
    until(lambda: both.records(0, "request.refused") + both.records(1, "request.refused"), "recorded")

    assert get("unix:" + str(proxy.folder / "proxy.sock"), proxy.ca, "/b").status == 200
    pids = [both.pids(0)[-1], both.pids(1)[-1]]
    assert proxy.stop() == 0
    assert all(gone(pid) for pid in pids)
    assert not (proxy.folder / "proxy.sock").exists()


def test_f4_all_of_them_drain(crew: Callable[..., Crew], hold: threading.Event) -> None:
    both = crew()
    proxy = both.proxy
    assert proxy.process is not None
    with both.tunnel_to(0) as one, both.tunnel_to(1) as two, Raw(proxy.address("sidecar")) as idle:
        one.send(REQUEST.format("/held/0").encode())
        two.send(REQUEST.format("/held/1").encode())
        assert (both.where("/held/0"), both.where("/held/1")) == (0, 1)
        proxy.process.send_signal(signal.SIGTERM)
        assert idle.closed()
        until(lambda: refused(proxy.address("sidecar")), "nobody accepts any more")
        status, body = proxy.get("/readyz")
        assert (status, "draining" in json.loads(body)["problems"]) == (503, True)
        hold.set()
        assert one.answer().status == two.answer().status == 200
    assert proxy.process.wait(20) == 0
    for number in (0, 1):
        assert both.records(number, "credential.closed")[-1]["outcome"] == "ok"


def test_f5_the_supervisor_is_killed(crew: Callable[..., Crew], hold: threading.Event) -> None:
    both = crew(settings="limits: {drain_timeout: 300ms}\n")
    proxy = both.proxy
    until(lambda: both.pids(0) and both.pids(1), "the log has come")
    pids = [both.pids(0)[-1], both.pids(1)[-1]]
    address = proxy.address("sidecar")
    with both.tunnel_to(0) as one:
        one.send(REQUEST.format("/held/0").encode())
        assert both.where("/held/0") == 0
        proxy.stop(signal.SIGKILL)
        # They end by themselves, and in order.
        until(lambda: all(gone(pid) for pid in pids), "both have ended")
        assert one.closed()
    assert both.records(0, "credential.closed")[-1]["outcome"] == "client_gone"
    assert refused(address)
    # All are killed at once. One process alone comes after them, and closes what is open in the file of the one it lacks.
    proxy.run()
    until(lambda: len(both.pids(0)) == len(both.pids(1)) == 2, "the log has come")
    pids = [both.pids(0)[-1], both.pids(1)[-1]]
    with both.tunnel_to(1) as two:
        two.send(REQUEST.format("/held/1").encode())
        assert both.where("/held/1") == 1
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        proxy.stop(signal.SIGKILL)
        until(lambda: all(gone(pid) for pid in pids), "both have ended")
    settings = proxy.folder / "ostiary.yaml"
    settings.write_text(settings.read_text().replace("workers: 2\n", ""))
    proxy.run()
    closed = both.records(1, "credential.closed")[-1]
    assert (closed["outcome"], closed["path"]) == ("interrupted", "/held/1")
    assert "workers" not in proxy.ready
    assert get(proxy.address("sidecar"), proxy.ca).status == 200


def test_v5_one_login_for_all_and_it_ends_with_them(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path: Path
) -> None:
    """A secret id that is good for one login serves all workers, and one that replaces a fallen one; a token that was
    revoked at the server costs one login, whoever meets it first; the supervisor revokes its own at the end."""
    with openbao_server(tmp_path / "bao", sealable=True) as bao:
        log = bao.keep_audit()

        def answered(path: str) -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]
            return [one for one in lines if one["type"] == "response" and one["request"].get("path") == path]

        bao.put("egress/api", key=canary())
        bao.policy("reads", 'path "secret/data/egress/api" { capabilities = ["read"] }')
        role, secret_id = bao.approle("crew", "reads", secret_id_num_uses=1)
        api = upstream(names=("api.test",))
        auth = f"{{method: approle, role_id: {role}, secret_id_file: secret-id}}"
        proxy = ostiary(
            POLICY.replace("field: key,", "field: key, kv: 2,"),
            start=False,
            store=f'vault: {{addresses: ["{bao.address}"], auth: {auth}}}',
            settings="workers: 2\n",
            upstreams={"api.test:443": api.port},
        )
        file = proxy.folder / "secret-id"
        file.write_text(f"{secret_id}\n")
        proxy.canaries.append(secret_id)
        proxy.run()
        both = Crew(proxy)
        for number in (0, 1):
            with both.tunnel_to(number):
                pass
        assert len(answered("auth/approle/login")) == 1

        pid = both.pids(0)[-1]
        os.kill(pid, signal.SIGKILL)
        until(lambda: len(both.pids(0)) == 2, "it is replaced")
        with both.tunnel_to(0):
            pass
        assert len(answered("auth/approle/login")) == 1

        # Both workers meet the dead token; the one that asks late is given what the other has caused.
        file.write_text(bao.api("POST", "auth/approle/role/crew/secret-id", {})["data"]["secret_id"] + "\n")
        tokens = [one["accessor"] for one in found_accessors(bao, "crew")]
        assert len(tokens) == 1
        bao.api("POST", "auth/token/revoke-accessor", {"accessor": tokens[0]})
        for number in (0, 1):
            with both.tunnel_to(number):
                pass
        assert len(answered("auth/approle/login")) == 2
        assert len(found_accessors(bao, "crew")) == 1

        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(30) == 0
        assert found_accessors(bao, "crew") == []
        assert len(answered("auth/approle/login")) == 2


def found_accessors(bao: OpenBao, role: str) -> list[dict[str, Any]]:
    """The living tokens of a role's logins."""
    found = []
    for accessor in bao.api("GET", "auth/token/accessors?list=true")["data"]["keys"]:
        with contextlib.suppress(urllib.error.HTTPError):
            data = bao.api("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
            if (data.get("meta") or {}).get("role_name") == role:
                found.append(data)
    return found


def test_v2_the_token_of_all_is_seen_nowhere(ostiary: Callable[..., Ostiary]) -> None:
    """A Vault that sends a login elsewhere is not followed; the token is in no environment, argument or log, outlives a
    worker, and is given back by the supervisor."""
    tokens: list[str] = []
    revoked: list[str] = []
    strangers: list[Any] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if handler.path.endswith("/login"):
            if not strangers:
                strangers.append(handler.path)
                send(handler, 307, b"", Location=f"{elsewhere}{handler.path}")
                return
            tokens.append(canary())
            send(handler, 200, {"auth": {"client_token": tokens[-1], "lease_duration": 3600, "renewable": True}})
        elif handler.path.endswith("/revoke-self"):
            revoked.append(handler.headers["X-Vault-Token"])
            send(handler, 200, {})
        else:
            send(handler, 404, {"errors": []})

    with scripted(lambda handler: send(handler, 200, {})) as (elsewhere, gone_there), scripted(answer) as (address, _):
        auth = "{method: approle, role_id: role, secret_id_file: secret-id}"
        proxy = ostiary(
            start=False, store=f'vault: {{addresses: ["{address}"], auth: {auth}}}', settings="workers: 2\n"
        )
        (proxy.folder / "secret-id").write_text(f"{canary()}\n")
        proxy.run()
        until(lambda: len(tokens) == 1, "the supervisor has logged in")
        both = Crew(proxy)
        until(lambda: both.pids(0) and both.pids(1), "the log has come")
        os.kill(both.pids(0)[-1], signal.SIGTERM)
        until(lambda: len(both.pids(0)) == 2, "it is replaced")
        assert (len(tokens), revoked) == (1, [])
        assert proxy.process is not None
        for pid in (proxy.process.pid, both.pids(0)[-1], both.pids(1)[-1]):
            told = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
            assert told
            assert tokens[0].encode() not in told
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(30) == 0
        proxy.canaries += tokens
        assert revoked == tokens
        assert not gone_there


def test_a_port_that_somebody_has(ostiary: Callable[..., Ostiary]) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        proxy = ostiary(
            start=False,
            listen=f'[{{name: sidecar, bind: "127.0.0.1:{taken.getsockname()[1]}", workload: billing}}]',
            settings="workers: 2\n",
        )
        done = command("run", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert (done.returncode, done.stdout) == (71, b"")
    assert b"listener sidecar cannot bind 127.0.0.1" in done.stderr
