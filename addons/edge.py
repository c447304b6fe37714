"""The strict edge: the grammar of an HTTP/1 request head, judged on raw bytes before any parser has seen them.

Parsers disagree about bare line feeds, folded lines, spaces before colons and doubled framing fields, and every such
disagreement is a smuggled request somewhere. So the whole head must match the grammar of RFC 9112 in its narrowest
reading; what does not match is refused, never repaired. HTTP/2 heads arrive parsed and are judged by `judge_fields`
alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from addons.authority import read_authority
from addons.head import Fields
from addons.refusal import Code, Refusal

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) (HTTP/1\.[01])\r\n")
# field-line of RFC 9112 section 5, one physical line each; obs-text is legal in values, controls other than HTAB are
# not. Blanks behind a value are taken off later, where there are any.
_FIELDS: Final = re.compile(rb"\r\n([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)(?=\r\n|\Z)")
_FRAMING: Final = re.compile(
    rb"\r\n(host|content-length|transfer-encoding|upgrade)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE
)
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]+)(?:/[^#]*)?", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Caps of `limits:` that concern heads."""

    request_line_bytes: int = 16 * 1024
    header_bytes: int = 64 * 1024
    header_count: int = 128


def _bad(what: str) -> Refusal:
    return Refusal(Code.BAD_REQUEST, what, close=True)


def judge_partial(raw: bytes, limits: HeadLimits) -> None:
    """Judges a head that has not ended yet.

    Raises:
        Refusal: `headers_too_large` once it is over a cap; `bad_request` for a line end that can only be wrong.
    """
    line_end = raw.find(b"\n")
    if (line_end if line_end >= 0 else len(raw)) > limits.request_line_bytes:
        raise Refusal(
            Code.HEADERS_TOO_LARGE, f"The request line is longer than {limits.request_line_bytes} bytes.", close=True
        )
    if len(raw) > limits.header_bytes:
        raise Refusal(
            Code.HEADERS_TOO_LARGE, f"The request head is larger than {limits.header_bytes} bytes.", close=True
        )
    if b"\n" in raw.replace(b"\r\n", b""):
        raise _bad("A line of the request head does not end in CR LF.")


class Head(NamedTuple):
    """A request head that the edge has accepted, taken apart."""

    method: bytes
    target: bytes
    version: bytes
    fields: Fields
    size: int | None
    """Of the body: None where it is chunked."""


def judge_head(raw: bytes, *, tunnelled: bool, limits: HeadLimits) -> Head:
    """Judges a whole head, its final empty line included.

    Args:
        raw: from the request line through the empty line.
        tunnelled: inside an accepted CONNECT, and on a reverse listener, only origin-form and `*` are legal; else
            authority-form with CONNECT, and absolute-form.
        limits: the caps.

    Returns:
        What it says.

    Raises:
        Refusal: `bad_request` or `headers_too_large`.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None or line.end() - 2 > limits.request_line_bytes or len(raw) > limits.header_bytes:
        judge_partial(raw, limits)
        raise _bad("The request line is malformed.")
    begin, end = line.end() - 2, len(raw) - 4
    fields = _FIELDS.findall(raw, begin, end)
    count = raw.count(b"\r\n", begin, end)
    # A field takes exactly one line, from line end to line end: where a line is left over, it is no field.
    if len(fields) != count:
        judge_partial(raw, limits)
        raise _bad("A header line is malformed.")
    if count > limits.header_count:
        raise Refusal(
            Code.HEADERS_TOO_LARGE, f"The request has more than {limits.header_count} header fields.", close=True
        )
    method, target, version = line.groups()
    _judge_target(method, target, tunnelled=tunnelled)
    size = _judge_framing(raw, method, tunnelled=tunnelled)
    if b" \r\n" in raw or b"\t\r\n" in raw:
        fields = [(name, value.rstrip(b" \t")) for name, value in fields]
    return Head(method, target, version, tuple(fields), size)


def _judge_target(method: bytes, target: bytes, *, tunnelled: bool) -> None:
    """The four request-target forms of RFC 9112 section 3.2."""
    if method == b"CONNECT":
        if tunnelled:
            raise _bad("CONNECT is for a forward listener, outside any tunnel.")
        read_authority(target.decode("latin-1"), default_port=None)
        return
    origin = target.startswith(b"/")
    if tunnelled:
        if not origin and not (target == b"*" and method == b"OPTIONS"):
            raise _bad("Inside a tunnel, and on a reverse listener, the request target must be a path.")
        if b"#" in target:
            raise _bad("A request target has no fragment.")
    elif origin or target == b"*":
        raise _bad("This is a forward proxy: send CONNECT host:port (set HTTPS_PROXY), not a plain request.")
    else:
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise _bad("The request target is no http:// URL.")
        read_authority(absolute.group(1).decode("latin-1"), default_port=80)


def _judge_framing(raw: bytes, method: bytes, *, tunnelled: bool) -> int | None:
    """The size of the body that these fields frame; None where it is chunked."""
    seen: dict[bytes, bytes] = {}
    for name, value in _FRAMING.findall(raw):
        key = name.lower()
        if key in seen:
            raise _bad(f"The {key.decode()} field stands twice.")
        seen[key] = value.strip(b" \t")
    length, coding = seen.get(b"content-length"), seen.get(b"transfer-encoding")
    if length is not None and coding is not None:
        raise _bad("Content-Length and Transfer-Encoding exclude each other.")
    if length is not None and not _LENGTH.fullmatch(length):
        raise _bad("Content-Length is not a number.")
    if coding is not None and (coding.lower() != b"chunked" or b" HTTP/1.0\r\n" in raw):
        raise _bad("The only transfer coding accepted is chunked, in HTTP/1.1.")
    if method == b"CONNECT" and (coding is not None or length not in {None, b"0"}):
        raise _bad("CONNECT has no body.")
    if b"upgrade" in seen and (
        not tunnelled or seen[b"upgrade"].lower() != b"websocket" or b" HTTP/1.0\r\n" in raw or method != b"GET"
    ):
        raise _bad("The only upgrade is WebSocket, by GET over HTTP/1.1 inside a TLS tunnel or on a reverse listener.")
    return None if coding is not None else int(length or 0)


def content_length(fields: Fields) -> int | None:
    """The size that a judged head gives its body; None where it gives none."""
    for name, value in fields:
        if len(name) == len(b"content-length") and name.lower() == b"content-length":
            return int(value)
    return None


_HTTP2_FORBIDDEN: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_HTTP2_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")


def judge_http2(method: bytes, target: bytes, fields: Fields, limits: HeadLimits) -> None:
    """The same strictness for an HTTP/2 head (RFC 9113 section 8.2).

    Raises:
        Refusal: `bad_request` or `headers_too_large`.
    """
    if (
        not (target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"))
        or not re.fullmatch(rb"[\x21-\x7e]+", target)
        or b"#" in target
    ):
        raise Refusal(Code.BAD_REQUEST, "The :path is malformed.")
    if not re.fullmatch(_TOKEN, method):
        raise Refusal(Code.BAD_REQUEST, "The :method is malformed.")
    if (
        len(target) > limits.request_line_bytes
        or sum(len(name) + len(value) + 4 for name, value in fields) > limits.header_bytes
    ):
        raise Refusal(Code.HEADERS_TOO_LARGE, f"The request head is larger than {limits.header_bytes} bytes.")
    if len(fields) > limits.header_count:
        raise Refusal(Code.HEADERS_TOO_LARGE, f"The request has more than {limits.header_count} header fields.")
    for name, value in fields:
        if not _HTTP2_NAME.fullmatch(name) or not _VALUE.fullmatch(value) or value != value.strip(b" \t"):
            raise Refusal(Code.BAD_REQUEST, "A header field is malformed.")
        if name in _HTTP2_FORBIDDEN or (name == b"te" and value != b"trailers"):
            raise Refusal(Code.BAD_REQUEST, f"The {name.decode()} field has no place in HTTP/2.")


def judge_http2_framing(fields: Fields, *, ends: bool) -> None:
    """Judges what an HTTP/2 head says of its own frame and length, pseudo fields included.

    Args:
        fields: as decoded.
        ends: whether the stream ends with the head.

    Raises:
        Refusal: `bad_request`; CONNECT (RFC 8441 too) inside a tunnel, a scheme of its own, a length that is none or
            that announces a body after the end: over HTTP/1 an upstream would wait for it and take the next request for it.
    """
    lengths: list[bytes] = []
    for name, value in fields:
        if (
            (name == b":method" and value.upper() == b"CONNECT")
            or name == b":protocol"
            or (name == b":scheme" and value not in {b"https", b"http"})
        ):
            raise _bad("Inside a tunnel there is no other tunnel.")
        if name == b"content-length":
            lengths.append(value)
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(value) or (ends and value != b"0") for value in lengths):
        raise _bad("Content-Length does not fit the request.")
