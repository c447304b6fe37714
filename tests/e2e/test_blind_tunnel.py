"""`default: tunnel` and `default: observe`: what no route names passes unopened, recorded; what a route names never
does.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.harness.client import Raw, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Upstream

POLICY = """
default: {action}
workloads:
  billing: {{proofs: [{{any: true}}]}}
  other: {{proofs: [{{peer: {{uid: 64999}}}}]}}
routes:
  api: {{match: {{host: api.test}}, allow: billing}}
  theirs: {{match: {{host: theirs.test}}, allow: other}}
"""


def start(ostiary: Callable[..., Ostiary], port: int, action: str = "tunnel", **given: str) -> Ostiary:
    names = ("api.test:443", "theirs.test:443", "free.test:443", "free.test:22")
    return ostiary(POLICY.format(action=action), upstreams=dict.fromkeys(names, port), **given)


@pytest.mark.parametrize("action", ["tunnel", "observe"])
def test_what_no_route_names_passes_unopened(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki, action: str
) -> None:
    api = upstream(names=("free.test",))
    proxy = start(ostiary, api.port, action)
    with Raw(proxy.address("sidecar")) as raw:
        assert raw.connect("free.test:443").status == 200
        # The upstream's own certificate, not one of ours: nobody has opened it.
        raw.tls(pki.ca_file, "free.test")
        answer = raw.request("GET /secret/path HTTP/1.1\r\nHost: free.test\r\nAuthorization: Bearer mine\r\n\r\n")
        assert answer.body == b"hello"
        (opened,) = proxy.wait_audit("tunnel.opened")
        assert not proxy.audit("tunnel.closed")
    (closed,) = proxy.wait_audit("tunnel.closed")
    for record in (opened, closed):
        assert (record["workload"], record["host"], record["port"]) == ("billing", "free.test", 443)
        assert record["rule"] == f"default: {action}"
        assert record["request_id"] == opened["request_id"]
    assert closed["outcome"] == "ok"
    assert closed["bytes_in"] > 300
    assert closed["bytes_out"] > 300
    assert closed["ms"] > 0
    assert api.requests[0].get("authorization") == "Bearer mine"
    assert b"secret/path" not in (proxy.folder / "audit.jsonl").read_bytes()


def test_any_bytes_and_half_closed_ends(ostiary: Callable[..., Ostiary]) -> None:
    """A peer that speaks first, and one that answers only after the other's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start(ostiary, listener.getsockname()[1])
        with Raw(proxy.address("sidecar")) as raw:
            assert raw.connect("free.test:22").status == 200
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"SSH-2.0-x\r\n")
                assert raw.read_exactly(11) == b"SSH-2.0-x\r\n"
                raw.send(b"\x00" * 100_000)
                raw.sock.shutdown(socket.SHUT_WR)
                got = 0
                while data := peer.recv(65536):
                    got += len(data)
                assert got == 100_000
                peer.sendall(b"bye")
            assert raw.read_exactly(3) == b"bye"
            assert raw.closed()
    (closed,) = proxy.wait_audit("tunnel.closed")
    assert (closed["bytes_in"], closed["bytes_out"], closed["outcome"]) == (100_000, 14, "ok")


@pytest.mark.parametrize("ends", [False, True])
def test_a_peer_that_speaks_the_moment_it_is_reached(ostiary: Callable[..., Ostiary], *, ends: bool) -> None:
    """Its words may be there before anybody here is ready for them, and so may its end."""
    banner = b"SSH-2.0-x\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def speaks() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    peer.sendall(banner)
                    if ends:
                        peer.close()
                    else:
                        kept.append(peer)

        threading.Thread(target=speaks, daemon=True).start()
        proxy = start(ostiary, listener.getsockname()[1])
        for _ in range(100):
            with Raw(proxy.address("sidecar")) as raw:
                assert raw.connect("free.test:22").status == 200
                assert raw.read_exactly(len(banner)) == banner
                if ends:
                    assert raw.closed()
        listener.shutdown(socket.SHUT_RDWR)
    for peer in kept:
        peer.close()
    assert {one["bytes_out"] for one in proxy.wait_audit("tunnel.closed", 100)} == {len(banner)}


def test_what_a_route_names_is_inspected_or_refused(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki
) -> None:
    api = upstream(names=("api.test", "theirs.test"))
    proxy = start(ostiary, api.port)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:  # our certificate
        assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
    seen = api.connections
    with Raw(proxy.address("sidecar")) as raw:
        answer = raw.connect("theirs.test:443")
        assert (answer.status, answer.code) == (403, "route_denied")
    assert api.connections == seen


def test_the_egress_guard_holds(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    proxy = start(ostiary, upstream().port)
    for authority in ("169.254.169.254:80", f"{proxy.ready['admin']}", proxy.address("sidecar"), "10.0.0.1:443"):
        with Raw(proxy.address("sidecar")) as raw:
            answer = raw.connect(authority)
            assert (answer.status, answer.code) == (403, "egress_denied"), authority
    assert not proxy.audit("tunnel.opened")


def test_an_upstream_that_is_not_there_is_told(ostiary: Callable[..., Ostiary]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    proxy = start(ostiary, port)
    with Raw(proxy.address("sidecar")) as raw:
        answer = raw.connect("free.test:443")
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    (record,) = proxy.wait_audit("request.refused")
    assert (record["outcome"], record["code"]) == ("upstream_error", "upstream_unreachable")
    assert not proxy.audit("tunnel.opened")


def test_a_silent_tunnel_ends(ostiary: Callable[..., Ostiary]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start(ostiary, listener.getsockname()[1], settings="limits: {idle_timeout: 400ms}\n")
        with Raw(proxy.address("sidecar")) as raw:
            assert raw.connect("free.test:443").status == 200
            began = time.monotonic()
            assert raw.closed()
            assert 0.3 < time.monotonic() - began < 5
    (closed,) = proxy.wait_audit("tunnel.closed")
    assert (closed["outcome"], closed["code"]) == ("truncated", "upstream_timeout")


def test_deny_is_the_default(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = start(ostiary, api.port, "deny")
    with Raw(proxy.address("sidecar")) as raw:
        assert raw.connect("free.test:443").code == "route_denied"
    assert api.connections == 0
