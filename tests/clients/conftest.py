"""A proxy that asks for a key, in front of one scripted upstream."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.installed import node_with, python_with
from tests.harness.ostiary_process import ENGINES, Ostiary, clean_environment, command
from tests.harness.two_ways import CACHE, PROGRAMS, ROOT, Served
from tests.harness.upstream import Script, Upstream

WORKLOAD = 'workloads:\n  billing: {proofs: [{key_hash: "sha256:HASH"}, {any: true}]}\n'
SECRET = "secret: {path: secret/egress/api, field: key}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a client makes of a proxy is its own affair: one engine tells every day, the other in `make test-slow`."""
    here = Path(__file__).parent
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.is_relative_to(here) and given.get("engine") not in {None, ENGINES[-1]}:
            item.add_marker(pytest.mark.slow)


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
    beside = [*PROGRAMS.glob("*.mjs"), PROGRAMS / "package.json", PROGRAMS / ".npmrc"]
    return node_with("npm", PROGRAMS / "package-lock.json", beside)


@pytest.fixture(scope="session")
def client_python() -> Path:
    """A Python with the locked clients beside it, in an environment of its own, made once for a lock file."""
    return python_with("python", ROOT / "requirements" / "clients.txt")


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
