"""HTTP/2 towards the caller, and on to upstreams of both kinds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import h2.errors
import pytest

from tests.harness.canaries import canary
from tests.harness.client import tunnel
from tests.harness.http2 import Http2, Stream
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire, echo


@pytest.fixture(params=["h2", "http/1.1"])
def started(
    request: pytest.FixtureRequest, ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> tuple[Ostiary, Upstream, str]:
    key = canary()
    api = upstream(echo, alpn=(request.param,))
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": key}}), api, key


def test_requests_side_by_side(started: tuple[Ostiary, Upstream, str]) -> None:
    proxy, api, key = started
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        ids = [
            client.send("POST", f"/{index}", ("x-index", str(index)), body=b"z" * index * 50_000) for index in range(4)
        ]
        ids.append(client.send("GET", "/none", ("authorization", "Bearer mine")))
        for index, stream in enumerate(ids):
            answer = client.answer(stream)
            assert answer.headers[":status"] == "200"
            shown = json.loads(answer.body)
            assert shown["target"] == ("/none" if index == 4 else f"/{index}")
            assert shown["body_bytes"] == (0 if index == 4 else index * 50_000)
            names = [name.lower() for name, _ in shown["headers"]]
            assert names.count("authorization") == 1
            assert "proxy-authorization" not in names
            seen = next(one for one in api.requests if one.target == shown["target"])
            assert seen.get("authorization") == f"Bearer {key}"
    assert len(proxy.wait_audit("credential.closed", 5)) == 5
    assert {record["outcome"] for record in proxy.audit("credential.closed")} == {"ok"}
    assert len(api.requests) == 5


def test_a_refusal_does_not_disturb_its_neighbours(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    policy = "workloads: {billing: {proofs: {any: true}}}\nroutes: {api: {match: {host: api.test, paths: /a}, allow: billing}}\n"
    proxy = ostiary(policy, upstreams={"api.test:443": api.port})
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        denied, granted = client.send("GET", "/b"), client.send("GET", "/a")
        refusal = client.answer(denied)
        assert (refusal.headers[":status"], refusal.headers["x-ostiary-error"]) == ("403", "path_denied")
        assert "connection" not in refusal.headers
        assert json.loads(refusal.body)["code"] == "path_denied"
        assert client.answer(granted).body == b"hello"
    assert [seen.target for seen in api.requests] == ["/a"]


def test_a_refused_upload_is_cut(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    policy = "workloads: {billing: {proofs: {any: true}}}\nroutes: {api: {match: {host: api.test, paths: /a}, allow: billing}}\n"
    proxy = ostiary(policy, upstreams={"api.test:443": api.port})
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        stream = client.conn.get_next_available_stream_id()
        client.streams[stream] = Stream()
        client.conn.send_headers(
            stream, [(":method", "POST"), (":scheme", "https"), (":authority", "api.test"), (":path", "/b")]
        )
        client.conn.send_data(stream, b"x" * 16_000)
        raw.send(client.conn.data_to_send())
        while not client.streams[stream].headers:
            client.receive()
        assert client.streams[stream].headers[":status"] == "403"
        assert client.answer(client.send("GET", "/a")).body == b"hello"
    assert api.connections == 1


def test_a_client_that_offers_nothing_known_gets_no_protocol(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    api = upstream()
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=()) as raw:
        assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status == 200


def test_c1_a_caller_that_does_not_read_holds_its_upstream_back(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """The upstream has 96 MiB to give; the caller opens its window for none of it, then for all."""
    sent = [0]

    def large(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100663296\r\n\r\n")
        for _ in range(96):
            wire.send(b"z" * (1 << 20))
            sent[0] += 1 << 20

    proxy = ostiary(upstreams={"api.test:443": upstream(large).port}, secrets={"secret/egress/api": {"key": canary()}})
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        raw.sock.settimeout(30)
        client = Http2(raw)
        stream = client.send("GET", "/large")
        while not client.streams[stream].headers:
            client.receive()
        before = proxy.rss_bytes()
        time.sleep(1.5)
        assert proxy.rss_bytes() - before < 32 << 20
        assert sent[0] < 64 << 20
        assert len(client.answer(stream).body) == 96 << 20


def test_an_upstream_that_answers_early_and_wants_no_more(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """RFC 9113 section 8.1: the answer is complete; the reset behind it says that the rest need not be sent."""
    api = upstream(alpn=("h2",), early=True)
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        stream = client.send("POST", "/a", ends=False)
        client.conn.send_data(stream, b"x" * 1000)
        raw.send(client.conn.data_to_send())
        answer = client.answer(stream)
        assert (answer.headers[":status"], bytes(answer.body), answer.reset) == ("200", b"early", None)
        # A caller that goes on all the same is stopped after a while.
        for _ in range(6):
            client.conn.send_data(stream, b"y" * 16_000)
        raw.send(client.conn.data_to_send())
        while answer.reset is None:
            client.receive()
        assert answer.reset == h2.errors.ErrorCodes.CANCEL
    (closed,) = proxy.wait_audit("credential.closed")
    assert closed["outcome"] == "ok"
