"""How a connection on a reverse listener begins: HTTP/1.1 is served here; a caller of HTTP/2, and every caller of a
listener where a route says `http2: prefer`, is handed to mitmproxy's layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostiary.engines.fast.phase import Phase
from ostiary.engines.mitm.reverse import speaks_http2
from ostiary.tls_rules import ALPN_HTTP2

if TYPE_CHECKING:
    from ostiary.engines.fast.caller import Caller


def enter(caller: Caller) -> None:
    """Looks at the first bytes."""
    held, client = caller.ahead, caller.client
    http2 = client.alpn == ALPN_HTTP2 or speaks_http2(held)
    if http2 is None:
        return  # by these bytes it may still be either
    client.alpn = ALPN_HTTP2 if http2 else None
    if http2 or caller.engine.parts.in_force.policy.prefers_http2(caller.listener.name):
        caller.ahead = b""
        caller.enter(Phase.HANDED)
        caller.engine.hand_over(caller, held)
        return
    caller.enter(Phase.HEAD)
    caller.advance()
