"""mitmproxy's flow objects, made cheaply.

Stages and users' addons are handed an `HTTPFlow` whichever engine calls them. mitmproxy's constructors check and copy
at every step, which would cost as much as all of the stages; here objects are filled in from blank ones.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Client, ConnectionState, Server

_numbers = itertools.count(1)
_CLIENT = Client(peername=("0.0.0.0", 0), sockname=("0.0.0.0", 0), timestamp_start=0.0)  # noqa: S104 - a placeholder, not bound
_SERVER = Server(address=None)
_BLANK = http.HTTPFlow(_CLIENT, _SERVER).__dict__
_CREATED = "timestamp_created"


def new_client(accepted: asyncio.BaseTransport, number: str) -> Client:
    """What mitmproxy knows of a caller's connection that is open.

    Args:
        accepted: its transport.
        number: of the connection, a UUID.
    """
    client = Client.__new__(Client)
    client.__dict__ = {
        **_CLIENT.__dict__,
        "id": number,
        "peername": accepted.get_extra_info("peername") or ("unix", 0),
        "sockname": accepted.get_extra_info("sockname") or ("unix", 0),
        "timestamp_start": time.time(),  # noqa: TID251 - mitmproxy's own record
        "state": ConnectionState.OPEN,
    }
    return client


def no_server() -> Server:
    """What a flow has for a server before one is reached."""
    server = Server.__new__(Server)
    server.__dict__.update(_SERVER.__dict__, id=f"{next(_numbers):016x}")
    return server


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
