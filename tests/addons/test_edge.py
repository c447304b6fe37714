"""The strict edge: raw heads that another parser could read differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.edge import HeadLimits, judge_head, judge_http2, judge_partial
from addons.refusal import Code, Refusal

LIMITS = HeadLimits()


def refused(raw: bytes, *, tunnelled: bool = True) -> Code:
    with pytest.raises(Refusal) as caught:
        judge_head(raw, tunnelled=tunnelled, limits=LIMITS)
    return caught.value.code


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /x?y=z HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nX: a\tb \xe9\r\n\r\n",
        b"GET / HTTP/1.0\r\nX-Empty:\r\nX-Space:   \r\n\r\n",
    ],
)
def test_ordinary_heads_pass(raw: bytes) -> None:
    judge_head(raw, tunnelled=True, limits=LIMITS)


def test_connect_and_absolute_form_pass_outside_a_tunnel() -> None:
    judge_head(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", tunnelled=False, limits=LIMITS)
    judge_head(b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", tunnelled=False, limits=LIMITS)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\xc3T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nhOST: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
        b"GET https://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT b:443 HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_ambiguous_heads_are_refused_inside_a_tunnel(raw: bytes) -> None:
    assert refused(raw) is Code.BAD_REQUEST


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT /a HTTP/1.1\r\n\r\n",
        b"CONNECT http://a HTTP/1.1\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_no_proxy_request_is_refused_outside(raw: bytes) -> None:
    assert refused(raw, tunnelled=False) is Code.BAD_REQUEST


def test_caps() -> None:
    assert (
        refused(b"GET /" + b"a" * LIMITS.request_line_bytes + b" HTTP/1.1\r\nHost: a\r\n\r\n") is Code.HEADERS_TOO_LARGE
    )
    assert refused(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (LIMITS.header_count + 1) + b"\r\n") is Code.HEADERS_TOO_LARGE
    assert refused(b"GET / HTTP/1.1\r\nX: " + b"y" * LIMITS.header_bytes + b"\r\n\r\n") is Code.HEADERS_TOO_LARGE
    with pytest.raises(Refusal):
        judge_partial(b"x" * (LIMITS.request_line_bytes + 1), LIMITS)
    judge_partial(b"GET / HTTP/1.1\r\nX: half", LIMITS)


@given(st.binary(max_size=200))
def test_no_control_byte_or_bare_line_end_ever_passes(noise: bytes) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + noise + b"\r\n\r\n"
    try:
        judge_head(raw, tunnelled=True, limits=LIMITS)
    except Refusal:
        return
    lines = raw.split(b"\r\n")
    assert all(not set(line) & (set(range(32)) - {9} | {127}) for line in lines)
    assert sum(line.lower().startswith(b"host:") for line in lines) == 1


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        (b"/ x", ()),
        (b"x", ()),
        (b"/#", ()),
        (b"/", ((b"Upper", b"x"),)),
        (b"/", ((b"x", b"a\r\nb"),)),
        (b"/", ((b"connection", b"close"),)),
        (b"/", ((b"te", b"gzip"),)),
        (b"/", ((b"transfer-encoding", b"chunked"),)),
        (b"/", ((b"x", b" lead"),)),
    ],
)
def test_http2_heads_are_as_strict(target: bytes, fields: tuple[tuple[bytes, bytes], ...]) -> None:
    judge_http2(b"GET", b"/", ((b"te", b"trailers"), (b"x", b"y")), LIMITS)
    with pytest.raises(Refusal):
        judge_http2(b"GET", target, fields, LIMITS)
