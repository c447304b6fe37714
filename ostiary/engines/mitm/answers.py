"""Answers as mitmproxy has them: our own, and which of an upstream's are none."""

from __future__ import annotations

from http import HTTPStatus

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers

from addons.refusal import Answer


def response_of(answer: Answer, *, http2: bool) -> http.Response:
    """One of our own answers as mitmproxy has it."""
    fields = [
        (name.lower().encode() if http2 else name.encode(), value.encode())
        for name, value in answer.headers
        if not (http2 and name == "Connection")
    ]
    return http.Response(
        b"HTTP/2.0" if http2 else b"HTTP/1.1",
        answer.status,
        b"" if http2 else phrase(answer.status),
        http.Headers(fields),
        answer.body,
        None,
        0.0,
        0.0,
    )


def phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()


def invalid_answer(flow: http.HTTPFlow) -> str | None:
    """What is wrong with the head of an answer of HTTP/2, or None."""
    if flow.response is None:
        return "no answer"
    if not 200 <= flow.response.data.status_code <= 999:
        return "no status of a final answer"
    try:
        validate_headers(flow.response)
    except ValueError as error:
        return str(error)
    return None
