"""However a caller's connection ends, nothing of it stays in memory: no connection, flow or buffer, and no slot.

The collector of cycles is off in the process under test. What only it could free would pile up between its runs, TLS
buffers of hundreds of kilobytes among it. What mitmproxy's layers hold (HTTP/2) is theirs: they are made of cycles.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.counted import ALL, OWN, alive, prefix, told
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.upstream import Seen, Upstream, Wire

POLICY = """
default: tunnel
workloads: {billing: {proofs: [{any: true}]}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 1m}
    inject: {bearer: "{secret}"}
  behind:
    match: {paths: "/**"}
    listener: secure
    upstream: "https://api.test"
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 1m}
    inject: {bearer: "{secret}"}
"""
LISTEN = """[{name: sidecar, bind: "127.0.0.1:0", workload: billing},
  {name: secure, bind: "127.0.0.1:0", mode: reverse, workload: billing, hosts: [gateway.test], tls: {cert: CERT, key: CERT}}]"""
SWITCH = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
SWITCHED = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
TIMES = 3


@pytest.fixture
def engine() -> str:
    return "fast"


def script(seen: Seen, wire: Wire) -> None:
    match seen.target:
        case "/slow":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)
            while wire.sock.recv(65536):  # until the proxy hangs up
                pass
            wire.close()
        case "/cut":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n" + b"x" * 1024)
            wire.reset()
        case "/die":
            wire.reset()
        case "/garbage":
            wire.send(b"no HTTP at all\r\n\r\n")
            wire.close()
        case "/close":
            wire.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
            wire.close()
        case "/chunks":
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            wire.chunk(b"hello")
            wire.chunk(b"")
        case "/ws" | "/ws-ends":
            wire.send(SWITCHED)
            while data := wire.sock.recv(65536):
                wire.send(b"\x81\x05hello")
                if seen.target == "/ws-ends" or not data:
                    break
            wire.close()
        case _:
            wire.answer(200, b"hello")


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: api.test", *fields, "", "")).encode()


def reset(raw: Raw) -> None:
    """Hangs up with RST."""
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


type Way = Callable[[Ostiary], None]
WAYS: dict[str, Way] = {}


def way(one: Way) -> Way:
    WAYS[one.__name__] = one
    return one


@contextlib.contextmanager
def inside(proxy: Ostiary) -> Iterator[Raw]:
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        yield raw


@contextlib.contextmanager
def outside(proxy: Ostiary) -> Iterator[Raw]:
    with Raw(proxy.address("sidecar")) as raw:
        yield raw


# --- requests ---


@way
def completed(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        assert raw.request(get("/")).status == 200
        assert raw.request(get("/chunks")).body == b"hello"
        assert raw.request(get("/", "Content-Length: 5", method="POST") + b"hello").status == 200


@way
def completed_and_closed(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        assert raw.request(get("/", "Connection: close")).status == 200
        assert raw.closed()


@way
def closed_by_the_answer(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        assert raw.request(get("/close")).body == b"hello"


@way
def sent_ahead_and_gone(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/") * 20)
        assert raw.answer().status == 200
        reset(raw)


@way
def gone_at_once(proxy: Ostiary) -> None:
    with outside(proxy):
        pass


@way
def gone_in_the_head(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/")[:20])


@way
def reset_in_the_head(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/")[:20])
        reset(raw)


@way
def gone_in_the_body(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/", "Content-Length: 1000000", method="POST") + b"x" * 100_000)


@way
def reset_in_the_body(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/", "Transfer-Encoding: chunked", method="POST") + b"3e8\r\n" + b"x" * 1000)
        reset(raw)


@way
def gone_in_the_answer(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/slow"))
        assert raw.head().status == 200


@way
def reset_in_the_answer(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/slow"))
        assert raw.head().status == 200
        reset(raw)


@way
def refused(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        assert raw.request(get("/").replace(b"api.test", b"other.test")).code == "authority_mismatch"


@way
def refused_with_a_body(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        head = get("/", "Content-Length: 100000", method="POST").replace(b"api.test", b"other.test")
        assert raw.request(head + b"x" * 1000).code == "authority_mismatch"


@way
def malformed(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.request(b"GET / HTTP/1.1\r\n\r\n").code == "bad_request"


@way
def broken_off(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        assert raw.request(get("/die")).code == "upstream_protocol"


@way
def answered_with_garbage(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        assert raw.request(get("/garbage")).code == "upstream_protocol"


@way
def cut(proxy: Ostiary) -> None:
    with inside(proxy) as raw, contextlib.suppress(ConnectionError):
        assert raw.request(get("/cut")).status == 502, "a part looked like the whole"


# --- tunnels ---


@way
def websocket(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/ws", SWITCH.strip()))
        assert raw.head().status == 101
        raw.send(b"\x81\x85\0\0\0\0hello")
        assert raw.read_exactly(7)[2:] == b"hello"


@way
def websocket_reset(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/ws", SWITCH.strip()))
        assert raw.head().status == 101
        reset(raw)


@way
def websocket_ended_by_the_upstream(proxy: Ostiary) -> None:
    with inside(proxy) as raw:
        raw.send(get("/ws-ends", SWITCH.strip()) + b"\x81\x85\0\0\0\0hello")
        assert raw.head().status == 101
        assert raw.read_exactly(7)[2:] == b"hello"
        assert raw.closed()


@way
def passed_on(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("free.test:22").status == 200
        raw.send(b"x")
        assert raw.read_exactly(1) == b"x"


@way
def passed_on_and_reset(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("free.test:22").status == 200
        reset(raw)


@way
def nobody_answers(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("dead.test:22").code == "upstream_unreachable"


@way
def tunnel_unused(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("api.test:443").status == 200


@way
def no_tls_inside(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("api.test:443").status == 200
        raw.send(b"SSH-2.0-client\r\n")
        assert raw.closed()


@way
def tls_that_is_none(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("api.test:443").status == 200
        raw.send(b"\x16\x03\x01\x00\x05hello")
        while raw._more():
            pass


@way
def reset_with_the_first_byte_of_tls(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("api.test:443").status == 200
        raw.send(b"\x16\x03\x01\x02\x00\x01")
        reset(raw)


@way
def reset_in_the_handshake(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("api.test:443").status == 200
        raw.send(b"\x16\x03\x01\x02\x00\x01")
        # Long enough for TLS to have begun, whichever end is then noticed first.
        time.sleep(0.05)
        reset(raw)


@way
def late_in_the_handshake(proxy: Ostiary) -> None:
    with outside(proxy) as raw:
        assert raw.connect("api.test:443").status == 200
        raw.send(b"\x16\x03\x01\x02\x00\x01")
        assert raw.closed()  # by the deadline for heads


@way
def untrusting(proxy: Ostiary) -> None:
    with outside(proxy) as raw, contextlib.suppress(ssl.SSLError):
        assert raw.connect("api.test:443").status == 200
        raw.tls(proxy.folder / "other.pem", "api.test")
        raise AssertionError("a CA that is not ours was taken for ours")


# --- listeners with TLS ---


def secure(proxy: Ostiary, name: str = "secure") -> Raw:
    raw = Raw(proxy.address(name))
    raw.tls(None, "gateway.test")
    return raw


@way
def secure_and_completed(proxy: Ostiary) -> None:
    with secure(proxy) as raw:
        assert raw.request(get("/").replace(b"api.test", b"gateway.test")).status == 200


@way
def secure_and_reset_in_the_answer(proxy: Ostiary) -> None:
    with secure(proxy) as raw:
        raw.send(get("/slow").replace(b"api.test", b"gateway.test"))
        assert raw.head().status == 200
        reset(raw)


@way
def secure_and_gone_in_the_handshake(proxy: Ostiary) -> None:
    with Raw(proxy.address("secure")) as raw:
        raw.send(b"\x16\x03\x01\x02\x00\x01")


@way
def secure_and_reset_in_the_handshake(proxy: Ostiary) -> None:
    with Raw(proxy.address("secure")) as raw:
        raw.send(b"\x16\x03\x01\x02\x00\x01")
        time.sleep(0.05)
        reset(raw)


@way
def secure_and_no_tls(proxy: Ostiary) -> None:
    with Raw(proxy.address("secure")) as raw:
        raw.send(get("/"))
        while raw._more():
            pass


@way
def handed_over(proxy: Ostiary) -> None:
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        assert client.answer(client.send("GET", "/")).headers[":status"] == "200"


def _echo(listener: socket.socket) -> None:
    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)

    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def slots(proxy: Ostiary) -> int:
    """Connections that the process counts, callers' and upstreams'."""
    lines = proxy.get("/metrics")[1].decode().splitlines()
    proxy.told.clear()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith(("ostiary_connections{", "ostiary_upstream_connections{"))))  # fmt: skip


def holds(proxy: Ostiary, target: Path, kinds: tuple[str, ...]) -> dict[str, int]:
    return {**alive(proxy, target, kinds), "slots": slots(proxy)}


def settled(proxy: Ostiary, target: Path, kinds: tuple[str, ...], before: dict[str, int]) -> dict[str, int]:
    """What there is more of than before, once that has become nothing, or after ten seconds."""
    deadline = time.monotonic() + 10
    while True:
        now = holds(proxy, target, kinds)
        more = {kind: now[kind] - before[kind] for kind in before if now[kind] > before[kind]}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.02)


def test_nothing_is_left_of_a_connection(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki, tmp_path: Path
) -> None:
    api, target = upstream(script), tmp_path / "counts"
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # and does not listen
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()
        proxy = ostiary(
            POLICY,
            upstreams={"api.test:443": api.port, "free.test:22": listener.getsockname()[1], "dead.test:22": dead.getsockname()[1]},
            secrets={"secret/egress/api": {"key": canary()}},
            settings="limits: {header_timeout: 1s, drain_timeout: 1s}\n",
            listen=LISTEN.replace("CERT", str(pki.certificate("gateway.test"))),
            prefix=prefix(target),
        )  # fmt: skip
        (proxy.folder / "other.pem").write_bytes(Pki.make(tmp_path / "other").ca_file.read_bytes())
        left: dict[str, dict[str, int]] = {}
        for name, once in WAYS.items():
            kinds = OWN if name == "handed_over" else ALL
            slow = once is late_in_the_handshake
            if not slow:
                once(proxy)  # what the first of its kind makes may stay: caches, a pooled connection
            completed(proxy)
            before = holds(proxy, target, kinds)
            for _ in range(1 if slow else TIMES):
                once(proxy)
            completed(proxy)  # so that as many connections are pooled as before
            if more := settled(proxy, target, kinds, before):
                left[name] = more
        assert not left
        # And what is open when the process drains.
        with contextlib.ExitStack() as open_ones:
            idle, answering, switched = (open_ones.enter_context(inside(proxy)) for _ in range(3))
            assert idle.request(get("/")).status == 200
            answering.send(get("/slow"))
            assert answering.head().status == 200
            switched.send(get("/ws", SWITCH.strip()))
            assert switched.head().status == 101
            assert open_ones.enter_context(outside(proxy)).connect("free.test:22").status == 200
            assert open_ones.enter_context(outside(proxy)).connect("api.test:443").status == 200
            open_ones.enter_context(outside(proxy)).send(b"GET http://api")
            assert proxy.stop() == 0
        end = told(target, (*OWN, "Link"))
        assert not any(end.values()), end
