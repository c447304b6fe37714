"""Trailers: fields that follow a body (RFC 9110 section 6.5), as gRPC ends every answer with.

A trailer may not do what a head is judged for: what frames, routes, authorizes or changes a request is dropped, whatever
the route keeps in heads, since a server may merge trailers into the head it has already read (RFC 9110 section 6.5.1).
What is malformed is dropped, too: it must not end a line in HTTP/1.
"""

from __future__ import annotations

import re
from typing import Final

from addons.head import Fields
from addons.injection.places import CREDENTIAL_HEADERS, HOP_BY_HOP, OVERRIDES, OWN_PREFIX, place
from addons.reply import kept_reply_fields

MAX_TRAILER_BYTES: Final = 64 * 1024
"""Of one message, names and values. What is longer is no trailer of an API."""

_FIELD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_OF_THE_HEAD: Final = frozenset(
    {
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"cache-control",
        b"location",
        b"range",
        b"set-cookie",
        b"trailer",
        b"transfer-encoding",
        b"www-authenticate",
    }
)
_NEVER_IN_REQUESTS: Final = HOP_BY_HOP | CREDENTIAL_HEADERS | OVERRIDES | _OF_THE_HEAD
_NEVER_IN_ANSWERS: Final = HOP_BY_HOP | _OF_THE_HEAD


def _well_formed(fields: Fields) -> Fields:
    return tuple((name, value) for name, value in fields if _FIELD.fullmatch(name) and _VALUE.fullmatch(value))


def kept_request_trailers(fields: Fields, injected: frozenset[bytes]) -> Fields:
    """The caller's trailers that may travel.

    Args:
        fields: as sent.
        injected: names, as `place` writes them, of fields that the route puts or strips.
    """
    return tuple(
        (name, value)
        for name, value in _well_formed(fields)
        if (key := place(name)) not in _NEVER_IN_REQUESTS and key not in injected and not key.startswith(OWN_PREFIX)
    )


def kept_reply_trailers(fields: Fields) -> Fields:
    """An upstream's trailers that reach the caller: all but those that speak for this proxy or belong into a head."""
    return tuple(
        (name, value)
        for name, value in kept_reply_fields(_well_formed(fields))
        if name.lower() not in _NEVER_IN_ANSWERS
    )


def lines(fields: Fields) -> bytes:
    """Trailers as HTTP/1 writes them behind the last chunk, with the empty line that ends the message."""
    return b"".join(b"%s: %s\r\n" % field for field in fields) + b"\r\n"
