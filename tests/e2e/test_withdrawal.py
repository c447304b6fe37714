"""What is open ends within a second or two of its grant being withdrawn (G59), and nothing else does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.conftest import POLICY
from tests.e2e.test_websocket import HANDSHAKE, switching
from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire

WITHOUT = POLICY.replace("allow: billing", "allow: other").replace(
    "workloads:", "workloads:\n  other: {proofs: [{peer: {uid: 64999}}]}"
)
NARROWER = POLICY.replace("{host: api.test}", '{host: api.test, paths: ["/other/**"]}')
SAME = POLICY + "  more: {match: {host: more.test}, allow: billing}\n"


def start(ostiary: Callable[..., Ostiary], api: Upstream) -> Ostiary:
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})


def ticking(seen: Seen, wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(200):
        wire.chunk(b"data: x\n\n")
        time.sleep(0.05)


def ended_after(raw: Raw) -> float:
    began = time.monotonic()
    while raw._more():
        assert time.monotonic() - began < 8, "it goes on"
    return time.monotonic() - began


@pytest.mark.parametrize(("policy", "code"), [(WITHOUT, "route_denied"), (NARROWER, "path_denied")])
def test_g59_an_event_stream(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], policy: str, code: str
) -> None:
    proxy = start(ostiary, upstream(ticking))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET /events HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
        assert raw.read_until(b"data: x\n\n")
        proxy.reload(policy)
        assert ended_after(raw) < 3
        assert not raw.buffer.endswith(b"0\r\n\r\n")
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["status"], closed["code"]) == ("refused", 200, code)


def test_g59_a_websocket(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    gone = threading.Event()

    def watch(wire: Wire) -> None:
        while wire.sock.recv(65536):
            pass
        gone.set()

    proxy = start(ostiary, upstream(switching(then=watch)))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send((HANDSHAKE + "\r\n").encode())
        assert raw.head().status == 101
        proxy.reload(WITHOUT)
        assert ended_after(raw) < 3
        assert gone.wait(3), "the upstream's side stayed open"
    (closed,) = proxy.wait_audit("credential.closed")
    assert (closed["outcome"], closed["code"]) == ("refused", "route_denied")


def test_g59_an_unopened_tunnel(ostiary: Callable[..., Ostiary]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        proxy = ostiary(
            "default: tunnel\n" + POLICY,
            upstreams={"free.test:443": port},
            secrets={"secret/egress/api": {"key": canary()}},
        )
        with Raw(proxy.address("sidecar")) as raw:
            assert raw.connect("free.test:443").status == 200
            proxy.reload(POLICY)
            assert ended_after(raw) < 3
    (closed,) = proxy.wait_audit("tunnel.closed")
    assert (closed["outcome"], closed["code"]) == ("refused", "route_denied")


def test_what_is_still_granted_goes_on(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    proxy = start(ostiary, upstream(ticking))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET /events HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
        proxy.reload(SAME)
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            assert raw.read_until(b"data: x\n\n")
        assert not proxy.audit("credential.closed")


def test_connections_of_one_workload(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = ostiary(
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
        settings="limits: {connections_per_workload: 2}\n",
    )
    with tunnel(proxy.address("sidecar"), proxy.ca) as one, tunnel(proxy.address("sidecar"), proxy.ca):
        with Raw(proxy.address("sidecar")) as raw:
            answer = raw.connect("api.test:443")
            assert (answer.status, answer.code) == (503, "overloaded")
            assert answer.get("Retry-After")
        assert one.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
    deadline = time.monotonic() + 5
    while True:
        with Raw(proxy.address("sidecar")) as raw:
            if raw.connect("api.test:443").status == 200:
                break
        assert time.monotonic() < deadline, "the places were not given back"
        time.sleep(0.05)
