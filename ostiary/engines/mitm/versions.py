"""Heads between HTTP/1.1 and HTTP/2, where the two sides speak different ones.

Rules: a field of one hop never crosses; names are lower-case in HTTP/2; an answer without a length gets a framing of its
own in HTTP/1.1, so that its end shows and the connection stays; what has no body by its status gets none.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from mitmproxy import http

from addons.head import Fields

_OF_ONE_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings"}
)
"""RFC 9113 section 8.2.2."""
_NO_BODY: Final = frozenset({204, 304})


def for_http2(fields: Fields) -> Fields:
    """An HTTP/1.1 request's fields as HTTP/2 has them; the Host becomes `:authority`, which is the engine's to write."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        key = name.lower()
        if key in _OF_ONE_HOP or key == b"host":
            continue
        if key == b"te":
            if value.lower() == b"trailers":
                kept.append((key, b"trailers"))
            continue
        kept.append((key, value))
    return tuple(kept)


def lower_case(fields: Fields) -> Fields:
    """Trailers on their way to HTTP/2 (RFC 9113 section 8.2.1)."""
    return tuple((name.lower(), value) for name, value in fields)


def has_body(method: bytes, status: int) -> bool:
    """Whether an answer may have content (RFC 9112 section 6.3)."""
    return method != b"HEAD" and status >= 200 and status not in _NO_BODY


def for_http1(response: http.Response, request: http.Request, *, ends: bool) -> http.Response:
    """An HTTP/2 answer's head as HTTP/1.1 has it.

    Args:
        response: as it came; it is not changed.
        request: what it answers.
        ends: whether no content follows.
    """
    data = response.data
    fields = tuple(field for field in data.headers.fields if field[0].lower() not in _OF_ONE_HOP)
    length = any(name.lower() == b"content-length" for name, _ in fields)
    if data.status_code == HTTPStatus.NO_CONTENT:
        fields = tuple(field for field in fields if field[0].lower() != b"content-length")
    elif not length and has_body(request.data.method, data.status_code):
        if ends:
            fields = (*fields, (b"Content-Length", b"0"))
        elif request.data.http_version == b"HTTP/1.0":
            fields = (
                *fields,
                (b"Connection", b"close"),
            )  # it knows no chunks: the end of the connection is the answer's
        else:
            fields = (*fields, (b"Transfer-Encoding", b"chunked"))
    return http.Response(
        b"HTTP/1.1",
        data.status_code,
        _phrase(data.status_code),
        http.Headers(fields),
        None,
        None,
        data.timestamp_start,
        None,
    )


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
