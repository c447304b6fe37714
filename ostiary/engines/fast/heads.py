"""How heads are written: a request for its upstream, an answer for its caller, an answer of ours.

Functions of values. What is written has been judged before: the caller's fields by the edge, the credential by the
injectors, the upstream's fields as they were read.
"""

from __future__ import annotations

import re
from typing import Final

from mitmproxy import http

from addons.head import Fields, HeadersToSend
from addons.names import ByName
from addons.refusal import Answer
from ostiary.engines.mitm.answers import phrase

_CONNECTION: Final = b"connection"
_EXPECT: Final = b"expect"
_TE: Final = b"te"
_TRANSFER_ENCODING: Final = b"transfer-encoding"
_SWITCHING: Final = 101


def _key_of_hop(name: bytes) -> bytes | None:
    key = name.lower()
    return key if key in {_CONNECTION, _TRANSFER_ENCODING} else None


_of_hop: Final = ByName(_key_of_hop)
"""Names in lower case, of those that are of one hop; else None."""
_BINDING: Final = re.compile(
    rb"\n(?:www-authenticate|authorization):(?:[^\n]*,)?[ \t]*(?:negotiate|ntlm|kerberos|credssp)(?=[ \t,\r\n])"
)


def said(fields: Fields, name: bytes) -> list[bytes]:
    """The values, in lower case, of every field of this lower-case name."""
    size = len(name)
    return [value.lower() for key, value in fields if len(key) == size and key.lower() == name]


def says_close(fields: Fields) -> bool:
    """Whether the connection ends behind this message (RFC 9112 section 9.6)."""
    if _CONNECTION not in [_of_hop[name] for name, _ in fields]:
        return False
    return any(b"close" in value.lower() for name, value in fields if name.lower() == _CONNECTION)


def binds(head: bytes) -> bool:
    """Whether this head, of a request or of an answer, speaks of a scheme that authenticates the connection and not the
    request (NTLM, Negotiate: RFC 4559 section 6; Kerberos, CredSSP: MS-WSMV section 2.2.9.1): whoever used it next would
    be that user.
    """
    low = head.lower()
    spoken = b"negotiate" in low or b"ntlm" in low or b"kerberos" in low or b"credssp" in low
    return spoken and _BINDING.search(low) is not None


def keeps(request: http.Request) -> bool:
    """Whether the caller's connection stays open (RFC 9112 section 9.3)."""
    return request.data.http_version == b"HTTP/1.1" and not says_close(request.data.headers.fields)


def asks_for_trailers(request: http.Request) -> bool:
    return b"trailers" in said(request.data.headers.fields, _TE)


def expects_continue(request: http.Request) -> bool:
    return b"100-continue" in said(request.data.headers.fields, _EXPECT)


def request_head(method: str, ready: HeadersToSend) -> bytes:
    """The head that leaves, credential included. `method` is the one that was granted."""
    # A field of one hop is named as such (RFC 9110 section 7.6.1).
    end = b"Connection: TE\r\n\r\n" if said(ready.fields, _TE) else b"\r\n"
    lines = [b"%b: %b\r\n" % field for field in ready.fields]
    return b"".join((method.encode("ascii"), b" ", ready.target, b" HTTP/1.1\r\n", *lines, end))


def answer_head(response: http.Response, raw: bytes | None, *, keep: bool, chunked: bool) -> bytes:
    """The head of an upstream's answer, for the caller.

    Args:
        response: as the stages have left it.
        raw: the head as it came, if no stage has changed a field; it is passed on where it fits.
        keep: whether the caller's connection stays open.
        chunked: whether the body will be.
    """
    if raw is not None and keep and raw.startswith(b"HTTP/1.1 ") and (chunked or not _frames_by_chunks(raw)):
        return raw
    data = response.data
    fields = data.headers.fields
    if data.status_code != _SWITCHING:
        hop = [_of_hop[name] for name, _ in fields]
        if any(hop):
            dropped = {_CONNECTION} if chunked else {_CONNECTION, _TRANSFER_ENCODING}
            fields = tuple([field for field, key in zip(fields, hop, strict=True) if key not in dropped])
        if not keep:
            fields = (*fields, (b"Connection", b"close"))
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"".join((b"HTTP/1.1 %d %b\r\n" % (data.status_code, data.reason), *lines, b"\r\n"))


def _frames_by_chunks(raw: bytes) -> bool:
    return b"\r\ntransfer-encoding:" in raw.lower()


def own_answer(answer: Answer, *, close: bool = False, body: bool = True) -> bytes:
    """An answer of ours, whole.

    Args:
        answer: a refusal's, or an addon's.
        close: adds `Connection: close`.
        body: false for an answer to HEAD.
    """
    lines = [f"HTTP/1.1 {answer.status} {phrase(answer.status).decode()}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in answer.headers]
    if close:
        lines.append("Connection: close\r\n")
    return "".join(lines).encode() + b"\r\n" + (answer.body if body else b"")
