"""grpcio on both sides: every kind of call, unchanged, both ways."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import SECRET
from tests.clients.test_python import version
from tests.harness.ostiary_process import clean_environment
from tests.harness.pki import Pki
from tests.harness.relay import AT_ONCE, relaying
from tests.harness.report import client as stated
from tests.harness.report import measuring
from tests.harness.two_ways import PROGRAMS, WAYS, Served, with_roots

HOST = "grpc.example.com"
NAME = "grpcio (unary, streams)"
ROUTE = f'  api: {{match: {{host: {HOST}}}, allow: billing, deny: [{{paths: "/greet.Greeter/Hidden"}}], {SECRET}, inject: {{bearer: "{{secret}}"}}}}'
PYTHON = PROGRAMS / "python"
CALLS = 1 + 1 + 1 + 1 + 1 + 1 + 1 + 200 + 2 + 1
"""All that `grpc_calls.py` makes but the one that is refused."""


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
def test_g46_every_kind_of_call(
    served: Callable[..., Served], greeter: Greeter, client_python: Path, tmp_path: Path, way: str
) -> None:
    one = served(None, HOST, routes=ROUTE, port=greeter.port)
    facts = {"language": "Python", "version": version(client_python, "grpcio"), "set": "-"}
    with relaying(one.proxy.address("sidecar")) as relay, measuring(NAME, way, **facts):
        done = one.run(way, str(client_python), str(PYTHON / "grpc_calls.py"), cwd=tmp_path, listener=relay.address)
        assert done.code == 0, done.stderr
        shown = json.loads(done.stdout)
        assert_shown(shown)
        # One connection carried all of it, and its caller was proven once.
        if way == "environment":
            assert relay.connects == AT_ONCE
            stated(NAME, key="at once")
    assert_seen(greeter, one.secret)
    if way == "environment":
        closed = one.proxy.wait_audit("credential.closed", CALLS)
        outcomes = Counter(record["outcome"] for record in closed)
        # Of the call whose deadline passes the server knows the deadline too, and may be the first to end it.
        gone = outcomes.pop("client_gone")
        assert gone in {1, 2}
        assert outcomes == {"ok": CALLS - gone}
        (refused,) = done.events("request.refused")
        assert (refused["code"], refused["path"]) == ("path_denied", "/greet.Greeter/Hidden")


def assert_shown(shown: dict[str, Any]) -> None:
    """What each call came to, in the words of grpcio."""
    assert shown["unary"] == ["hello", "OK", [["x-first", "1"], ["x-last", "2"], ["x-last-bin", "00ff"]]]
    messages, spread_s = shown["server stream"]
    assert messages == 4
    assert spread_s > 0.4, "messages were held back"
    assert shown["both streams"] == [["0", "1", "2", "3", "4"], [], "OK"]
    assert shown["client stream"] == str(3 * (8 << 20))
    assert shown["large"] is True
    assert shown["failed"] == ["NOT_FOUND", "no such thing: ü", [["x-why", "gone"]]]
    assert shown["stopped"] == ["one", "RESOURCE_EXHAUSTED", "enough"]
    assert shown["side by side"] is True
    assert shown["deadline"][0] == "DEADLINE_EXCEEDED"
    assert shown["cancelled"] == "CANCELLED"
    status, details, _ = shown["refused"]
    assert status == "PERMISSION_DENIED"
    assert details.startswith("path_denied: ")
    assert shown["still works"] == "again"


def assert_seen(greeter: Greeter, secret: str) -> None:
    """The server saw the secret on each call and nothing that the caller held; calls that were given up ended there."""
    deadline = time.monotonic() + 5
    while len(greeter.seen("ended")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(greeter.seen("ended")) == 2
    assert {metadata["authorization"] for metadata in greeter.seen()} == {f"Bearer {secret}"}
    assert len(greeter.seen("say")) == 203


def test_where_the_roots_are_read(
    served: Callable[..., Served], greeter: Greeter, client_python: Path, tmp_path: Path
) -> None:
    one = served(None, HOST, routes=ROUTE, port=greeter.port)
    call = "import grpc; print(grpc.secure_channel('grpc.example.com:443', grpc.ssl_channel_credentials()).unary_unary('/greet.Greeter/Say')(b'hi', timeout=10).decode())"
    with measuring(NAME, "roots", "`GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`"):
        for kept, works in ((("SSL_CERT_FILE",), False), (("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",), True)):
            done = one.run("environment", *with_roots(*kept), str(client_python), "-c", call, cwd=tmp_path)
            assert (done.code == 0) == works, done.stderr
            assert len(greeter.seen()) == works


def test_an_upstream_that_is_not_there_is_told(
    served: Callable[..., Served], client_python: Path, tmp_path: Path
) -> None:
    """A refusal of ours reads like any other status of gRPC."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    one = served(None, HOST, routes=ROUTE, port=port)
    call = "import grpc; print(grpc.secure_channel('grpc.example.com:443', grpc.ssl_channel_credentials()).unary_unary('/greet.Greeter/Say')(b'hi', timeout=10).decode())"
    done = one.run("environment", str(client_python), "-c", call, cwd=tmp_path)
    assert "StatusCode.UNAVAILABLE" in done.stderr
    assert 'details = "upstream_unreachable: ' in done.stderr
