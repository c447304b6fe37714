"""A proxy that asks for a key, in front of one scripted upstream."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.ostiary_process import Ostiary, clean_environment, command
from tests.harness.two_ways import CACHE, NODE, NPM, PROGRAMS, ROOT, Served
from tests.harness.upstream import Script, Upstream

WORKLOAD = 'workloads:\n  billing: {proofs: [{key_hash: "sha256:HASH"}, {any: true}]}\n'
SECRET = "secret: {path: secret/egress/api, field: key}"


@pytest.fixture(scope="session")
def caller() -> tuple[str, str]:
    """A caller key and its hash."""
    minted = json.loads(command("key", "mint", "--workload", "billing", cwd=ROOT).stdout)
    return minted["key"], minted["hash"]


@pytest.fixture
def served(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], caller: tuple[str, str]
) -> Callable[..., Served]:
    """Makes a proxy whose routes are `routes`, or one route for all hosts with `inject`.

    The listener `sidecar` asks for the key; `open` knows the workload by itself. `port` is where a real server listens
    instead of the scripted one.
    """

    def make(
        script: Script | None,
        *hosts: str,
        inject: str = '{bearer: "{secret}"}',
        routes: str | None = None,
        alpn: tuple[str, ...] = ("http/1.1",),
        port: int | None = None,
    ) -> Served:
        secret = canary()
        api = upstream(script, names=hosts, alpn=alpn)
        block = (
            routes or f"  api: {{match: {{host: [{', '.join(hosts)}]}}, allow: billing, {SECRET}, inject: {inject}}}"
        )
        proxy = ostiary(
            f"{WORKLOAD.replace('sha256:HASH', caller[1])}routes:\n{block}\n",
            listen='[{name: sidecar, bind: "127.0.0.1:0"}, {name: open, bind: "127.0.0.1:0", workload: billing}]',
            upstreams={f"{host}:443": port or api.port for host in hosts},
            secrets={"secret/egress/api": {"key": secret}},
        )
        proxy.canaries.append(caller[0])
        return Served(proxy, api, secret, caller[0])

    return make


@pytest.fixture(scope="session")
def packages() -> Path:
    """The programs with the locked packages beside them, installed once for a lock file."""
    lock = (PROGRAMS / "package-lock.json").read_bytes()
    folder = CACHE / f"npm-{hashlib.sha256(lock).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for path in (*PROGRAMS.glob("*.mjs"), *PROGRAMS.glob("package*.json"), PROGRAMS / ".npmrc"):
            shutil.copy(path, folder)
        if not (folder / ".complete").exists():
            done = subprocess.run(
                # The user's own environment: this is the way to a registry, not the client under test.
                [NODE, NPM, "ci", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=20000"],
                cwd=folder, capture_output=True, text=True, timeout=90, check=False,
            )  # fmt: skip
            if done.returncode:
                pytest.skip(f"the npm packages cannot be installed here: {done.stderr[-300:]}")
            (folder / ".complete").touch()
    return folder


@pytest.fixture(scope="session")
def client_python() -> Path:
    """A Python with the locked clients beside it, in an environment of its own, made once for a lock file."""
    lock = ROOT / "requirements" / "clients.txt"
    folder = CACHE / f"python-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    CACHE.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            for step in (
                [sys.executable, "-m", "venv", str(folder)],
                [str(folder / "bin" / "python"), "-m", "pip", "--no-input", "-q", "install", "--require-hashes", "-r", str(lock)],
            ):  # fmt: skip
                # The user's own environment: this is the way to an index, not the client under test.
                done = subprocess.run(step, capture_output=True, text=True, timeout=110, check=False)
                assert done.returncode == 0, f"the locked clients cannot be installed: {done.stderr[-300:]}"
            (folder / ".complete").touch()
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built once; the compiler's own cache lasts between runs."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go on this machine")
    built = tmp_path_factory.mktemp("go") / "client"
    done = subprocess.run(
        [go, "build", "-o", str(built), "."],
        cwd=PROGRAMS / "go", capture_output=True, text=True, timeout=110, check=False,
        env=clean_environment(GOCACHE=str(CACHE / "go"), GOFLAGS="-mod=mod", GOTOOLCHAIN="local"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return built
