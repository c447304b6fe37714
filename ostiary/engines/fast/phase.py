"""The phases of a caller's connection, and what bytes mean in each.

HEAD       of a request, or nothing yet
WAITING    kept for later: a CONNECT is judged, or TLS shakes hands
ENTRANCE   the first ones inside an accepted CONNECT: TLS goes on, anything else is closed
TURN       the body of the request under way; behind it the next requests, kept up to a cap
RELAY      passed on unread
LINGER     the rest of a body that nobody wants: swallowed up to a cap
CLOSED     nothing
HANDED     not ours: mitmproxy's layers serve the connection
"""

from __future__ import annotations

import enum
from typing import Final

CLOSE_S: Final = 5.0
"""How long what was written may take to leave before the connection is dropped."""


class Phase(enum.Enum):
    """What the next bytes of the caller are."""

    HEAD = enum.auto()
    WAITING = enum.auto()
    ENTRANCE = enum.auto()
    TURN = enum.auto()
    RELAY = enum.auto()
    LINGER = enum.auto()
    CLOSED = enum.auto()
    HANDED = enum.auto()
