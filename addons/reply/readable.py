"""Asks for an answer that can be read here.

`Accept-Encoding` is narrowed to the codings of `codings.py`, gRPC's messages and the frames of a WebSocket come uncompressed (no
extension is offered), and no range is asked for,
since two halves of a value are no value (G55); nor what was made of an answer in some way of RFC 3229 (`A-IM`).
"""

from __future__ import annotations

import functools
from typing import Final

from addons.head import Fields
from addons.names import ByName
from addons.reply.codings import narrowed

_NOT_ASKED: Final = frozenset({b"range", b"if-range", b"a-im", b"sec-websocket-extensions"})
_NARROWED: Final = frozenset({b"accept-encoding", b"grpc-accept-encoding"})


@functools.lru_cache(maxsize=4096)
def _kept_as(name: bytes, value: bytes) -> bytes | None:
    """A request field's value as it may travel; None where the field may not."""
    key = name.lower()
    if key in _NOT_ASKED:
        return None
    return narrowed(value) if key == b"accept-encoding" else b"identity"


_says_how: Final = ByName(lambda name: name.lower() in _NOT_ASKED | _NARROWED)


def readable(fields: Fields) -> Fields:
    """A request's fields, asking for an answer that can be read here."""
    how = [_says_how[name] for name, _ in fields]
    if True not in how:
        return fields
    kept: list[tuple[bytes, bytes]] = []
    for field, says in zip(fields, how, strict=True):
        if not says:
            kept.append(field)
        elif (changed := _kept_as(*field)) is not None:
            kept.append((field[0], changed))
    return tuple(kept)
