"""mitmproxy's flow objects, made cheaply.

Stages and users' addons are handed an `HTTPFlow` whichever engine calls them. mitmproxy's constructors check and copy
at every step, which would cost as much as all of the stages; here objects are filled in from blank ones.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Client, Server

_numbers = itertools.count(1)
_BLANK = http.HTTPFlow(
    Client(peername=("0.0.0.0", 0), sockname=("0.0.0.0", 0), timestamp_start=0.0),  # noqa: S104 - a placeholder, not bound
    Server(address=None),
).__dict__
_CREATED = "timestamp_created"


def new_flow(client: Client, server: Server, request: http.Request) -> http.HTTPFlow:
    """A live flow with its request.

    Args:
        client: of the caller's connection.
        server: of the upstream's; replaced once one is reached.
        request: parsed.
    """
    flow = http.HTTPFlow.__new__(http.HTTPFlow)
    fields = flow.__dict__
    fields.update(_BLANK)
    fields["id"] = f"{next(_numbers):016x}"
    fields["client_conn"] = client
    fields["server_conn"] = server
    fields["metadata"] = {}
    fields["request"] = request
    fields["live"] = True
    fields[_CREATED] = time.time()  # noqa: TID251 - mitmproxy's own record
    return flow


def pieces(stream: bool | Callable[[bytes], Any], data: bytes) -> tuple[bytes, ...]:
    """What a flow's `stream` makes of a piece of body; empty pieces are none."""
    found = stream(data) if callable(stream) else data
    if isinstance(found, bytes):
        return (found,) if found else ()
    return tuple([piece for piece in found if piece])
