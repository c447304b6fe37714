"""G21, G14, G19, C1, F2: framing that two parsers read differently, in heads and bodies, over HTTP/1 and HTTP/2, in both directions;
and bodies that would fill memory while nobody takes them."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.attacks.test_http2_floods import PREFACE, block, frame, read
from tests.harness.canaries import canary
from tests.harness.client import Raw, get, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.pki import Pki
from tests.harness.scripted_vault import scripted, send
from tests.harness.upstream import Seen, Upstream, Wire, echo

POLICY = """
workloads: {billing: {proofs: [{any: true}]}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: TTL}
    inject: {bearer: "{secret}"}
    timeouts: {connect: 4s, first_byte: 3s, idle: 3s}
"""


def start(ostiary: Callable[..., Ostiary], api: Upstream, **given: Any) -> Ostiary:
    key = canary()
    given = {"secrets": {"secret/egress/api": {"key": key}}, "upstreams": {"api.test:443": api.port}, **given}
    return ostiary(POLICY.replace("TTL", "1m"), **given)


def post(fields: str, body: bytes, *, then: bytes = b"") -> bytes:
    return f"POST /first HTTP/1.1\r\nHost: api.test\r\n{fields}\r\n\r\n".encode() + body + then


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[tuple[Ostiary, Upstream]]:
    """One process for the tables."""
    api = Upstream(pki.context("api.test"), echo)
    proxy = Ostiary(
        tmp_path_factory.mktemp("smuggling"),
        POLICY.replace("TTL", "1m"),
        ca_file=pki.ca_file,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
    ).start()
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    yield proxy, api
    leaks = proxy.leaks()
    assert proxy.stop() == 0
    api.stop()
    assert not leaks, leaks


HEADS = {
    "a folded coding": ("Transfer-Encoding:\r\n chunked", b"0\r\n\r\n"),
    "a list of lengths": ("Content-Length: 3, 3", b"abc"),
    "two lengths": ("Content-Length: 3\r\nContent-Length: 3", b"abc"),
    "two different lengths": ("Content-Length: 3\r\nContent-Length: 0", b"abc"),
    "a negative length": ("Content-Length: -1", b""),
    "a signed length": ("Content-Length: +3", b"abc"),
    "a hexadecimal length": ("Content-Length: 0x3", b"abc"),
    "a length with an underscore": ("Content-Length: 1_0", b"abc"),
    "a length that starts with zero": ("Content-Length: 03", b"abc"),
    "an empty length": ("Content-Length: ", b""),
    "a length over 63 bits": ("Content-Length: 9999999999999999999", b""),
    "chunked, identity": ("Transfer-Encoding: chunked, identity", b"0\r\n\r\n"),
    "gzip, chunked": ("Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
    "identity": ("Transfer-Encoding: identity", b""),
    "xchunked": ("Transfer-Encoding: xchunked", b"0\r\n\r\n"),
    "quoted chunked": ('Transfer-Encoding: "chunked"', b"0\r\n\r\n"),
    "two codings": ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "a vertical tab": ("Transfer-Encoding: \x0bchunked", b"0\r\n\r\n"),
    "a space before the colon": ("Transfer-Encoding : chunked", b"0\r\n\r\n"),
    "length and coding": ("Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "a bare CR": ("X: a\rTransfer-Encoding: chunked", b""),
    "a bare LF": ("X: a\nTransfer-Encoding: chunked", b""),
    "a NUL": ("X: a\x00b", b""),
    "DEL": ("X: a\x7fb", b""),
    "no colon": ("Transfer-Encoding", b""),
    "no name": (": chunked", b""),
    "many empty lines before": ("", b""),
}


@pytest.mark.parametrize("what", HEADS)
def test_g21_heads_that_two_parsers_read_differently(one: tuple[Ostiary, Upstream], what: str) -> None:
    proxy, api = one
    fields, body = HEADS[what]
    before = len(api.requests)
    raw_bytes = post(fields, body, then=b"GET /smuggled HTTP/1.1\r\nHost: api.test\r\n\r\n")
    if what.startswith("many"):
        raw_bytes = b"\r\n" * 5000 + raw_bytes
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        answer = raw.request(raw_bytes)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert raw.closed()
    assert len(api.requests) == before


BODIES = {
    "a bare LF in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "a long extension": b"3;" + b"a" * 70_000 + b"\r\nabc\r\n0\r\n\r\n",
    "a negative size": b"-3\r\nabc\r\n0\r\n\r\n",
    "a signed size": b"+3\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n",
    "a space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "a size over 64 bits": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "bare LF everywhere": b"3\nabc\n0\n\n",
    "more than the size": b"3\r\nabcXX0\r\n\r\n",
    "CR CR LF": b"3\r\r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "a trailer with a bare LF": b"0\r\nX: 1\nGET /smuggled HTTP/1.1\nHost: api.test\n\n\r\n\r\n",
    "a trailer without a colon": b"0\r\nX\r\n\r\n",
    "trailers without end": b"0\r\n" + b"X: y\r\n" * 20_000,
}


@pytest.mark.parametrize("what", BODIES)
def test_g21_chunked_bodies_that_two_parsers_read_differently(one: tuple[Ostiary, Upstream], what: str) -> None:
    proxy, api = one
    before = len(api.requests)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        with contextlib.suppress(OSError):
            raw.send(
                post(
                    "Transfer-Encoding: chunked", BODIES[what], then=b"GET /smuggled HTTP/1.1\r\nHost: api.test\r\n\r\n"
                )
            )
        # mitmproxy's engine closes without a word, the fast lane says why first (docs/reference/engines.md).
        if proxy.engine == "fast":
            assert raw.answer().code == "bad_request"
        assert raw.closed()
    time.sleep(0.05)
    assert not [seen for seen in api.requests[before:] if seen.complete or seen.target != "/first"]
    assert b"Traceback" not in bytes(proxy.stderr)
    assert b"AssertionError" not in bytes(proxy.stderr)


def test_g21_g19_trailers_of_a_request_end_here(one: tuple[Ostiary, Upstream]) -> None:
    """Merged into the head upstream, they would be a second Authorization or another length."""
    proxy, api = one
    fields = "Transfer-Encoding: chunked\r\nTrailer: Authorization"
    trailers = b"Authorization: Bearer mine\r\nContent-Length: 9\r\nHost: other.test\r\n"
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for _ in range(2):
            assert raw.request(post(fields, b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n")).status == 200
            assert (api.requests[-1].body_bytes, api.requests[-1].get("Trailer")) == (3, None)
    assert b"Bearer mine" not in bytes(api.raw)


@pytest.mark.parametrize("alpn", ["h2", "http/1.1"])
def test_g21_g19_trailers_of_an_http2_request_end_here(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], alpn: str
) -> None:
    api = upstream(echo, alpn=(alpn,))
    proxy = start(ostiary, api)
    head = block((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.test"), (b":path", b"/"))
    trailers = block((b"authorization", b"Bearer mine"), (b"x-api-key", b"mine-too"))
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        raw.send(PREFACE + frame(4, 0, 0) + frame(1, 4, 1, head) + frame(0, 0, 1, b"abc") + frame(1, 5, 1, trailers))
        got = read(raw, 1)
    assert (got.statuses, got.goaway) == (["200"], None)
    (seen,) = api.requests
    assert (seen.body_bytes, seen.get("x-api-key")) == (3, None)
    assert b"mine" not in bytes(api.raw)


HTTP2_HEADS: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "a length after the end": ((b"content-length", b"9"),),
    "two lengths": ((b"content-length", b"0"), (b"content-length", b"0")),
    "a signed length": ((b"content-length", b"+0"),),
    "another scheme": ((b":scheme", b"ftp"),),
    "a scheme with a target": ((b":scheme", b"https://other.test/?"),),
    "transfer-encoding": ((b"transfer-encoding", b"chunked"),),
    "connection": ((b"connection", b"close"),),
    "upgrade": ((b"upgrade", b"websocket"),),
    "te": ((b"te", b"gzip"),),
    "an upper-case name": ((b"X-Up", b"1"),),
    "a colon in a name": ((b"x:y", b"1"),),
    "CR LF in a name": ((b"x\r\nhost", b"1"),),
    "CR LF in a value": ((b"x", b"a\r\nHost: other.test"),),
    "LF in a value": ((b"x", b"a\nb"),),
    "NUL in a value": ((b"x", b"a\x00b"),),
    "a request line in the path": ((b":path", b"/ HTTP/1.1\r\nHost: other.test\r\n"),),
    "a space in the path": ((b":path", b"/a b"),),
    "an absolute path": ((b":path", b"https://other.test/"),),
    "a path without slash": ((b":path", b"other"),),
    "a fragment": ((b":path", b"/a#b"),),
    "a request line in the method": ((b":method", b"GET / HTTP/1.1\r\nX: y\r\n\r\nGET"),),
    "a space in the method": ((b":method", b"GET /x"),),
    "another authority": ((b":authority", b"other.test"),),
    "CR LF in the authority": ((b":authority", b"api.test\r\nX: y"),),
    "another host": ((b"host", b"other.test"),),
    "two hosts": ((b"host", b"api.test"), (b"host", b"api.test")),
    "an unknown pseudo field": ((b":foo", b"1"),),
    "a status": ((b":status", b"200"),),
    "a protocol": ((b":protocol", b"websocket"),),
}


@pytest.mark.parametrize("what", HTTP2_HEADS)
def test_g21_http2_heads_that_http1_reads_differently(one: tuple[Ostiary, Upstream], what: str) -> None:
    proxy, api = one
    before, refused = len(api.requests), len(proxy.audit("request.refused"))
    base = {b":method": b"GET", b":scheme": b"https", b":authority": b"api.test", b":path": b"/"}
    base |= {name: value for name, value in HTTP2_HEADS[what] if name in base}
    fields = [*base.items(), *(pair for pair in HTTP2_HEADS[what] if pair[0] not in base)]
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        raw.send(PREFACE + frame(4, 0, 0) + frame(1, 5, 1, block(*fields)))
        got = read(raw, 0.5)
    assert got.goaway == 1 or set(got.statuses) <= {"400", "421"}, got
    assert got.goaway is not None or got.statuses
    assert len(api.requests) == before
    assert len(proxy.wait_audit("request.refused", refused + 1)) == refused + 1


@pytest.mark.parametrize(
    "target", ["http://api.test?x=1", "http://", "http:///x", "http://api.test:80:80/", "http:api.test"]
)
def test_g08_targets_that_are_no_url(one: tuple[Ostiary, Upstream], target: str) -> None:
    """Whatever a parser behind the edge would say, the answer is ours and recorded."""
    proxy, _ = one
    before = counted(proxy)
    with Raw(proxy.address("sidecar")) as raw:
        answer = raw.request(f"GET {target} HTTP/1.1\r\nHost: api.test\r\n\r\n")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert counted(proxy) == before + 1


def counted(proxy: Ostiary) -> float:
    """Refusals of this kind: records of callers that proved nothing are coalesced, the counter is not."""
    metrics = proxy.get("/metrics")[1].decode()
    found = [line for line in metrics.splitlines() if line.startswith('ostiary_refusals_total{code="bad_request"}')]
    return float(found[0].split()[-1]) if found else 0.0


# --- answers ---


def test_g21_trailers_of_an_answer_end_here(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    trailers = b"Set-Cookie: a=b\r\nX-Ostiary-Error: killed\r\n"

    def script(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\n" + trailers + b"\r\n")

    proxy = start(ostiary, upstream(script))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for _ in range(2):
            answer = raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert (answer.status, answer.body) == (200, b"hi")
            assert raw.buffer == b""
    assert [record["outcome"] for record in proxy.wait_audit("credential.closed", 2)] == ["ok", "ok"]


@pytest.mark.parametrize("tail", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL", b"surplus"])
def test_g21_what_follows_an_answer_is_no_answer(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], tail: bytes
) -> None:
    def script(seen: Seen, wire: Wire) -> None:
        if seen.target == "/first":
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" + tail)
        else:
            wire.answer(200, b"own")

    proxy = start(ostiary, upstream(script))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request("GET /first HTTP/1.1\r\nHost: api.test\r\n\r\n").body == b"hi"
        time.sleep(0.1)
        assert raw.request("GET /second HTTP/1.1\r\nHost: api.test\r\n\r\n").body == b"own"


@pytest.mark.parametrize(
    "body",
    [
        b"3;" + b"a" * 4_000_000,
        b"0\r\n" + b"X: y\r\n" * 500_000,
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"zz\r\n",
    ],
)
def test_f2_u4_answers_whose_chunks_are_none(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], body: bytes
) -> None:
    def script(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        time.sleep(1)

    proxy = start(ostiary, upstream(script))
    before = proxy.rss_bytes()
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
        assert raw.closed()
    assert proxy.rss_bytes() - before < 8 << 20
    assert proxy.wait_audit("credential.closed")[0]["outcome"] == "truncated"


def test_u2_interim_answers_without_end(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def script(seen: Seen, wire: Wire) -> None:
        with contextlib.suppress(OSError):
            for _ in range(3000):
                wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10)

    api = upstream(script)
    proxy = start(ostiary, api)
    answer = get(proxy.address("sidecar"), proxy.ca)
    assert (answer.status, answer.code) == (502, "upstream_protocol")
    assert len(api.requests) == 1
    assert proxy.wait_audit("credential.closed")[0]["code"] == "upstream_protocol"
    assert b"RecursionError" not in bytes(proxy.stderr)


# --- bodies that nobody takes ---


def pour(raw: Raw, seconds: float) -> None:
    """Sends as fast as the proxy reads."""
    raw.sock.settimeout(0.2)
    ended = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while time.monotonic() < ended:
            with contextlib.suppress(TimeoutError):
                raw.send(b"x" * 262_144)


def test_f2_g14_a_body_while_vault_is_slow_stays_in_the_socket(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("lookup-self"):
            send(handler, 200, {"data": {"ttl": 0}})
        elif "mounts" in handler.path:
            send(handler, 200, {"data": {"options": {"version": "2"}}})
        else:
            time.sleep(5)

    api = upstream()
    with scripted(slow) as (address, _):
        store = f'vault:\n  addresses: ["{address}"]\n  auth: {{method: token_file, file: vault-token}}'
        proxy = ostiary(POLICY.replace("TTL", "0"), start=False, upstreams={"api.test:443": api.port}, store=store)
        (proxy.folder / "vault-token").write_text(canary("token"))
        proxy.run()
        before = proxy.rss_bytes()
        with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
            raw.send(post("Content-Length: 1000000000", b""))
            pour(raw, 1.5)
            assert proxy.rss_bytes() - before < 24 << 20
    assert api.connections == 0
    assert proxy.wait_audit("request.refused")[0]["code"] == "secret_unavailable"


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_f2_a_body_while_the_upstream_does_not_accept_stays_in_the_socket(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], alpn: str
) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        proxy = start(ostiary, upstream(), upstreams={"api.test:443": full.getsockname()[1]})
        before = proxy.rss_bytes()
        with tunnel(proxy.address("sidecar"), proxy.ca, alpn=(alpn,)) as raw:
            if alpn == "h2":
                head = block(
                    (b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.test"), (b":path", b"/")
                )
                raw.send(PREFACE + frame(4, 0, 0) + frame(1, 4, 1, head))
                raw.sock.settimeout(0.2)
                ended = time.monotonic() + 2
                with contextlib.suppress(OSError):
                    while time.monotonic() < ended:
                        raw.send(frame(0, 0, 1, b"x" * 16_384) * 16)
            else:
                raw.send(post("Content-Length: 1000000000", b""))
                pour(raw, 2)
            assert proxy.rss_bytes() - before < 24 << 20


@pytest.mark.parametrize("what", ["the handshake", "nothing after CONNECT", "nothing at all"])
def test_c1_a_connection_that_says_nothing(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], what: str
) -> None:
    """Byte by byte, or not at all: before a caller is known and its handshake done, nothing waits for long."""
    api = upstream()
    proxy = start(ostiary, api, settings="limits: {header_timeout: 1s}\n")
    with Raw(proxy.address("sidecar")) as raw:
        if what != "nothing at all":
            assert raw.connect("api.test:443").status == 200
        began = time.monotonic()
        if what == "the handshake":
            with contextlib.suppress(OSError):
                for byte in b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03" + b"x" * 10:
                    raw.send(bytes([byte]))
                    time.sleep(0.1)
        assert raw.closed()
        assert 0.5 < time.monotonic() - began < 4
    assert api.connections == 0
    codes = [record["code"] for record in proxy.audit("request.refused")]
    assert codes == ([] if what == "nothing at all" else ["request_timeout"])


def test_c1_a_tunnel_whose_connect_came_in_two_pieces_lives_on(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """The deadline of a head ends with the head."""
    proxy = start(ostiary, upstream(), settings="limits: {header_timeout: 1s}\n")
    with Raw(proxy.address("sidecar")) as raw:
        raw.send(b"CONNECT api.test:443 HTTP/1.1\r\nHo")
        time.sleep(0.2)
        raw.send(b"st: api.test\r\n\r\n")
        assert raw.answer(method="CONNECT").status == 200
        raw.tls(proxy.ca, "api.test")
        for _ in range(2):
            assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200
            time.sleep(1.2)
        raw.send(b"GET / HTTP/1.1\r\nHo")
        time.sleep(0.2)
        raw.send(b"st: api.test\r\n\r\n")
        assert raw.answer().status == 200
        time.sleep(1.2)
        assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200


ALIASES = (
    "X_Api_Key",
    "x_API_key",
    "X-Api_Key",
    "AUTHORIZATION",
    "Proxy_Authorization",
    "X_HTTP_Method_Override",
)


@pytest.mark.parametrize("name", ALIASES)
def test_g19_g52_names_that_gateways_read_alike(one: tuple[Ostiary, Upstream], name: str) -> None:
    """Where names become variables, an underscore is a hyphen (RFC 3875 section 4.1.18)."""
    proxy, api = one
    mine = canary("caller")
    for fields in ((f"{name}: {mine}",), (f"{name}: {mine}",) * 2, (f"Connection: {name}", f"{name}: {mine}")):
        assert get(proxy.address("sidecar"), proxy.ca, "/", *fields).status == 200
        assert mine not in json.dumps(api.requests[-1].headers)
        assert (api.requests[-1].get("Authorization") or "").startswith("Bearer cnry-secret")
