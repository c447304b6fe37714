"""What a user's addon may change on a flow, judged after each of its hooks.

Rules:
- The grant is for a method, an authority and a path. What an addon changes of them it must not change: a request is
  refused, never judged again under another name.
- Of heads it may change fields, apart from those that frame the message or belong to one hop.
- What would have no effect here (a stream of its own, another body, an intercepted flow) is refused too: an addon that
  relied on it would not do what its author believes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from mitmproxy import http

from addons.edge import HeadLimits
from addons.head import Fields
from addons.refusal import Answer
from addons.reply import kept_reply_fields

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_FIXED: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"http2-settings",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"proxy-connection",
    }
)
_REQUEST_PARTS: Final = ("method", "scheme", "authority", "host", "port", "path", "http_version", "content", "trailers")
_RESPONSE_PARTS: Final = ("status_code", "reason", "http_version", "content", "trailers")


class Forbidden(Exception):
    """An addon changed what it may not; the text names the part, never a value."""


class Killed(Exception):
    """An addon called `flow.kill()`."""


@dataclass(frozen=True, slots=True)
class Before:
    """A flow as it was before a hook."""

    request: http.Request
    request_parts: tuple[Any, ...]
    request_fields: Fields
    response: http.Response | None
    response_parts: tuple[Any, ...]
    response_fields: Fields
    ends: tuple[Any, ...]


def taken(flow: http.HTTPFlow) -> Before:
    """Remembers a flow. Heads are tuples, so nothing is copied."""
    response = flow.response
    return Before(
        flow.request,
        _parts(flow.request, _REQUEST_PARTS),
        flow.request.headers.fields,
        response,
        () if response is None else _parts(response, _RESPONSE_PARTS),
        () if response is None else response.headers.fields,
        _ends(flow),
    )


def restore(before: Before, flow: http.HTTPFlow) -> None:
    """Puts a flow back as it was: what answers the caller reads method and version of the request from it."""
    flow.request, flow.response = before.request, before.response
    for name, value in zip(_REQUEST_PARTS, before.request_parts, strict=False):
        setattr(flow.request.data, name, value)
    flow.request.stream = before.request_parts[-1]
    flow.request.data.headers = http.Headers(before.request_fields)


def judge_before_sending(before: Before, flow: http.HTTPFlow, limits: HeadLimits) -> Fields | None:
    """Judges a flow after `requestheaders`.

    Returns:
        The fields of the request where they are other ones now, else None.

    Raises:
        Forbidden: something else has changed.
        Killed: the addon wants it ended.
    """
    _judge_flow(before, flow)
    if flow.request is not before.request:
        raise Forbidden("it replaced the request")
    _same(before.request_parts, _parts(flow.request, _REQUEST_PARTS), (*_REQUEST_PARTS, "stream"), "request")
    fields = flow.request.headers.fields
    if fields == before.request_fields:
        return None
    _judge_fields(before.request_fields, fields, limits)
    return fields


def judge_answer(before: Before, flow: http.HTTPFlow, *, fields_may_change: bool) -> None:
    """Judges a flow after `responseheaders` or `response`.

    Raises:
        Forbidden: something has changed that may not.
        Killed: the addon wants it ended.
    """
    _judge_flow(before, flow)
    if flow.request is not before.request or flow.request.headers.fields != before.request_fields:
        raise Forbidden("it changed a request that has been sent")
    _same(before.request_parts, _parts(flow.request, _REQUEST_PARTS), (*_REQUEST_PARTS, "stream"), "request")
    if flow.response is not before.response or flow.response is None:
        raise Forbidden("it replaced the answer of the upstream")
    _same(before.response_parts, _parts(flow.response, _RESPONSE_PARTS), (*_RESPONSE_PARTS, "stream"), "answer")
    fields = flow.response.headers.fields
    if fields != before.response_fields:
        if not fields_may_change:
            raise Forbidden("it changed fields of an answer that has been sent")
        _judge_fields(before.response_fields, fields, HeadLimits())


def answer_of(response: object, request_id: str) -> Answer:
    """An addon's own answer, framed anew and without what is this proxy's to say.

    Raises:
        Forbidden: it is no answer that can be given.
    """
    if not isinstance(response, http.Response):
        raise Forbidden("flow.response is no http.Response")
    status, body = response.data.status_code, response.raw_content
    if not 200 <= status <= 599:
        raise Forbidden("the status of its answer is not between 200 and 599")
    if response.stream or response.data.trailers:
        raise Forbidden("its answer has a stream or trailers")
    if body is None:
        raise Forbidden("its answer has no content")
    fields = kept_reply_fields(response.headers.fields)
    _judge_fields((), tuple(field for field in fields if field[0].lower() not in _FIXED), HeadLimits())
    headers: list[tuple[str, str]] = []
    for name, value in fields:
        if name.lower() in _FIXED or name.lower() in {b"x-request-id", b"proxy-status"}:
            continue
        try:
            headers.append((name.decode("ascii"), value.decode("utf-8")))
        except UnicodeDecodeError:
            raise Forbidden("a field of its answer is not UTF-8") from None
    if status in {204, 304}:
        return Answer(status, (*headers, ("X-Request-Id", request_id)), b"")
    return Answer(status, (*headers, ("Content-Length", str(len(body))), ("X-Request-Id", request_id)), body)


def _parts(message: http.Message, names: tuple[str, ...]) -> tuple[Any, ...]:
    data = message.data
    return (*(getattr(data, name) for name in names), message.stream)


def _ends(flow: http.HTTPFlow) -> tuple[Any, ...]:
    server = flow.server_conn
    return (id(flow.client_conn), id(server), server.address, server.sni, server.via)


def _same(old: tuple[Any, ...], new: tuple[Any, ...], names: tuple[str, ...], what: str) -> None:
    if old == new:
        return
    for name, before, now in zip(names, old, new, strict=True):
        if before != now:
            raise Forbidden(f"it changed {name} of the {what}")


def _judge_flow(before: Before, flow: http.HTTPFlow) -> None:
    if flow.error is not None:
        flow.error = None  # the answer is ours to give
        raise Killed
    if flow.intercepted:
        raise Forbidden("it intercepted the flow, and nothing here would resume it")
    if _ends(flow) != before.ends:
        raise Forbidden("it changed where the flow comes from or goes to")


def _judge_fields(old: Fields, new: object, limits: HeadLimits) -> None:
    if not isinstance(new, tuple):
        raise Forbidden("it made the fields something else than a tuple")
    if len(new) > max(limits.header_count, len(old)):
        raise Forbidden(f"it left more than {limits.header_count} fields")
    size_bytes = 0
    for name, value in new:
        size_bytes += len(name) + len(value) + 4
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Forbidden("it put a field that is no field of HTTP")
    if size_bytes > max(limits.header_bytes, sum(len(name) + len(value) + 4 for name, value in old)):
        raise Forbidden(f"it left more than {limits.header_bytes} bytes of fields")
    if _fixed(old) != _fixed(new):
        raise Forbidden("it changed a field that frames the message or belongs to one hop")


def _fixed(fields: Fields) -> list[tuple[bytes, bytes]]:
    return [
        (key, value) for name, value in fields if (key := name.lower()) in _FIXED or key.startswith(b"sec-websocket-")
    ]
