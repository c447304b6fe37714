"""One cookie among those of the caller (RFC 6265 section 4.2)."""

from __future__ import annotations

import re
from typing import Final

from addons.head import Fields
from addons.refusal import Code, Refusal

_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")
"""cookie-octet of section 4.1.1: no space, quote, comma, semicolon or backslash."""


def cookie_value(text: str) -> bytes:
    """A value as it may stand in a cookie.

    Raises:
        Refusal: `secret_malformed`; there is no way to escape what does not fit.
    """
    if not _VALUE.fullmatch(text):
        raise Refusal(
            Code.SECRET_MALFORMED,
            "The secret does not fit into a cookie: visible ASCII without quotes, commas, semicolons and backslashes is allowed.",
        )
    return text.encode("ascii")


def cookies(fields: Fields) -> list[tuple[bytes, bytes]]:
    """Names and values of the cookies in a head."""
    found: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if _carries(name):
            for pair in value.split(b";"):
                key, _, text = pair.partition(b"=")
                found.append((key.strip(b" \t"), text.strip(b" \t")))
    return found


def without_cookies(fields: Fields, names: frozenset[bytes]) -> Fields:
    """The fields without these cookies. The others stay as they are; a field of which none is left goes."""
    if not any(key in names for key, _ in cookies(fields)):
        return fields
    kept: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if not _carries(name):
            kept.append((name, value))
            continue
        pairs = [pair for pair in value.split(b";") if pair.partition(b"=")[0].strip(b" \t") not in names]
        if any(pair.strip(b" \t") for pair in pairs):
            kept.append((name, b";".join(pairs).strip(b" \t")))
    return tuple(kept)


def with_cookies(fields: Fields, added: dict[bytes, bytes], *, http2: bool) -> Fields:
    """The fields with these cookies behind the caller's own, in one field: a second one would be no cookie (section 5.4)."""
    pairs = [b"=".join(pair) for pair in added.items()]
    own = [value for name, value in fields if _carries(name)]
    others = tuple(field for field in fields if not _carries(field[0]))
    return (*others, (b"cookie" if http2 else b"Cookie", b"; ".join([*own, *pairs])))


def _carries(name: bytes) -> bool:
    return len(name) == len(b"cookie") and name.lower() == b"cookie"
