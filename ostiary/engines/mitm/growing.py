"""Answers that grow as they pass: a coded body that the stages decode leaves a bounded part at a time.

The stages make what a piece of it becomes as they are asked for it. Behind each `GROWING_BYTES` the caller is waited for;
meanwhile its stream takes no event, so the upstream is not read for long either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http._events import ResponseData

from ostiary.engines.mitm.watch import Expired

GROWING_BYTES: Final = 1024 * 1024


@dataclass
class RoomHook(commands.StartHook):
    """Waits until the caller has read of what was written, and lets others have their turn. No stage's: the handler's own."""

    flow: http.HTTPFlow


def grow(
    pieces: Iterable[bytes] | bytes,
    stream_id: int,
    flow: http.HTTPFlow,
    context: Context,
    waiting: Iterable[events.Event],
) -> layer.CommandGenerator[None]:
    """Passes on what a piece of a coded body becomes.

    Args:
        pieces: made as they are taken.
        stream_id: of the request.
        flow: its.
        context: of its caller.
        waiting: for the stream: once a deadline that has passed is among them, nothing more is taken.
    """
    passed = 0
    for piece in (pieces,) if isinstance(pieces, bytes) else pieces:
        yield SendHttp(ResponseData(stream_id, piece), context.client)
        passed += len(piece)
        if passed >= GROWING_BYTES:
            passed = 0
            yield RoomHook(flow)
            if not context.client.connected or any(type(event) is Expired for event in waiting):
                return  # what has come meanwhile ends it
