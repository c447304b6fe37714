"""Heads between HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import pytest
from mitmproxy import http

from addons.head import Fields
from ostiary.engines.mitm.versions import for_http1, for_http2, has_body, lower_case


def request(method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> http.Request:
    return http.Request("a.test", 443, method, b"https", b"", b"/", version, http.Headers(), None, None, 0.0, None)


def answer(status: int, *fields: tuple[bytes, bytes]) -> http.Response:
    return http.Response(b"HTTP/2.0", status, b"", http.Headers(fields), None, None, 0.0, None)


def test_a_request_loses_what_is_of_one_hop() -> None:
    given: Fields = (
        (b"Host", b"a.test"), (b"X-A", b"1"), (b"Connection", b"TE"), (b"Keep-Alive", b"1"), (b"Proxy-Connection", b"x"), (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"x"), (b"Transfer-Encoding", b"chunked"), (b"TE", b"Trailers"), (b"Content-Length", b"4"), (b"x-a", b"2"),
    )  # fmt: skip
    assert for_http2(given) == ((b"x-a", b"1"), (b"te", b"trailers"), (b"content-length", b"4"), (b"x-a", b"2"))


@pytest.mark.parametrize("value", [b"gzip", b"trailers, deflate", b""])
def test_no_other_coding_is_asked_for(value: bytes) -> None:
    assert for_http2(((b"te", value),)) == ()


@pytest.mark.parametrize(
    ("method", "status", "given", "ends", "version", "expected"),
    [
        (b"GET", 200, (), False, b"HTTP/1.1", ((b"Transfer-Encoding", b"chunked"),)),
        (b"GET", 200, (), False, b"HTTP/1.0", ((b"Connection", b"close"),)),
        (b"GET", 200, (), True, b"HTTP/1.1", ((b"Content-Length", b"0"),)),
        (b"GET", 200, ((b"content-length", b"5"),), False, b"HTTP/1.1", ((b"content-length", b"5"),)),
        (b"HEAD", 200, (), False, b"HTTP/1.1", ()),
        (b"HEAD", 200, ((b"content-length", b"5"),), True, b"HTTP/1.1", ((b"content-length", b"5"),)),
        (b"GET", 204, ((b"content-length", b"5"),), False, b"HTTP/1.1", ()),
        (b"GET", 304, ((b"content-length", b"5"),), True, b"HTTP/1.1", ((b"content-length", b"5"),)),
        (b"GET", 200, ((b"transfer-encoding", b"gzip"), (b"connection", b"x")), True, b"HTTP/1.1", ((b"Content-Length", b"0"),)),
    ],
)  # fmt: skip
def test_an_answer_gets_a_framing(
    method: bytes, status: int, given: Fields, ends: bool, version: bytes, expected: Fields
) -> None:
    came = answer(status, *given)
    made = for_http1(came, request(method, version), ends=ends)
    assert made.data.headers.fields == expected
    assert (made.data.http_version, made.data.status_code) == (b"HTTP/1.1", status)
    assert came.data.headers.fields == given


def test_a_status_that_nobody_knows_has_no_phrase() -> None:
    assert for_http1(answer(299), request(), ends=True).data.reason == b""
    assert for_http1(answer(404), request(), ends=True).data.reason == b"Not Found"


def test_what_may_have_content() -> None:
    assert has_body(b"GET", 200)
    assert not any((has_body(b"HEAD", 200), has_body(b"GET", 204), has_body(b"GET", 304), has_body(b"GET", 100)))


def test_trailers_are_lower_case() -> None:
    assert lower_case(((b"X-Sum", b"A"),)) == ((b"x-sum", b"A"),)
