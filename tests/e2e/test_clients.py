"""`ostiary exec`: its private proxy, its audit, what it passes on and what it says. The clients themselves: tests/clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.ostiary_process import Ostiary, clean_environment, command
from tests.harness.ports import free_port
from tests.harness.upstream import Script, Upstream

ROOT = Path(__file__).parents[2]
HOSTS = ("api.test",)
POLICY = """
workloads:
  billing: {proofs: [{key_hash: "sha256:HASH"}]}
routes:
  api: {match: {host: api.test}, allow: billing, secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""


class Set:
    """An upstream, settings for it, and the two ways in."""

    def __init__(self, proxy: Ostiary, api: Upstream, secret: str, caller: str) -> None:
        self.proxy, self.api, self.secret, self.caller = proxy, api, secret, caller

    def exec(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        """Through a private proxy."""
        environment = clean_environment(PYTHONPATH=str(ROOT), **environ)
        return subprocess.run(
            [sys.executable, "-m", "ostiary", "exec", "--config", "ostiary.yaml", "--", *arguments],
            cwd=self.proxy.folder, capture_output=True, timeout=60, check=False, env=environment,
        )  # fmt: skip


@pytest.fixture
def served(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> Callable[[Script | None], Set]:
    def make(script: Script | None = None) -> Set:
        minted = json.loads(command("key", "mint", "--workload", "billing", cwd=ROOT).stdout)
        api, secret = upstream(script, names=HOSTS), canary()
        proxy = ostiary(
            POLICY.replace("sha256:HASH", minted["hash"]),
            listen='[{name: sidecar, bind: "127.0.0.1:0"}]',
            upstreams={f"{host}:443": api.port for host in HOSTS},
            secrets={"secret/egress/api": {"key": secret}},
        )
        proxy.canaries.append(minted["key"])
        return Set(proxy, api, secret, minted["key"])

    return make


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


CURL = ("curl", "-sS", "https://api.test/v1")


def test_g41_exec_leads_to_no_listener_of_the_running_one(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """Its own listener is another; those of the settings are refused all the same."""
    ports = [free_port(), free_port()]
    proxy = ostiary(
        f"""
workloads: {{billing: {{proofs: {{any: true}}}}}}
routes:
  one: {{match: {{host: [127.0.0.1, localhost], port: {ports[0]}}}, allow: billing}}
  two: {{match: {{host: [127.0.0.1, localhost], port: {ports[1]}}}, allow: billing}}
""",
        listen=f'[{{name: sidecar, bind: "127.0.0.1:{ports[0]}", workload: billing}}]',
        admin=f'{{bind: "localhost:{ports[1]}"}}',
        start=False,
    )
    urls = [f"https://{host}:{port}/" for host in ("127.0.0.1", "localhost") for port in ports]
    done = Set(proxy, upstream(), "", "").exec("curl", "-sS", "--noproxy", "", *urls)
    assert done.stdout.count(b'"egress_denied"') == len(urls), done


def test_exec_passes_status_and_signals(served: Callable[..., Set]) -> None:
    one = served()
    assert one.exec(*python("import sys; sys.exit(37)")).returncode == 37
    assert one.exec(*python("import os; os.kill(os.getpid(), 9)")).returncode == 137
    missing = one.exec("no-such-program")
    assert (missing.returncode, missing.stderr) == (127, b"ostiary: no-such-program: not found\n")
    child = subprocess.Popen(
        [sys.executable, "-m", "ostiary", "exec", "--", *python("import signal,sys,time; signal.signal(15, lambda *_: sys.exit(5)); print('up', flush=True); time.sleep(30)")],
        cwd=one.proxy.folder, stdout=subprocess.PIPE, env=clean_environment(PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 5


def test_exec_keeps_its_own_audit_and_ends_its_proxy(served: Callable[..., Set]) -> None:
    one = served()
    assert one.exec(*CURL).returncode == 0
    (path,) = one.proxy.folder.glob("audit.exec-*.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events if event["event"].startswith("credential.")] == [
        "credential.opened",
        "credential.closed",
    ]
    assert {event.get("listener") for event in events if "workload" in event} == {"private"}
    pid = int(path.stem.rpartition("-")[2])
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_killed_exec_leaves_no_proxy(served: Callable[..., Set]) -> None:
    """Nobody told it to end: it sees that whoever could is gone. The program itself lives on, with no way out."""
    one = served()
    killed = subprocess.Popen(
        [sys.executable, "-m", "ostiary", "exec", "--", *python("import os,sys; print(os.getpid(), flush=True); sys.stdin.read()")],
        cwd=one.proxy.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment(PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert killed.stdout is not None
    assert killed.stdin is not None
    program = int(killed.stdout.readline())
    (path,) = one.proxy.folder.glob("audit.exec-*.jsonl")
    pid = int(path.stem.rpartition("-")[2])
    assert os.path.exists(f"/proc/{pid}")
    killed.kill()
    killed.wait()
    deadline = time.monotonic() + 30
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)
    assert _runs(program)
    killed.stdin.close()
    killed.stdout.close()


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended: one without a parent may wait for somebody to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_g54_the_private_proxy_serves_nobody_else(served: Callable[..., Set]) -> None:
    """Another local user knows the port (it is in the process list), but not the key."""
    one = served()
    probe = "import os,socket,urllib.parse as u; p=u.urlsplit(os.environ['HTTPS_PROXY']); s=socket.create_connection((p.hostname,p.port)); s.sendall(b'CONNECT api.test:443 HTTP/1.1\\r\\nHost: api.test:443\\r\\n\\r\\n'); print(s.recv(100).split()[1].decode())"
    done = one.exec(*python(probe))
    assert done.stdout.strip() == b"407", done.stderr
    assert one.api.connections == 0


def test_exec_keeps_its_own_tokens_to_itself(served: Callable[..., Set]) -> None:
    one = served()
    own = {"OSTIARY_KEY": "ost_cnry-key", "OSTIARY_ADMIN_TOKEN": "ost_cnry-token"}
    done = one.exec(*python("import os; print(sorted(os.environ.items()))"), **own)
    assert done.returncode == 0, done.stderr
    assert b"HTTPS_PROXY" in done.stdout
    assert b"ost_cnry" not in done.stdout


def test_no_proxy_that_bypasses_a_route_is_told(served: Callable[..., Set]) -> None:
    one = served()
    done = one.exec(*python("import os; print(os.environ['NO_PROXY'])"), NO_PROXY="internal.test,.test")
    assert b"NO_PROXY entry '.test' takes api.test past the proxy" in done.stderr
    assert done.stdout.strip() == b"internal.test,.test,localhost,127.0.0.1,::1"


def test_real_keys_in_the_environment_are_named_not_shown(served: Callable[..., Set]) -> None:
    one = served()
    real = canary("openai")
    done = one.exec(*python("import os; print(os.environ['ANTHROPIC_API_KEY'])"), OPENAI_API_KEY=real)
    assert b"OPENAI_API_KEY" in done.stderr
    assert real.encode() not in done.stderr + done.stdout
    assert done.stdout.strip() == b"sk-ant-ostiary-placeholder"
