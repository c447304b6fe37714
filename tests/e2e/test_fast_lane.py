"""What only the fast lane has: its pool, its hand-over, and what its own buffers could do wrong.

These run on `engine: fast` whatever the other end-to-end tests run on.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections.abc import Callable

import pytest

from ostiary.engines.fast.sessions import LEAKS
from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.http2 import Http2
from tests.harness.memory_tls import MemoryTls
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Cleartext, Seen, Upstream, Wire, serving

GET = b"GET /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n"


@pytest.fixture
def engine() -> str:
    return "fast"


def start(ostiary: Callable[..., Ostiary], api: Upstream, **given: object) -> Ostiary:
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}}, **given)


# --- what is sent before it may be read ---


def test_a_body_that_comes_with_the_last_flight_of_the_handshake(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = start(ostiary, api)
    assert proxy.process is not None
    body = os.urandom(200_000)
    with Raw(proxy.address("sidecar")) as raw:
        assert raw.connect("api.test:443").status == 200
        memory = MemoryTls(raw)
        raw.send(memory.hello())
        head = b"POST /v1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % len(body)
        together = memory.finish() + memory.encrypt(head + body[:190_000])
        # Held still, so that all of it is there when the proxy looks.
        os.kill(proxy.process.pid, signal.SIGSTOP)
        raw.send(together)
        os.kill(proxy.process.pid, signal.SIGCONT)
        time.sleep(0.2)
        raw.send(memory.encrypt(body[190_000:]))
        assert memory.read().startswith(b"HTTP/1.1 200")
    assert api.requests[0].body_bytes == len(body)


BLIND = """
default: tunnel
workloads: {billing: {proofs: [{any: true}]}}
routes: {api: {match: {host: api.test}, allow: billing}}
"""


def test_an_unopened_tunnel_whose_caller_does_not_wait(ostiary: Callable[..., Ostiary]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = ostiary(BLIND, upstreams={"free.test:22": listener.getsockname()[1]})
        assert proxy.process is not None
        with Raw(proxy.address("sidecar"), timeout=10) as raw:
            sent = b"x" * 900_000
            os.kill(proxy.process.pid, signal.SIGSTOP)
            raw.send(b"CONNECT free.test:22 HTTP/1.1\r\nHost: free.test:22\r\n\r\n" + sent[:150_000])
            os.kill(proxy.process.pid, signal.SIGCONT)
            peer, _ = listener.accept()
            peer.settimeout(10)
            with peer:
                raw.send(sent[150_000:])
                got = 0
                while got < len(sent):
                    data = peer.recv(1 << 20)
                    assert data
                    got += len(data)
                peer.sendall(b"bye")
            raw.read_until(b"\r\n\r\n")
            assert raw.read_exactly(3) == b"bye"


def test_what_is_sent_behind_a_refused_connect(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    proxy = start(ostiary, upstream())
    assert proxy.process is not None
    refused = b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n"
    with Raw(proxy.address("sidecar"), timeout=10) as raw:
        count = 3000
        os.kill(proxy.process.pid, signal.SIGSTOP)
        raw.send(refused * 1500)
        os.kill(proxy.process.pid, signal.SIGCONT)
        raw.send(refused * (count - 1500))
        for _ in range(count):
            assert raw.answer(method="CONNECT").status == 403


# --- back-pressure and ends ---


@pytest.mark.parametrize("framing", ["length", "close", "chunked"])
def test_an_answer_whose_upstream_closes_at_once_and_a_slow_reader(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], framing: str
) -> None:
    size = 6_000_000

    def script(seen: Seen, wire: Wire) -> None:
        body = b"z" * size
        match framing:
            case "length":
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size + body)
            case "close":
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
            case _:
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
                wire.chunk(body)
                wire.chunk(b"")
        wire.close()

    proxy = start(ostiary, upstream(script))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.send(GET)
        time.sleep(1.0)
        head = raw.read_until(b"\r\n\r\n")
        assert b"200" in head
        got = len(raw.buffer)
        while got < size:
            data = raw.sock.recv(16384)
            assert data, f"cut after {got} of {size}"
            got += len(data)
            if got % 100 < 3:
                time.sleep(0.01)
    (closed,) = proxy.wait_audit("credential.closed")
    assert closed["outcome"] == "ok"


@pytest.mark.parametrize("size_kib", [500, 4250, 6500])
def test_an_early_answer_to_a_body_that_is_not_read_yet(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], size_kib: int
) -> None:
    def script(seen: Seen, wire: Wire) -> None:
        if seen.method == "POST":
            time.sleep(0.7)
            wire.answer(413, b"no")
            time.sleep(0.7)
        else:
            wire.answer(200, b"yes")

    api = upstream(script, early=True)
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.sock.settimeout(8)
        raw.send(b"POST /v1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % (size_kib * 1024))
        try:
            raw.send(b"x" * size_kib * 1024)
        except OSError:
            return  # hung up on: also an end
        answer = raw.answer()
        assert answer.status == 413
        try:
            raw.send(GET)
            assert raw.answer().body == b"yes"
        except ConnectionError:
            return


# --- the pool ---

POOLED = """
workloads: {billing: {proofs: [{any: true}]}, reports: {proofs: [{any: true}]}}
routes:
  api: {match: {host: api.test}, allow: [billing, reports], secret: {path: secret/egress/api, field: key}, inject: {bearer: "{secret}"}}
"""


def test_g58_callers_of_one_workload_share_and_workloads_do_not(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    listen = ", ".join(f'{{name: {name}, bind: "127.0.0.1:0", workload: {name}}}' for name in ("billing", "reports"))
    proxy = start(ostiary, api, policy=POOLED, listen=f"[{listen}]")
    for _ in range(3):
        for name in ("billing", "reports"):
            with tunnel(proxy.address(name), proxy.ca) as raw:
                assert raw.request(GET).status == 200
    assert (api.connections, len(api.requests)) == (2, 6)


def test_workloads_share_connections_where_their_routes_say_so(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """Three routes to one upstream: two share, the third keeps to its workload."""
    api = upstream()
    names = ("billing", "reports", "audits")
    listen = ", ".join(f'{{name: {name}, bind: "127.0.0.1:0", workload: {name}}}' for name in names)
    routes = "".join(
        f"  {name}: {{match: {{host: api.test}}, allow: {name}, secret: {{path: secret/egress/api, field: key}}, "
        f'inject: {{bearer: "{{secret}}"}}, egress: {{share_connections: {share}}}}}\n'
        for name, share in zip(names, ("true", "true", "false"), strict=True)
    )
    policy = (
        "workloads:\n" + "".join(f"  {name}: {{proofs: [{{any: true}}]}}\n" for name in names) + "routes:\n" + routes
    )
    proxy = start(ostiary, api, policy=policy, listen=f"[{listen}]")
    for _ in range(2):
        for name in names:
            with tunnel(proxy.address(name), proxy.ca) as raw:
                assert raw.request(GET).status == 200
    assert (api.connections, len(api.requests)) == (2, 6)


@pytest.mark.parametrize("engine", ["fast"], indirect=True)  # the other one keeps connections for one caller anyway
def test_a_connection_that_is_somebody_is_nobody_elses(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """NTLM and its like authenticate the connection: it ends with the exchange, whichever side speaks of them."""

    def script(seen: Seen, wire: Wire) -> None:
        offered = seen.target.removeprefix("/").replace("%20", " ")
        wire.answer(200, b"ok", (("wWW-Authenticate", offered),) if offered else ())

    api = upstream(script)
    policy = (
        "workloads: {billing: {proofs: [{any: true}]}}\n"
        "routes: {api: {match: {host: api.test}, allow: billing, caller_credentials: keep}}\n"
    )
    proxy = start(ostiary, api, policy=policy)
    used = []
    for target, said in [
        ("", "Basic negotiateNTLM"),
        ("Basic", "Bearer NTLM-like"),
        ("Basic,%20NEGOTIATE", "Basic YTpi"),
        ("ntlm", "Basic YTpi"),
        ("", "negotiate YTpi"),
        ("", "NTLM YTpi"),
        ("", "Kerberos YTpi"),
        ("", "CredSSP YTpi"),
        ("", "Basic YTpi"),
    ]:
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            head = f"GET /{target} HTTP/1.1\r\nHost: api.test\r\nAuthorization: {said}\r\n\r\n"
            assert raw.request(head).status == 200
        used.append(api.connections)
    assert used == [1, 1, 1, 2, 3, 4, 5, 6, 7]


def test_sessions_with_upstreams_are_resumed_by_one_workload_alone(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    resumed: list[tuple[str, bool]] = []

    def once(seen: Seen, wire: Wire) -> None:
        assert isinstance(wire.sock, ssl.SSLSocket)
        resumed.append((seen.target, bool(wire.sock.session_reused)))
        wire.answer(200, b"ok", (("Connection", "close"),))
        wire.close()

    api = upstream(once)
    listen = ", ".join(f'{{name: {name}, bind: "127.0.0.1:0", workload: {name}}}' for name in ("billing", "reports"))
    proxy = start(ostiary, api, policy=POOLED, listen=f"[{listen}]")
    for name in ("billing", "billing", "reports", "billing", "reports"):
        with tunnel(proxy.address(name), proxy.ca) as raw:
            assert raw.request(GET.replace(b"/v1", b"/" + name.encode())).status == 200
    assert resumed == [
        # Where this Python loses memory by it, none is kept.
        ("/billing", False),
        ("/billing", not LEAKS),
        ("/reports", False),
        ("/billing", not LEAKS),
        ("/reports", not LEAKS),
    ]
    assert api.connections == 5


@pytest.mark.parametrize(
    ("head", "status", "reached", "retries"),
    [
        (b"GET /v1 HTTP/1.1\r\nHost: api.test\r\n\r\n", 200, 2, 1),
        (b"POST /v1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2\r\n\r\nok", 502, 1, 0),
        (b"POST /v1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n", 502, 1, 0),
        (b"PUT /v1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2\r\n\r\nok", 502, 1, 0),
    ],
)
def test_u3_a_stale_connection_is_left_once_and_only_where_that_is_harmless(
    ostiary: Callable[..., Ostiary],
    upstream: Callable[..., Upstream],
    head: bytes,
    status: int,
    reached: int,
    retries: int,
) -> None:
    """The upstream ends the pooled connection when the next request is on it."""
    count = iter(range(100))

    def script(seen: Seen, wire: Wire) -> None:
        if next(count) == 1:
            wire.reset()
        else:
            wire.answer(200, b"ok")

    api = upstream(script)
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(GET).status == 200
        assert raw.request(head).status == status
    assert len(api.requests) == 1 + reached
    closed = proxy.wait_audit("credential.closed", 2)[1]
    assert closed.get("retries", 0) == retries


def test_u3_a_second_failure_is_told(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    count = iter(range(100))

    def script(seen: Seen, wire: Wire) -> None:
        if next(count):
            wire.close()
        else:
            wire.answer(200, b"ok")

    api = upstream(script)
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(GET).status == 200
        assert raw.request(GET).code == "upstream_protocol"
    assert len(api.requests) == 3


# --- callers ---


def test_fifty_requests_in_one_segment_are_served_in_order(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream(lambda seen, wire: wire.answer(200, seen.target.encode()))
    proxy = start(ostiary, api)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n" % number for number in range(50)))
        for number in range(50):
            assert raw.answer().body == b"/%d" % number
    assert [seen.target for seen in api.requests] == [f"/{number}" for number in range(50)]
    assert api.connections == 1


@pytest.mark.parametrize(
    ("offered", "chosen"), [(("h2", "http/1.1"), "http/1.1"), (("http/1.1",), "http/1.1"), (("h2",), "h2"), ((), None)]
)
def test_which_protocol_a_caller_gets(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], offered: tuple[str, ...], chosen: str | None
) -> None:
    proxy = start(ostiary, upstream())
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=offered) as raw:
        assert isinstance(raw.sock, ssl.SSLSocket)
        assert raw.sock.selected_alpn_protocol() == chosen
        if chosen != "h2":
            assert raw.request(GET).status == 200
            return
        client = Http2(raw)
        assert client.answer(client.send("GET", "/v1")).headers[":status"] == "200"
        # Another authority inside this tunnel is refused there too.
        assert client.answer(client.send("GET", "/v1", authority="other.test")).headers[":status"] == "421"


def test_a_caller_resumes_its_session(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    proxy = start(ostiary, upstream())
    context = ssl.create_default_context(cafile=str(proxy.ca))
    context.set_alpn_protocols(["http/1.1"])
    session = None
    for again in (False, True, True):
        with Raw(proxy.address("sidecar")) as raw:
            assert raw.connect("api.test:443").status == 200
            memory = MemoryTls(raw, context=context, session=session)
            raw.send(memory.hello())
            raw.send(memory.finish() + memory.encrypt(GET))
            assert memory.read_until(b"hello").startswith(b"HTTP/1.1 200")
            assert memory.tls.session_reused is again
            session = memory.tls.session


def test_a_half_closed_caller_is_answered_all_it_asked(ostiary: Callable[..., Ostiary]) -> None:
    policy = "workloads: {billing: {proofs: [{any: true}]}}\nroutes: {open: {match: {host: open.test, port: 80}, allow: billing}}\n"
    with serving(Upstream(Cleartext(), lambda seen, wire: wire.answer(200, seen.target.encode()))) as api:
        proxy = ostiary(policy, upstreams={"open.test:80": api.port})
        with Raw(proxy.address("sidecar")) as raw:
            raw.send(b"".join(b"GET http://open.test/%d HTTP/1.1\r\nHost: open.test\r\n\r\n" % n for n in range(3)))
            raw.sock.shutdown(socket.SHUT_WR)
            assert [raw.answer().body for _ in range(3)] == [b"/0", b"/1", b"/2"]
            assert raw.closed()


def test_no_deadline_for_heads(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    """0 means none, in the handshake too."""
    proxy = start(ostiary, upstream(), settings="limits: {header_timeout: 0}\n")
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(GET).status == 200


def test_f2_a_thousand_idle_connections(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    proxy = start(ostiary, upstream())
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(GET).status == 200
    before = proxy.rss_bytes()
    waiting = [Raw(proxy.address("sidecar")) for _ in range(900)]
    try:
        for one in waiting[:200]:
            assert one.connect("api.test:443").status == 200
        deadline = time.monotonic() + 10
        while b'connections{side="downstream"} 900' not in proxy.get("/metrics")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert proxy.rss_bytes() - before < 900 * 40_000
    finally:
        for one in waiting:
            one.close()
