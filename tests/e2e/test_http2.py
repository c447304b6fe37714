"""HTTP/2 towards the caller, and on to upstreams of both kinds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire, echo


@dataclass
class Stream:
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: bool = False


class Http2:
    """A small client over a tunnel."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.conn.initiate_connection()
        self.streams: dict[int, Stream] = {}

    def send(
        self, method: str, path: str, *headers: tuple[str, str], body: bytes | None = None, authority: str = "api.test"
    ) -> int:
        stream = self.conn.get_next_available_stream_id()
        self.streams[stream] = Stream()
        pseudo = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
        self.conn.send_headers(stream, [*pseudo, *headers], end_stream=body is None)
        if body is not None:
            self.body(stream, body)
        self.raw.send(self.conn.data_to_send())
        return stream

    def body(self, stream: int, body: bytes) -> None:
        while body:
            window = min(self.conn.local_flow_control_window(stream), self.conn.max_outbound_frame_size, len(body))
            if not window:
                self.raw.send(self.conn.data_to_send())
                self.receive()
                continue
            self.conn.send_data(stream, body[:window])
            body = body[window:]
        self.conn.end_stream(stream)

    def receive(self) -> None:
        data = self.raw.sock.recv(65536)
        assert data, "closed"
        for event in self.conn.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived) and event.headers:
                self.streams[event.stream_id].headers = {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                self.streams[event.stream_id].body += event.data
                self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.streams[event.stream_id].ended = True
            elif isinstance(event, h2.events.StreamReset):
                self.streams[event.stream_id].ended = self.streams[event.stream_id].reset = True
        self.raw.send(self.conn.data_to_send())

    def answer(self, stream: int) -> Stream:
        while not self.streams[stream].ended:
            self.receive()
        return self.streams[stream]


@pytest.fixture(params=["h2", "http/1.1"])
def started(
    request: pytest.FixtureRequest, ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> tuple[Ostiary, Upstream, str]:
    key = canary()
    api = upstream(echo, alpn=(request.param,))
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": key}}), api, key


def test_requests_side_by_side(started: tuple[Ostiary, Upstream, str]) -> None:
    proxy, api, key = started
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2", "http/1.1")) as raw:
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
            assert {name.lower(): value for name, value in shown["headers"]}["authorization"] == f"Bearer {key}"
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
