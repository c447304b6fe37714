"""U1-U4, U7, U10, C2: what an upstream can do wrong. Each time: what the caller saw, what the upstream saw, what the
audit says."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.ports import free_port, refusing_port
from tests.harness.upstream import Seen, Upstream, Wire, plain

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: [api.test, nowhere.invalid]}
    allow: billing
    secret: {path: secret/egress/api, field: key}
    inject: {bearer: "{secret}"}
    timeouts: {connect: 1s, first_byte: 1s, idle: 1s}
"""


def start(ostiary: Callable[..., Ostiary], port: int) -> Ostiary:
    return ostiary(POLICY, upstreams={"api.test:443": port}, secrets={"secret/egress/api": {"key": canary()}})


def closed_as(proxy: Ostiary, outcome: str, code: str | None = None, status: int | None = None) -> None:
    (record,) = proxy.wait_audit("credential.closed")
    assert (record["outcome"], record.get("code")) == (outcome, code)
    if status is not None:
        assert record["status"] == status
    assert len(proxy.audit("credential.opened")) == 1


def test_u1_nobody_listens(ostiary: Callable[..., Ostiary]) -> None:
    with refusing_port() as port:
        proxy = start(ostiary, port)
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            for _ in range(2):
                answer = raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
                assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert {record["code"] for record in proxy.wait_audit("credential.closed", 2)} == {"upstream_unreachable"}


def test_u1_the_name_does_not_resolve(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = start(ostiary, api.port)
    answer = get(proxy.address("sidecar"), proxy.ca, authority="nowhere.invalid:443")
    assert answer.code in {"upstream_unreachable", "upstream_timeout"}
    assert answer.status in {502, 504}
    assert not proxy.audit("credential.opened")
    assert proxy.wait_audit("request.refused")[0]["code"] == answer.code
    assert api.connections == 0


@pytest.mark.parametrize("flaw", ["expired", "self_signed", "name"])
def test_u7_a_bad_certificate(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], flaw: str) -> None:
    api = upstream(names=("wrong.test",)) if flaw == "name" else upstream(**{flaw: True})
    proxy = start(ostiary, api.port)
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.code) == (502, "upstream_tls")
    assert api.requests == []
    assert bytes(api.raw) == b""
    closed_as(proxy, "upstream_error", "upstream_tls", 502)


def test_u7_an_upstream_of_another_ca(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.harness.pki import Pki

    other = Upstream(Pki.make(tmp_path_factory.mktemp("other")).context("api.test"))
    try:
        proxy = start(ostiary, other.port)
        assert get(proxy.address("sidecar"), proxy.ca).code == "upstream_tls"
        assert (other.requests, bytes(other.raw)) == ([], b"")
        closed_as(proxy, "upstream_error", "upstream_tls", 502)
    finally:
        other.stop()


def test_u2_silence_before_the_answer(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def silent(seen: Seen, wire: Wire) -> None:
        time.sleep(5)

    api = upstream(silent)
    proxy = start(ostiary, api.port)
    began = time.monotonic()
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert 0.9 < time.monotonic() - began < 3
    assert len(api.requests) == 1  # asked once, never again
    closed_as(proxy, "upstream_error", "upstream_timeout", 504)


def test_t1_an_upstream_whose_clock_is_not_ours(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream(plain(b"ok", 200, ("Date", "Mon, 23 Nov 2020 10:00:00 GMT")))
    proxy = start(ostiary, api.port)
    for _ in range(2):
        assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert proxy.stderr.count(b"ahead of that of api.test") == 1
    text = proxy.get("/metrics")[1].decode()
    (ahead,) = re.findall(r'^ostiary_clock_ahead_seconds\{host="api.test"\} (\S+)$', text, re.MULTILINE)
    assert float(ahead) > 100_000_000


def test_u2_silence_inside_the_answer(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def stalls(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        time.sleep(5)

    api = upstream(stalls)
    proxy = start(ostiary, api.port)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
        with pytest.raises(ConnectionError):
            raw.read_exactly(10)
    assert len(api.requests) == 1
    closed_as(proxy, "truncated", "upstream_timeout", 200)


@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
def test_u3_broken_before_the_head(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], how: str
) -> None:
    def broken(seen: Seen, wire: Wire) -> None:
        if how == "garbage":
            wire.send(b"\x00\x01not http at all\r\n\r\n")
            wire.close()
        elif how == "reset":
            wire.reset()
        else:
            wire.close()

    api = upstream(broken)
    proxy = start(ostiary, api.port)
    answer = get(proxy.address("sidecar"), proxy.ca, method="POST", body=b"x")
    assert (answer.status, answer.code) == (502, "upstream_protocol")
    assert len(api.requests) == 1
    closed_as(proxy, "upstream_error", "upstream_protocol", 502)


def test_u4_cut_inside_the_body(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def cut(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        wire.close()

    api = upstream(cut)
    proxy = start(ostiary, api.port)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
        with pytest.raises(ConnectionError):
            raw.read_exactly(10)
    assert len(api.requests) == 1
    closed_as(proxy, "truncated", None, 200)


def test_c2_the_caller_goes_away(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    cut = threading.Event()

    def slow(seen: Seen, wire: Wire) -> None:
        try:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(500):
                wire.send(b"x" * 1000)
                time.sleep(0.02)
        except OSError:
            cut.set()

    api = upstream(slow)
    proxy = start(ostiary, api.port)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
    closed_as(proxy, "client_gone", None, 200)
    assert cut.wait(5), "the upstream was left to send to nobody"
    assert len(api.requests) == 1


def test_c1_a_head_that_never_ends(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = ostiary(POLICY, upstreams={"api.test:443": api.port}, settings="limits: {header_timeout: 500ms}\n")
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: api.test\r\nX-Slow: ")
        answer = raw.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert raw.closed()
    assert api.connections == 0
    (record,) = proxy.wait_audit("request.refused")
    assert (record["code"], record["workload"]) == ("request_timeout", "billing")


def test_the_next_request_gets_a_new_connection(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """An upstream that closes after each answer, as many do after a while."""

    def once(seen: Seen, wire: Wire) -> None:
        wire.answer(200, b"one")
        wire.close()

    api = upstream(once)
    proxy = start(ostiary, api.port)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for _ in range(3):
            assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").body == b"one"
            time.sleep(0.1)
    assert api.connections == 3


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n",
    ],
)
def test_answers_that_two_parsers_read_in_two_ways(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], head: bytes
) -> None:
    def script(seen: Seen, wire: Wire) -> None:
        wire.send(head)

    proxy = start(ostiary, upstream(script).port)
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.code) == (502, "upstream_protocol")
    closed_as(proxy, "upstream_error", "upstream_protocol", 502)


def test_interim_answers_are_passed_over(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def script(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        time.sleep(0.05)
        wire.answer(200, b"final")

    proxy = start(ostiary, upstream(script).port)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for _ in range(2):
            assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").body == b"final"


def test_a_tunnel_recovers_with_its_upstream(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], pki: Pki
) -> None:
    """A dial that failed does not spoil the connection of the caller."""
    port = free_port()
    proxy = start(ostiary, port)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "upstream_unreachable"
        late = Upstream(pki.context("api.test"), port=port)
        try:
            assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").body == b"hello"
        finally:
            late.stop()
