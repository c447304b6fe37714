"""`http2:` of a route: HTTP/1.1 callers to upstreams of HTTP/2 and back, and upstreams that are never spoken to so."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable

import pytest

from tests.e2e.test_trailers import chunked
from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, StreamScript, StreamWire, Upstream, Wire, echo, echo_body

POLICY = """
workloads:
  billing: {{proofs: [{{any: true}}]}}
routes:
  api:
    match: {{host: api.test}}
    allow: billing
    secret: {{path: secret/egress/api, field: key, ttl: 0}}
    inject: {{bearer: "{{secret}}"}}
    http2: {0}
"""
ONE_HOP = {"host", "connection", "transfer-encoding", "keep-alive", "upgrade", "proxy-connection", "expect"}
GET = "GET /{} HTTP/1.1\r\nHost: api.test\r\n\r\n"
type Start = Callable[..., tuple[Ostiary, Upstream, str]]


@pytest.fixture
def started(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> Start:
    def start(
        word: str = "prefer",
        script: StreamScript | None = None,
        *,
        alpn: tuple[str, ...] = ("h2",),
        early: bool = False,
        policy: str = POLICY,
    ) -> tuple[Ostiary, Upstream, str]:
        key = canary()
        api = upstream(echo, alpn=alpn, http2_script=script, early=early)
        secrets = {"secret/egress/api": {"key": key}}
        return ostiary(policy.format(word), upstreams={"api.test:443": api.port}, secrets=secrets), api, key

    return start


def outcomes(proxy: Ostiary, count: int) -> set[str]:
    return {str(record["outcome"]) for record in proxy.wait_audit("credential.closed", count)}


def test_a_head_of_http2_is_made_of_one_of_http1(started: Start) -> None:
    proxy, api, key = started()
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(
            b"GET /a?b=c HTTP/1.1\r\nHost: API.test\r\nX-Mixed-Case: Kept\r\nCookie: a=b; c=d\r\nAuthorization: Bearer mine\r\n"
            b"TE: trailers\r\nConnection: TE, X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\r\n"
        )
        shown = json.loads(raw.answer().body)
    (seen,) = api.requests
    assert seen.http2
    names = [name for name, _ in seen.headers]
    assert names[:4] == [":method", ":scheme", ":path", ":authority"]
    assert (seen.get(":method"), seen.get(":scheme"), seen.get(":path"), seen.get(":authority")) == ("GET", "https", "/a?b=c", "api.test")  # fmt: skip
    assert not ONE_HOP & set(names)
    assert "x-hop" not in names
    assert all(name == name.lower() for name in names)
    assert (seen.get("x-mixed-case"), seen.get("cookie"), seen.get("te")) == ("Kept", "a=b; c=d", "trailers")
    assert seen.get("authorization") == f"Bearer {key}"
    assert shown["target"] == "/a?b=c"
    assert outcomes(proxy, 1) == {"ok"}


def test_bodies_of_both_framings(started: Start) -> None:
    """On one kept connection, towards the caller and towards the upstream."""
    proxy, api, key = started()
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"POST /length HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\n\r\nping")
        assert raw.answer().json()["body_bytes"] == 4
        raw.send(b"POST /none HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n")
        assert raw.answer().json()["body_bytes"] == 0
        raw.send(b"POST /chunks HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n4\r\npong\r\n0\r\nX-Check: 1\r\nAuthorization: mine\r\n\r\n")  # fmt: skip
        assert raw.answer().json()["body_bytes"] == 8
        raw.send(b"POST /continue HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert raw.head().status == 100
        raw.send(b"ping")
        assert raw.answer().json()["body_bytes"] == 4
    assert [seen.get("content-length") for seen in api.requests] == ["4", "0", None, "4"]
    assert [seen.trailers for seen in api.requests] == [[], [], [("x-check", "1")], []]
    assert {seen.get("authorization") for seen in api.requests} == {f"Bearer {key}"}
    assert not any(ONE_HOP & {name for name, _ in seen.headers} for seen in api.requests)
    assert api.connections == 1
    assert outcomes(proxy, 4) == {"ok"}


def test_a_large_body_each_way(started: Start) -> None:
    size = 24 << 20
    body = b"0123456789abcdef" * (size >> 4)

    def large(seen: Seen, wire: StreamWire) -> None:
        wire.head(200, (("x-sum", seen.body_sha256),))
        wire.send(body, ends=True)

    proxy, _, _ = started(script=large)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.sock.settimeout(60)
        before = proxy.rss_bytes()
        raw.send(b"PUT /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % size + body)
        answer = raw.answer()
        assert answer.get("Transfer-Encoding") == "chunked"
        assert answer.get("x-sum") == hashlib.sha256(body).hexdigest()
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
        assert proxy.rss_bytes() - before < 48 << 20
    assert outcomes(proxy, 1) == {"ok"}


def test_c1_a_caller_that_does_not_read_holds_its_upstream_back(started: Start) -> None:
    sent = [0]

    def large(seen: Seen, wire: StreamWire) -> None:
        wire.head()
        for _ in range(96):
            wire.send(b"z" * (1 << 20))
            sent[0] += 1 << 20
        wire.send(b"", ends=True)

    proxy, _, _ = started(script=large)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.sock.settimeout(30)
        before = proxy.rss_bytes()
        raw.send(GET.format("large").encode())
        assert raw.head().status == 200
        time.sleep(1.5)
        assert proxy.rss_bytes() - before < 32 << 20
        assert sent[0] < 64 << 20
        size = 0
        while length := int(raw.read_until(b"\r\n").strip(), 16):
            size += len(raw.read_exactly(length + 2)) - 2
        assert size == 96 << 20
    assert outcomes(proxy, 1) == {"ok"}


def test_events_arrive_one_by_one(started: Start) -> None:
    def events(seen: Seen, wire: StreamWire) -> None:
        wire.head(200, (("content-type", "text/event-stream"),))
        for number in range(4):
            wire.send(b"data: %d\n\n" % number)
            time.sleep(0.3)
        wire.send(b"", ends=True)

    proxy, _, _ = started(script=events)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(GET.format("events").encode())
        assert raw.head().get("Transfer-Encoding") == "chunked"
        arrived: list[float] = []
        while size := int(raw.read_until(b"\r\n").strip(), 16):
            assert raw.read_exactly(size + 2) == b"data: %d\n\n\r\n" % len(arrived)
            arrived.append(time.monotonic())
        assert raw.read_exactly(2) == b"\r\n"
        assert len(arrived) == 4
        assert all(later - earlier > 0.1 for earlier, later in itertools.pairwise(arrived))
    assert outcomes(proxy, 1) == {"ok"}


def test_trailers_of_answers(started: Start) -> None:
    def script(seen: Seen, wire: StreamWire) -> None:
        wire.head()
        wire.send(b"hello")
        wire.trailers(("grpc-status", "0"), ("x-ostiary-error", "route_denied"))

    proxy, _, _ = started(script=script)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for asks, expected in (("TE: trailers\r\nConnection: TE\r\n", ["grpc-status: 0"]), ("", [])):
            raw.send(f"GET /a HTTP/1.1\r\nHost: api.test\r\n{asks}\r\n".encode())
            assert raw.head().get("Transfer-Encoding") == "chunked"
            assert chunked(raw) == (b"hello", expected)
    assert outcomes(proxy, 2) == {"ok"}


@pytest.mark.parametrize(
    ("method", "status", "headers", "framing"),
    [
        ("HEAD", 200, (("content-length", "77"),), {"content-length": "77"}),
        ("HEAD", 200, (), {}),
        ("GET", 204, (), {}),
        ("GET", 304, (("etag", '"1"'),), {}),
        ("GET", 200, (), {"content-length": "0"}),
        ("GET", 200, (("content-length", "0"),), {"content-length": "0"}),
    ],
)
def test_answers_without_a_body(
    started: Start, method: str, status: int, headers: tuple[tuple[str, str], ...], framing: dict[str, str]
) -> None:
    """What follows on the connection is the next answer."""

    def script(seen: Seen, wire: StreamWire) -> None:
        if seen.target == "/first":
            wire.head(status, headers, ends=True)
            return
        wire.head(200, (("content-length", "5"),))
        wire.send(b"after", ends=True)

    proxy, api, _ = started(script=script)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(f"{method} /first HTTP/1.1\r\nHost: api.test\r\n\r\n".encode())
        first = raw.answer(method=method)
        assert first.status == status
        shown = {name.lower(): value for name, value in first.headers}
        assert {name: shown[name] for name in ("content-length", "transfer-encoding") if name in shown} == framing
        assert raw.request(GET.format("second")).body == b"after"
    assert api.connections == 1
    assert outcomes(proxy, 2) == {"ok"}


def test_g21_content_where_none_may_be_is_no_next_answer(started: Start) -> None:
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"

    def script(seen: Seen, wire: StreamWire) -> None:
        wire.head(204 if seen.target == "/first" else 200)
        wire.send(forged if seen.target == "/first" else b"after", ends=True)

    proxy, _, _ = started(script=script)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(GET.format("first")).status == 204
        assert raw.request(GET.format("second")).body == b"after"


def test_requests_that_are_sent_ahead(started: Start) -> None:
    def script(seen: Seen, wire: StreamWire) -> None:
        wire.head()
        wire.send(echo_body(seen), ends=True)

    proxy, api, _ = started(script=script)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send("".join(GET.format(number) for number in range(5)).encode())
        assert [raw.answer().json()["target"] for _ in range(5)] == [f"/{number}" for number in range(5)]
    assert api.connections == 1
    assert outcomes(proxy, 5) == {"ok"}


def test_a_caller_of_http_1_0_gets_an_answer_that_ends_with_its_connection(started: Start) -> None:
    proxy, _, _ = started()
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET /a HTTP/1.0\r\nHost: api.test\r\n\r\n")
        answer = raw.answer()
        assert (answer.status, answer.get("Transfer-Encoding"), answer.json()["target"]) == (200, None, "/a")


@pytest.mark.parametrize("end", ["reset", "go_away"])
def test_u8_an_upstream_that_ends_a_stream(started: Start, end: str) -> None:
    """Before its answer: 502 and the connection stays usable. Inside it: the answer is cut. Nothing is sent twice."""

    def script(seen: Seen, wire: StreamWire) -> None:
        if seen.target == "/ok":
            wire.head(200, (("content-length", "2"),))
            wire.send(b"ok", ends=True)
            return
        if seen.target == "/inside":
            wire.head()
            wire.send(b"part")
        getattr(wire, end)()

    proxy, api, _ = started(script=script)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        refusal = raw.request(GET.format("before"))
        assert (refusal.status, refusal.code) == (502, "upstream_protocol")
        assert raw.request(GET.format("ok")).body == b"ok"
        raw.send(GET.format("inside").encode())
        assert raw.head().status == 200
        with pytest.raises(ConnectionError):
            chunked(raw)
    assert outcomes(proxy, 3) == {"upstream_error", "ok", "truncated"}
    assert [seen.target for seen in api.requests] == ["/before", "/ok", "/inside"]


def test_an_upstream_that_answers_early_and_wants_no_more(started: Start) -> None:
    """RFC 9113 section 8.1. The caller gets the whole answer while it still sends."""
    proxy, _, _ = started(early=True)
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for _ in range(2):
            raw.send(b"POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
            assert raw.answer().body == b"early"
            raw.send(b"x" * 500)
    assert outcomes(proxy, 2) == {"ok"}


# --- what the word decides ---


@pytest.mark.parametrize("caller", ["h2", "http/1.1"])
@pytest.mark.parametrize(
    ("word", "expected"),
    [("auto", {"h2": True, "http/1.1": False}), ("prefer", {"h2": True, "http/1.1": True}), ("never", {"h2": False, "http/1.1": False})],
)  # fmt: skip
def test_what_is_spoken_with_an_upstream_of_both(
    started: Start, caller: str, word: str, expected: dict[str, bool]
) -> None:
    proxy, api, key = started(word, alpn=("h2", "http/1.1"))
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=(caller,)) as raw:
        if caller == "h2":
            client = Http2(raw)
            answer = client.answer(client.send("POST", "/a", body=b"ping"))
            assert (answer.headers[":status"], json.loads(answer.body)["body_bytes"]) == ("200", 4)
        else:
            assert raw.request(GET.format("a")).status == 200
    (seen,) = api.requests
    assert seen.http2 == expected[caller]
    assert seen.get("authorization") == f"Bearer {key}"
    assert outcomes(proxy, 1) == {"ok"}


def test_an_upstream_of_http1_alone_is_spoken_to_so(started: Start) -> None:
    proxy, api, _ = started("prefer", alpn=("http/1.1",))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(GET.format("a")).json()["target"] == "/a"
    assert [seen.http2 for seen in api.requests] == [False]


@pytest.mark.parametrize(("word", "chosen"), [("prefer", "h2"), ("never", "http/1.1")])
def test_what_a_caller_that_offers_both_gets(started: Start, word: str, chosen: str) -> None:
    proxy, _, _ = started(word)
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("http/1.1", "h2")) as raw:
        assert raw.sock.selected_alpn_protocol() == chosen  # type: ignore[attr-defined]  # it is a TLS socket by now


def test_connections_of_different_words_are_not_shared(started: Start) -> None:
    mixed = """
workloads:
  billing: {{proofs: [{{any: true}}]}}
routes:
  first: {{match: {{host: api.test, paths: /first}}, allow: billing, http2: prefer}}
  second: {{match: {{host: api.test, paths: /second}}, allow: billing, http2: never}}
  third: {{match: {{host: api.test, paths: /third}}, allow: billing}}
"""
    proxy, api, _ = started(policy=mixed, alpn=("h2", "http/1.1"))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        for path in ("first", "first", "second", "second", "third"):
            assert raw.request(GET.format(path)).status == 200
    assert [(seen.target, seen.http2) for seen in api.requests] == [
        ("/first", True), ("/first", True), ("/second", False), ("/second", False), ("/third", False),
    ]  # fmt: skip
    assert api.connections == 3


def test_a_word_that_a_reload_brings(started: Start, engine: str) -> None:
    """The fast lane keeps the tunnels that it has, and counts the word from the next one on."""
    proxy, api, _ = started("auto", alpn=("h2", "http/1.1"))
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(GET.format("before")).status == 200
        proxy.reload(POLICY.format("prefer"))
        assert raw.request(GET.format("open")).status == 200
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        assert raw.request(GET.format("next")).status == 200
    assert [(seen.target, seen.http2) for seen in api.requests] == [
        ("/before", False), ("/open", engine != "fast"), ("/next", True),
    ]  # fmt: skip


def test_a_websocket_goes_over_http1(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def switch(seen: Seen, wire: Wire) -> None:
        assert seen.get("upgrade") == "websocket"
        wire.send(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x82\x04data")  # fmt: skip
        wire.close()

    api = upstream(switch, alpn=("h2", "http/1.1"))
    proxy = ostiary(
        POLICY.format("prefer"), upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}}
    )
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        _opens(raw)
        assert raw.read_exactly(6) == b"\x82\x04data"
    assert [seen.http2 for seen in api.requests] == [False]


def _opens(raw: Raw) -> None:
    raw.send(
        b"GET /ws HTTP/1.1\r\nHost: api.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert raw.head().status == 101
