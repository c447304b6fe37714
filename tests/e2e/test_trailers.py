"""Trailers pass over HTTP/1.1 and HTTP/2, without what only a head may say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Raw, tunnel
from tests.harness.http2 import Http2
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire

KINDS = ("http/1.1", "h2")
SENT = (("x-check", "1"), ("authorization", "Bearer mine"), ("x-api-key", "mine"), ("x-http-method-override", "DELETE"), ("x-ostiary-id", "1"))  # fmt: skip
ANSWERED = (("grpc-status", "0"), ("x-sum", "a b"), ("x-ostiary-error", "route_denied"), ("set-cookie", "a=b"))


def with_trailers(seen: Seen, wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n5\r\nhello\r\n0\r\n")
    wire.send("".join(f"{name}: {value}\r\n" for name, value in ANSWERED).encode() + b"\r\n")


def started(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], *offers: str
) -> tuple[Ostiary, Upstream]:
    api = upstream(with_trailers, alpn=offers, trailers=ANSWERED)
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}}), api


def chunked(raw: Raw) -> tuple[bytes, list[str]]:
    """A chunked body and the lines behind it."""
    body = b""
    while size := int(raw.read_until(b"\r\n").strip(), 16):
        body += raw.read_exactly(size)
        raw.read_exactly(2)
    lines: list[str] = []
    while (line := raw.read_until(b"\r\n")) != b"\r\n":
        lines.append(line.decode().strip())
    return body, lines


@pytest.mark.parametrize("caller", KINDS)
@pytest.mark.parametrize("offers", [("http/1.1",), ("h2", "http/1.1")])
def test_both_directions(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], caller: str, offers: tuple[str, ...]
) -> None:
    """An HTTP/1.1 caller reaches every upstream over HTTP/1.1."""
    proxy, api = started(ostiary, upstream, *offers)
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=(caller,)) as raw:
        for _ in range(2):  # The connection stays usable.
            if caller == "h2":
                client = Http2(raw)
                answer = client.answer(client.send("POST", "/a", ("te", "trailers"), body=b"ping", trailers=SENT))
                assert (answer.headers[":status"], answer.reset) == ("200", None)
                assert answer.trailers == {"grpc-status": "0", "x-sum": "a b"}
                break
            sent = "".join(f"{name}: {value}\r\n" for name, value in SENT)
            raw.send(f"POST /a HTTP/1.1\r\nHost: api.test\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n0\r\n{sent}\r\n".encode())  # fmt: skip
            assert raw.head().status == 200
            assert chunked(raw)[1] == ["grpc-status: 0", "x-sum: a b"]
    for seen in api.requests:
        assert seen.complete
        assert seen.body_bytes == 4
        assert seen.trailers == [("x-check", "1")]
        assert seen.get("te") == "trailers"
        assert seen.http2 == (caller == "h2" and "h2" in offers)
        assert seen.get("connection") == (None if seen.http2 else "TE")
    assert {record["outcome"] for record in proxy.wait_audit("credential.closed", len(api.requests))} == {"ok"}


def test_a_caller_that_does_not_ask_gets_none(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """RFC 9110 section 6.5.1."""
    proxy, api = started(ostiary, upstream, "http/1.1")
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
        assert chunked(raw)[1] == []
    assert api.requests[0].get("te") is None


def test_names_are_lower_case_in_http2(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    """RFC 9113 section 8.2.1: another spelling is malformed."""

    def script(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: A\r\n\r\n")

    api = upstream(script)
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        assert client.answer(client.send("GET", "/a", ("te", "trailers"))).trailers == {"x-sum": "A"}


def test_trailers_without_end_are_cut(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    def endless(seen: Seen, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n")
        for _ in range(64):
            wire.send(b"x-more: " + b"y" * 4000 + b"\r\n")

    api = upstream(endless)
    proxy = ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}})
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert raw.head().status == 200
        with pytest.raises(ConnectionError):
            chunked(raw)
    (closed,) = proxy.wait_audit("credential.closed")
    assert closed["outcome"] == "truncated"


def test_g21_an_empty_frame_does_not_end_the_body(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    """Written as a chunk it would: what follows would be the next request of the upstream's connection."""
    proxy, api = started(ostiary, upstream, "http/1.1")
    with tunnel(proxy.address("sidecar"), proxy.ca, alpn=("h2",)) as raw:
        client = Http2(raw)
        stream = client.send("POST", "/a", body=None, ends=False)
        pieces = (b"one", b"", b"GET /b HTTP/1.1\r\nHost: api.test\r\n\r\n")
        for piece in pieces:
            client.conn.send_data(stream, piece)
            raw.send(client.conn.data_to_send())
        client.conn.end_stream(stream)
        raw.send(client.conn.data_to_send())
        assert client.answer(stream).headers[":status"] == "200"
    assert [(seen.target, seen.body_bytes) for seen in api.requests] == [("/a", sum(map(len, pieces)))]
