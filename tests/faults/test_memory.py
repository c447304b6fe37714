"""F2: more waits for slow readers than `limits.buffers` allows. New requests are shed, those under way end well, memory is bounded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import h2.config
import h2.connection
import h2.events

from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.report import figure
from tests.harness.upstream import Seen, Upstream, Wire

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 1m}
    inject: {bearer: "{secret}"}
    timeouts: {idle: IDLE}
"""
LARGE_BYTES = 16 << 20
READERS = 20


def start(ostiary: Callable[..., Ostiary], api: Upstream, buffers: str, idle: str = "60s") -> Ostiary:
    return ostiary(
        POLICY.replace("IDLE", idle),
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
        settings=f"limits: {{buffers: {buffers}}}\n",
    )


def large(seen: Seen, wire: Wire) -> None:
    if seen.target == "/v1":
        wire.answer(200, b"x")
        return
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE_BYTES)
    for _ in range(LARGE_BYTES >> 20):
        wire.send(b"x" * (1 << 20))


def buffered(proxy: Ostiary) -> float:
    lines = proxy.get("/metrics")[1].decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("ostiary_buffered_bytes ")))


def until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_f2_slow_readers_shed_new_requests_alone(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream(large)
    proxy = start(ostiary, api, "1MiB")
    before = proxy.rss_bytes()
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(tunnel(proxy.address("sidecar"), proxy.ca))
        assert kept.request("GET /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
        slow = [stack.enter_context(tunnel(proxy.address("sidecar"), proxy.ca)) for _ in range(READERS)]
        for raw in slow:
            raw.send(b"GET /large HTTP/1.1\r\nHost: api.test\r\n\r\n")
        until(lambda: buffered(proxy) > 1 << 20)
        grown = proxy.rss_bytes() - before
        assert grown < 64 << 20, grown
        held = buffered(proxy)
        assert held < READERS * (1 << 20)
        requests, connections = len(api.requests), api.connections
        # A new tunnel, and a new request in an old one.
        with Raw(proxy.address("sidecar")) as raw:
            answer = raw.connect("api.test:443")
            assert (answer.status, answer.code, answer.get("Retry-After")) == (503, "overloaded", "1")
        answer = kept.request("GET /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (answer.status, answer.code) == (503, "overloaded")
        assert (len(api.requests), api.connections) == (requests, connections)
        # Those under way end whole.
        ends: list[int] = []

        def read(raw: Raw) -> None:
            assert raw.head().status == 200
            raw.sock.settimeout(60)
            got = len(raw.buffer)
            while got < LARGE_BYTES:
                found = raw.sock.recv(1 << 20)
                assert found
                got += len(found)
            ends.append(got)

        readers = [threading.Thread(target=read, args=(raw,)) for raw in slow]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join(60)
        assert ends == [LARGE_BYTES] * READERS
        until(lambda: buffered(proxy) == 0)
        assert get(proxy.address("sidecar"), proxy.ca).status == 200
    closed = proxy.wait_audit("credential.closed", READERS + 2)
    assert {record["outcome"] for record in closed} == {"ok"}
    figure(
        "memory pressure",
        f"{READERS} slow readers of {LARGE_BYTES >> 20} MiB: new requests refused, all {READERS} answers whole",
    )


def test_f2_requests_sent_ahead_are_counted(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    """What callers send before it is their turn is held as well."""
    ended = threading.Event()

    def waits(seen: Seen, wire: Wire) -> None:
        ended.wait(30)
        wire.answer(200, b"x")

    proxy = start(ostiary, upstream(waits), "1MiB")
    head = b"GET /v1 HTTP/1.1\r\nHost: api.test\r\nX-Filler: " + b"a" * 50_000 + b"\r\n\r\n"
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                raw = stack.enter_context(tunnel(proxy.address("sidecar"), proxy.ca))
                raw.send(head * 4)
            until(lambda: buffered(proxy) > 1 << 20)
            with Raw(proxy.address("sidecar")) as raw:
                assert raw.connect("api.test:443").code == "overloaded"
    finally:
        ended.set()
    until(lambda: buffered(proxy) == 0)


def test_f2_an_upload_to_an_upstream_that_takes_none_is_held_back(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """An HTTP/2 upstream that never opens its window: the caller is read no further, whatever it sends."""
    api = upstream(alpn=("h2",))
    api._serve_http2 = lambda tls: stalls(api, tls)  # type: ignore[method-assign]  # this upstream alone
    proxy = start(ostiary, api, "256MiB", "4s")
    before = proxy.rss_bytes()
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        raw.sock.settimeout(1.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            for chunk in uploads(raw):
                raw.sock.sendall(chunk)
                sent += len(chunk)
        assert sent < 48 << 20
        assert 1 << 20 <= buffered(proxy) < 8 << 20
        assert proxy.rss_bytes() - before < 48 << 20
        (closed,) = proxy.wait_audit("credential.closed", timeout=10)
        assert (closed["outcome"], closed["code"]) == ("upstream_error", "upstream_timeout")
    until(lambda: buffered(proxy) == 0)


def uploads(raw: Raw) -> Iterator[bytes]:
    chunk = b"x" * (1 << 14)
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    conn.initiate_connection()
    raw.sock.sendall(conn.data_to_send())
    while conn.outbound_flow_control_window < 1 << 20:
        conn.receive_data(raw.sock.recv(65536))
    pseudo = [(":method", "POST"), (":scheme", "https"), (":authority", "api.test"), (":path", "/v1")]
    conn.send_headers(1, pseudo)
    for _ in range(4096):
        conn.send_data(1, chunk)
        yield conn.data_to_send()


def stalls(api: Upstream, tls: object) -> None:
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    conn.initiate_connection()
    tls.sendall(conn.data_to_send())  # type: ignore[attr-defined]  # a TLS socket
    while data := tls.recv(65536):  # type: ignore[attr-defined]  # a TLS socket
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                api.requests.append(Seen("POST", "/v1", [], http2=True))
        tls.sendall(conn.data_to_send())  # type: ignore[attr-defined]  # a TLS socket
