"""grpcio on both sides: every kind of call, unchanged, both ways."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import SECRET
from tests.clients.test_python import version
from tests.harness.canaries import canary
from tests.harness.ostiary_process import Ostiary, clean_environment
from tests.harness.pki import Pki
from tests.harness.relay import AT_ONCE, relaying
from tests.harness.report import client as stated
from tests.harness.report import measuring
from tests.harness.two_ways import PROGRAMS, WAYS, Served, with_roots
from tests.harness.upstream import Upstream

HOST = "grpc.example.com"
NAME = "grpcio (unary, streams)"
ROUTE = f'  api: {{match: {{host: {HOST}}}, allow: billing, deny: [{{paths: "/greet.Greeter/Hidden"}}], {SECRET}, inject: {{bearer: "{{secret}}"}}}}'
PYTHON = PROGRAMS / "python"


@dataclass
class Greeter:
    """A running gRPC server, and where it notes what it sees."""

    port: int
    log: Path

    def seen(self, event: str | None = None) -> list[dict[str, str]]:
        """Metadata of the calls that reached it."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [dict(line["metadata"]) for line in lines if event in {None, line["event"]}]


@pytest.fixture
def greeter(client_python: Path, pki: Pki, tmp_path: Path) -> Iterator[Greeter]:
    log = tmp_path / "greeter.jsonl"
    process = subprocess.Popen(
        [str(client_python), str(PYTHON / "grpc_server.py"), str(pki.certificate(HOST)), str(log)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Greeter(int(process.stdout.readline()), log)
    finally:
        process.stdin.close()
        process.wait(20)


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_call(
    served: Callable[..., Served], greeter: Greeter, client_python: Path, tmp_path: Path, way: str
) -> None:
    one = served(None, HOST, routes=ROUTE, port=greeter.port)
    facts = {"language": "Python", "version": version(client_python, "grpcio"), "set": "-"}
    with relaying(one.proxy.address("sidecar")) as relay, measuring(NAME, way, **facts):
        done = one.run(way, str(client_python), str(PYTHON / "grpc_calls.py"), cwd=tmp_path, listener=relay.address)
        assert done.code == 0, done.stderr
        shown = json.loads(done.stdout)
        print(json.dumps(shown, indent=1), done.stderr)
        if way == "environment":
            assert relay.connects == AT_ONCE
            stated(NAME, key="at once")
