"""Heads of callers: bytes in, requests out, wherever the bytes are cut."""

from __future__ import annotations

import pytest

from addons.edge import HeadLimits
from addons.exchange import Authority, Tunnel, WorkloadIdentity
from addons.refusal import Code, Refusal
from ostiary.engines.fast.reading import HeadReader
from ostiary.engines.mitm.http1 import MAX_LEAD_BYTES

TUNNEL = Tunnel(Authority("api.test", 443), WorkloadIdentity("billing", "any"))
GET = b"GET /v1?a=b HTTP/1.1\r\nHost: api.test\r\n\r\n"


@pytest.fixture
def reader() -> HeadReader:
    return HeadReader(HeadLimits())


def test_a_head_and_what_is_behind_it(reader: HeadReader) -> None:
    request, size, rest = reader.read(GET + b"GET /v2", TUNNEL)
    assert request is not None
    assert (request.data.scheme, request.data.host, request.data.port) == (b"https", "api.test", 443)
    assert (request.data.method, request.data.path, size, rest) == (b"GET", b"/v1?a=b", 0, b"GET /v2")


@pytest.mark.parametrize(
    ("field", "size"), [(b"Content-Length: 12\r\n", 12), (b"Transfer-Encoding: chunked\r\n", None)]
)
def test_the_size_of_the_body(reader: HeadReader, field: bytes, size: int | None) -> None:
    request, found, rest = reader.read(b"POST / HTTP/1.1\r\nHost: api.test\r\n" + field + b"\r\nbody", TUNNEL)
    assert request is not None
    assert (found, rest) == (size, b"body")


def test_a_head_that_is_not_there_yet(reader: HeadReader) -> None:
    for end in range(1, len(GET)):
        assert reader.read(GET[:end], TUNNEL) == (None, 0, GET[:end])
    assert reader.read(GET, TUNNEL)[0] is not None


def test_absolute_form_goes_where_it_says(reader: HeadReader) -> None:
    request, _, _ = reader.read(b"GET http://open.test:8080/x?y HTTP/1.1\r\nHost: open.test:8080\r\n\r\n", None)
    assert request is not None
    data = request.data
    assert (data.scheme, data.host, data.port, data.path) == (b"http", "open.test", 8080, b"/x?y")


def test_connect_is_left_to_who_opens_tunnels(reader: HeadReader) -> None:
    request, _, rest = reader.read(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n\x16\x03", None)
    assert request is not None
    assert (request.data.method, request.data.host, rest) == (b"CONNECT", "", b"\x16\x03")


def test_empty_lines_before_a_head_are_few(reader: HeadReader) -> None:
    request, _, _ = reader.read(b"\r\n\r\n" + GET, TUNNEL)
    assert request is not None
    assert reader.read(b"\r\n" * (MAX_LEAD_BYTES // 2), TUNNEL) == (None, 0, b"")
    with pytest.raises(Refusal) as found:
        reader.read(b"\r\n" + GET, TUNNEL)  # they count until a head is read
    assert found.value.code is Code.BAD_REQUEST
    assert found.value.close


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"GET http://other.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n", b"\x16\x03\x01\x00\r\n\r\n"]
)  # fmt: skip
def test_what_the_edge_refuses_is_refused_here(reader: HeadReader, head: bytes) -> None:
    with pytest.raises(Refusal):
        reader.read(head, TUNNEL)
