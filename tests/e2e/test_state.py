"""The shared state in a running process: made, reported, and never in the way of what does not need it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.client import get
from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.ports import free_port
from tests.harness.upstream import Upstream
from tests.harness.valkey import Valkey, valkey_server


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Valkey]:
    """A server with a password."""
    with valkey_server(tmp_path / "valkey", password=canary()) as server:
        yield server


def problems(proxy: Ostiary) -> list[str]:
    found: list[str] = json.loads(proxy.get("/readyz")[1])["problems"]
    return found


def until(what: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_file_is_made_for_its_owner_alone_and_serves(ostiary: Callable[..., Ostiary]) -> None:
    proxy = ostiary(settings='state: {url: "sqlite:///state.db"}\n')
    assert problems(proxy) == []
    assert stat.S_IMODE((proxy.folder / "state.db").stat().st_mode) == 0o600
    text = proxy.get("/metrics")[1].decode()
    assert "ostiary_state_up 1.0" in text
    assert 'ostiary_state_calls_total{operation="probe",result="ok"}' in text


@pytest.mark.parametrize(
    ("content", "mode", "told"), [(b"garbage " * 600, 0o600, "move it away"), (b"", 0o644, "chmod 600")]
)
def test_a_file_that_cannot_be_used_keeps_the_process_from_starting(
    ostiary: Callable[..., Ostiary], content: bytes, mode: int, told: str
) -> None:
    proxy = ostiary(start=False, settings='state: {url: "sqlite:///state.db"}\n')
    path = proxy.folder / "state.db"
    path.write_bytes(content)
    os.chmod(path, mode)
    done = subprocess.run(
        [sys.executable, "-m", "ostiary", "run", "--config", "ostiary.yaml"],
        cwd=proxy.folder,
        env=clean_environment(PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 78
    assert b"state: " in done.stderr
    assert told in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_l1_requests_that_need_no_state_go_on_without_it(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], guarded: Valkey
) -> None:
    api, key = upstream(), canary()
    assert guarded.password is not None
    guarded.kill()
    proxy = ostiary(
        start=False,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": key}},
        settings=f'state: {{url: "redis://127.0.0.1:{guarded.port}/1", password: "file:login"}}\n',
        canaries=[guarded.password],
    )
    # Outside the folder that is searched for canaries.
    login = proxy.folder.parent / "login"
    login.write_text(guarded.password + "\n")
    text = (proxy.folder / "ostiary.yaml").read_text().replace("file:login", f"file:{login}")
    (proxy.folder / "ostiary.yaml").write_text(text)
    proxy.run()
    # It never was there: not ready, told why, and what needs no state is served all the same.
    (told,) = problems(proxy)
    assert told.startswith("state store: ")
    assert "out of reach" in told
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert api.requests[0].get("authorization") == f"Bearer {key}"
    proxy.wait_audit("credential.closed")
    guarded.start()
    until(lambda: problems(proxy) == [])
    # An outage later on is one that may pass: ready, and told by the metric.
    guarded.hang()
    until(lambda: "ostiary_state_up 0.0" in proxy.get("/readyz")[1].decode() + proxy.get("/metrics")[1].decode(), 15)
    assert problems(proxy) == []
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    guarded.go_on()
    until(lambda: "ostiary_state_up 1.0" in proxy.get("/readyz")[1].decode() + proxy.get("/metrics")[1].decode(), 15)


def test_a_state_that_is_our_own_listener(ostiary: Callable[..., Ostiary]) -> None:
    port = free_port()
    proxy = ostiary(
        start=False,
        listen=f'[{{name: sidecar, bind: "127.0.0.1:{port}", workload: billing}}]',
        settings=f'state: {{url: "redis://127.0.0.1:{port}"}}\n',
    )
    from tests.harness.ostiary_process import command

    done = command("run", "--config", "ostiary.yaml", cwd=proxy.folder)
    assert done.returncode == 78
    assert b"the state address" in done.stderr
