"""A flow of the fast lane is one of mitmproxy's, in all that an addon may do with it."""

from __future__ import annotations

from typing import Any, cast

from mitmproxy import http
from mitmproxy.connection import Client, Server

from addons.edge import HeadLimits, judge_head
from ostiary.engines.fast.flows import new_client, new_flow, no_server
from ostiary.engines.mitm.http1 import request_of
from ostiary.engines.mitm.upstream import parse_answer

HEAD = b"POST /v1?a=b HTTP/1.1\r\nHost: api.test\r\nCookie: a=1; b=2\r\nX-Two: 1\r\nx-two: 2\r\nContent-Length: 3"


def client() -> Client:
    return Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)


def ours() -> http.HTTPFlow:
    head = judge_head(HEAD + b"\r\n\r\n", tunnelled=True, limits=HeadLimits())
    request, size = request_of(head), head.size
    assert size == 3
    request.data.scheme, request.data.host, request.data.port = b"https", "api.test", 443
    return new_flow(client(), Server(address=("api.test", 443)), request)


def theirs() -> http.HTTPFlow:
    """The same by mitmproxy's own constructors."""
    flow = http.HTTPFlow(client(), Server(address=("api.test", 443)), live=True)
    fields = ((b"Host", b"api.test"), (b"Cookie", b"a=1; b=2"), (b"X-Two", b"1"), (b"x-two", b"2"), (b"Content-Length", b"3"))  # fmt: skip
    flow.request = http.Request(
        "api.test", 443, b"POST", b"https", b"", b"/v1?a=b", b"HTTP/1.1", http.Headers(fields), None, None, 1.0, 1.0
    )
    return flow


def test_the_same_attributes_with_the_same_types() -> None:
    mine, real = ours(), theirs()
    assert type(mine) is type(real)
    assert set(vars(mine)) == set(vars(real))
    for name, value in vars(real).items():
        assert type(vars(mine)[name]) is type(value), name
    assert set(vars(mine.request.data)) == set(vars(real.request.data))
    for name, value in vars(real.request.data).items():
        assert type(vars(mine.request.data)[name]) is type(value), name


def test_the_same_state() -> None:
    def timeless(state: object) -> object:
        if isinstance(state, dict):
            return {
                key: timeless(value) for key, value in state.items() if key != "id" and not key.startswith("timestamp")
            }
        return state

    mine, real = ours(), theirs()
    mine.response, size = parse_answer(b"HTTP/1.1 200 OK\r\nX-A: 1", to_head=False)
    assert size == -1
    real.response = http.Response(b"HTTP/1.1", 200, b"OK", http.Headers([(b"X-A", b"1")]), None, None, 1.0, None)
    assert timeless(mine.get_state()) == timeless(real.get_state())
    assert http.HTTPFlow.from_state(mine.get_state()).get_state() == mine.get_state()


def test_copies_stand_by_themselves() -> None:
    mine = ours()
    other: Any = mine.copy()  # type: ignore[no-untyped-call]  # untyped in mitmproxy
    assert other.id != mine.id
    assert not other.live
    assert mine.live
    other.request.headers["Host"] = "elsewhere.test"
    other.request.path = "/other"
    other.metadata["x"] = 1
    assert mine.request.headers["Host"] == "api.test"
    assert mine.request.path == "/v1?a=b"
    assert not mine.metadata


def test_flows_share_nothing() -> None:
    first, second = ours(), ours()
    assert first.id != second.id
    assert len(first.id) >= 16
    first.metadata["x"] = 1
    first.request.headers["X-Mine"] = "1"
    first.comment, first.marked = "seen", "*"
    assert not second.metadata
    assert "X-Mine" not in second.request.headers
    assert (second.comment, second.marked) == ("", "")
    third = ours()
    assert (third.response, third.error, third.websocket, third.comment) == (None, None, None, "")


def test_what_addons_use() -> None:
    mine = ours()
    request = mine.request
    assert request.pretty_url == "https://api.test/v1?a=b"
    assert request.url in {"https://api.test:443/v1?a=b", "https://api.test/v1?a=b"}
    assert (request.method, request.http_version, request.scheme, request.host, request.port) == (
        "POST",
        "HTTP/1.1",
        "https",
        "api.test",
        443,
    )
    assert request.query["a"] == "b"
    assert request.cookies["b"] == "2"
    assert request.headers.get_all("X-TWO") == ["1", "2"]
    assert request.headers["content-length"] == "3"
    request.headers["X-New"] = "3"
    del request.headers["Cookie"]
    assert b"X-New" in bytes(request.headers)
    assert "api.test" in repr(mine)
    assert "Request(POST" in repr(request)
    assert mine.timestamp_created > 1_600_000_000
    assert mine.timestamp_start >= mine.timestamp_created - 5
    assert mine.killable
    mine.kill()  # type: ignore[no-untyped-call]  # untyped in mitmproxy
    assert mine.error is not None
    assert ours().error is None


def test_modification_and_backup() -> None:
    mine: Any = ours()  # mitmproxy types these in part
    assert not mine.modified()
    mine.backup()
    mine.request.path = "/changed"
    assert mine.modified()
    mine.revert()
    assert mine.request.path == "/v1?a=b"


def test_a_client_and_a_server_are_as_mitmproxy_makes_them() -> None:
    class Accepted:
        def get_extra_info(self, name: str) -> Any:
            return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name)

    mine, real = new_client(cast("Any", Accepted()), "number"), client()
    assert (mine.id, mine.peername, mine.sockname, mine.connected) == ("number", real.peername, real.sockname, True)
    for ours_, theirs_ in ((mine, real), (no_server(), Server(address=None))):
        assert set(vars(ours_)) == set(vars(theirs_))
        for name, value in vars(theirs_).items():
            assert type(vars(ours_)[name]) is type(value), name
    one, other = no_server(), no_server()
    one.address = ("api.test", 443)
    assert one.id != other.id
    assert other.address is None
    assert Server(address=None).address is None
