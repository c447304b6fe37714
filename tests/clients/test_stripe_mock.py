"""stripe-python against stripe-mock, the server that it is tested with by its makers. Building that costs half a minute once."""

from __future__ import annotations

import fcntl
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.front import Front, fronting
from tests.harness.ostiary_process import clean_environment
from tests.harness.pki import Pki
from tests.harness.ports import free_port
from tests.harness.two_ways import CACHE, PLACEHOLDER, PROGRAMS, WAYS, Served

MODULE = "github.com/stripe/stripe-mock@v0.203.0"
GO = shutil.which("go")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(GO is None, reason="no Go on this machine")]


@pytest.fixture(scope="session")
def stripe_mock() -> Path:
    """The binary, built once a version."""
    folder = CACHE / MODULE.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        # Two workers want it at once, and a file that is there may not be whole.
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            # The user's own environment: this is the way to the module proxy.
            build = {"GOBIN": str(folder), "GOCACHE": str(CACHE / "go"), "GOTOOLCHAIN": "local"}
            done = subprocess.run(
                ["env", *(f"{name}={value}" for name, value in build.items()), str(GO), "install", MODULE],
                capture_output=True, text=True, timeout=400, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            (folder / ".complete").touch()
    return folder / "stripe-mock"


@pytest.fixture
def front(stripe_mock: Path, pki: Pki) -> Iterator[Front]:
    port = free_port()
    held = (stripe_mock.parent / ".lock").open("w")
    # One at a time: two that start together have been seen to fail, one of them not listening.
    fcntl.flock(held, fcntl.LOCK_EX)
    process = subprocess.Popen(
        [str(stripe_mock), "-http-addr", f"127.0.0.1:{port}"], stdout=subprocess.DEVNULL, env=clean_environment()
    )
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with fronting(pki.context("api.stripe.com"), port) as made:
            yield made
    finally:
        process.kill()
        process.wait()
        held.close()


@pytest.mark.timeout(500)
@pytest.mark.parametrize("way", WAYS)
def test_create_and_list(served: Callable[..., Served], front: Front, client_python: Path, way: str) -> None:
    one = served(None, "api.stripe.com", inject='{bearer: "sk_test_{secret}"}', port=front.port)
    done = one.run(way, str(client_python), str(PROGRAMS / "python" / "customers.py"))
    assert done.code == 0, done.stderr
    assert done.stdout.split() == ["customer", "customer"]
    sent = bytes(front.raw)
    assert sent.count(f"Authorization: Bearer sk_test_{one.secret}\r\n".encode()) == 2
    assert b"Idempotency-Key: order-117\r\n" in sent
    assert PLACEHOLDER.replace("-", "_").encode() not in sent
    assert len(done.events("credential.opened")) == 2
