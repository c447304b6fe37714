"""The phases of a caller's connection: what its bytes mean in each, and which may follow which.

HEAD       of a request, or nothing yet
WAITING    kept for later: a CONNECT is judged, or TLS shakes hands
ENTRANCE   the first ones inside an accepted CONNECT: TLS goes on, anything else is closed; or the first ones on a
           reverse listener: HTTP/1.1 or HTTP/2
TURN       the body of the request under way; behind it the next requests, kept up to a cap
RELAY      passed on unread
LINGER     the rest of a body that nobody wants: swallowed up to a cap
HANDED     not ours: mitmproxy's layers serve the connection
CLOSED     nothing; and nothing follows
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

CLOSE_S: Final = 5.0
"""How long what was written may take to leave before the connection is dropped."""


class Phase(enum.Enum):
    """What the next bytes of the caller are."""

    # Members are looked up in two tables at every step; that of `enum` is a function in Python.
    __hash__ = object.__hash__

    HEAD = enum.auto()
    WAITING = enum.auto()
    ENTRANCE = enum.auto()
    TURN = enum.auto()
    RELAY = enum.auto()
    LINGER = enum.auto()
    HANDED = enum.auto()
    CLOSED = enum.auto()


FOLLOWS: Final[Mapping[Phase, frozenset[Phase]]] = {
    # a CONNECT, a request, or bytes that are neither
    Phase.HEAD: frozenset({Phase.WAITING, Phase.TURN, Phase.CLOSED}),
    # accepted, refused (or, inside the tunnel, TLS is up), passed on unopened, HTTP/2
    Phase.WAITING: frozenset({Phase.ENTRANCE, Phase.HEAD, Phase.RELAY, Phase.HANDED, Phase.CLOSED}),
    # TLS begins; on a reverse listener HTTP/1.1, or HTTP/2
    Phase.ENTRANCE: frozenset({Phase.WAITING, Phase.HEAD, Phase.HANDED, Phase.CLOSED}),
    # answered, a WebSocket, answered before the body was there
    Phase.TURN: frozenset({Phase.HEAD, Phase.RELAY, Phase.LINGER, Phase.CLOSED}),
    Phase.RELAY: frozenset({Phase.CLOSED}),
    Phase.LINGER: frozenset({Phase.CLOSED}),
    Phase.HANDED: frozenset({Phase.CLOSED}),
    Phase.CLOSED: frozenset({Phase.CLOSED}),
}


class WrongPhase(RuntimeError):
    """A step was taken that may not follow: whatever led to it, the connection is closed."""
