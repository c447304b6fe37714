"""G01-G09: a request that names two authorities gets no credential and reaches nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Upstream

POLICY = """
workloads:
  billing: {proofs: [{any: true}]}
routes:
  a: {match: {host: api.test}, allow: billing, secret: {path: secret/egress/a, field: key}, inject: {bearer: "{secret}"}}
  b: {match: {host: other.test}, allow: billing, secret: {path: secret/egress/b, field: key}, inject: {bearer: "{secret}"}}
"""


@dataclass
class Pair:
    proxy: Ostiary
    a: Upstream
    b: Upstream
    key_a: str
    key_b: str

    @property
    def address(self) -> str:
        return self.proxy.address("sidecar")

    def untouched(self) -> None:
        assert (self.a.connections, self.b.connections) == (0, 0)
        assert not self.proxy.audit("credential.opened")


@pytest.fixture
def pair(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> Iterator[Pair]:
    a, b, key_a, key_b = upstream(), upstream(names=("other.test",)), canary("a"), canary("b")
    proxy = ostiary(
        POLICY,
        upstreams={"api.test:443": a.port, "other.test:443": b.port},
        secrets={"secret/egress/a": {"key": key_a}, "secret/egress/b": {"key": key_b}},
    )
    yield Pair(proxy, a, b, key_a, key_b)


def test_g01_c4_another_host_inside_the_tunnel(pair: Pair) -> None:
    with tunnel(pair.address, pair.proxy.ca) as raw:
        answer = raw.request("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
    assert (answer.status, answer.code) == (421, "authority_mismatch")
    pair.untouched()
    (record,) = pair.proxy.wait_audit("request.refused")
    assert (record["code"], record["workload"]) == ("authority_mismatch", "billing")


def test_g02_c4_another_sni(pair: Pair) -> None:
    with tunnel(pair.address, None, sni="other.test") as raw:
        answer = raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (answer.status, answer.code) == (421, "authority_mismatch")
    with tunnel(pair.address, None, sni="other.test") as raw:
        assert raw.request("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").code == "authority_mismatch"
    pair.untouched()


def test_g03_another_pseudo_authority_in_http2(pair: Pair) -> None:
    with tunnel(pair.address, pair.proxy.ca, alpn=("h2",)) as raw:
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        client.initiate_connection()
        client.send_headers(
            1, [(":method", "GET"), (":scheme", "https"), (":authority", "other.test"), (":path", "/")], end_stream=True
        )
        raw.send(client.data_to_send())
        headers: dict[str, str] = {}
        while not headers:
            for event in client.receive_data(raw.sock.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived) and event.headers:
                    headers = {str(name): str(value) for name, value in event.headers}
    assert (headers[":status"], headers["x-ostiary-error"]) == ("421", "authority_mismatch")
    pair.untouched()


@pytest.mark.parametrize("target", ["https://other.test/", "http://other.test/", "https://api.test/", "other.test:443"])
def test_g04_absolute_form_inside_the_tunnel(pair: Pair, target: str) -> None:
    with tunnel(pair.address, pair.proxy.ca) as raw:
        assert raw.request(f"GET {target} HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "bad_request"
        assert raw.closed()
    pair.untouched()


def test_g05_connect_with_another_host_field(pair: Pair) -> None:
    with Raw(pair.address) as raw:
        assert raw.connect("api.test:443", host="other.test").code == "authority_mismatch"
    pair.untouched()


def test_g06_absolute_https_to_the_listener(pair: Pair) -> None:
    with Raw(pair.address) as raw:
        answer = raw.request("GET https://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert answer.status in {400, 403}
        assert answer.code in {"bad_request", "route_denied"}
    pair.untouched()


def test_c5_cleartext_and_origin_form_are_refused(pair: Pair) -> None:
    with Raw(pair.address) as raw:
        assert raw.request("GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "route_denied"
    with Raw(pair.address) as raw:
        assert raw.request("GET / HTTP/1.1\r\nHost: mitm.it\r\n\r\n").code == "bad_request"
    pair.untouched()
    assert {record["code"] for record in pair.proxy.wait_audit("request.refused", 2)} == {"route_denied", "bad_request"}


@pytest.mark.parametrize("authority", ["API.Test:443", "api.test.:443"])
def test_g07_spellings_reach_the_same_route(pair: Pair, authority: str) -> None:
    with tunnel(pair.address, None, authority, sni="api.test") as raw:
        assert raw.request("GET / HTTP/1.1\r\nHost: Api.Test:443\r\n\r\n").status == 200
    assert pair.a.requests[0].get("Authorization") == f"Bearer {pair.key_a}"
    assert pair.a.requests[0].get("Host") == "api.test"


@pytest.mark.parametrize(
    "host",
    [
        "api.test\x00.evil",
        "api%2etest",
        "api .test",
        "api.test\\",
        "api.test/",
        "a@api.test",
        "0x7f.1",
        "2130706433",
        "127.1",
        "api.test..",
        ".api.test",
        "[api.test]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[]",
        "",
        "*.test",
        "-api.test",
        "u:p@api.test",
        "https://api.test",
        "api.test:443,other.test",
        "api.test:0",
        "a" * 260,
        "api\xad.test",
        "api\x1b[31m.test",
    ],
)
def test_g08_what_is_no_host(pair: Pair, host: str) -> None:
    with Raw(pair.address) as raw:
        raw.send(f"CONNECT {host}:443 HTTP/1.1\r\n\r\n".encode("latin-1"))
        answer = raw.answer()
    assert answer.status == 400
    assert answer.code == "bad_request"
    pair.untouched()


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1", "+443", "0x1bb", "", "443/", "443?x", "443 "])
def test_g08_what_is_no_port(pair: Pair, port: str) -> None:
    with Raw(pair.address) as raw:
        raw.send(f"CONNECT api.test:{port} HTTP/1.1\r\n\r\n".encode())
        assert raw.answer().code == "bad_request"
    pair.untouched()


def test_g09_two_host_fields(pair: Pair) -> None:
    for second in ("api.test", "other.test"):
        with tunnel(pair.address, pair.proxy.ca) as raw:
            assert raw.request(f"GET / HTTP/1.1\r\nHost: api.test\r\nHost: {second}\r\n\r\n").code == "bad_request"
    pair.untouched()


def test_g20_connection_cannot_remove_the_credential(pair: Pair) -> None:
    assert get(pair.address, pair.proxy.ca, "/", "Connection: Authorization, Host").status == 200
    assert pair.a.requests[0].get("Authorization") == f"Bearer {pair.key_a}"


def test_c5_raw_bytes_inside_a_tunnel_are_closed(pair: Pair) -> None:
    for noise in (b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n", b"\x00\x01\x02\x03"):
        with Raw(pair.address) as raw:
            assert raw.connect("api.test:443").status == 200
            raw.send(noise)
            assert raw.closed()
    pair.untouched()
    assert {record["code"] for record in pair.proxy.wait_audit("request.refused", 3)} == {"bad_request"}


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\nHost: api.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.test\r\n X: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.test\r\nX : y\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_g21_smuggled_heads_are_refused(pair: Pair, head: str) -> None:
    with tunnel(pair.address, pair.proxy.ca) as raw:
        answer = raw.request(head)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert raw.closed()
    pair.untouched()
