"""Hands a caller, its TLS already ended here, to mitmproxy's layers: one that speaks only HTTP/2, or one of an authority
or reverse listener where HTTP/2 is preferred towards the upstream, whatever was agreed on with the caller.

Everything known of the connection goes along: its proof, its authority and server name, its listener, its place in the
counts. The handler that takes it over refuses and watches exactly as it does for connections of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mitmproxy.proxy import commands, server_hooks
from mitmproxy.proxy.layers.http import HTTPMode

from ostiary.engines.mitm.handler import ClientHandler
from ostiary.engines.mitm.layers import GuardedHttpLayer
from ostiary.engines.mitm.reverse import nowhere

if TYPE_CHECKING:
    from ostiary.engines.fast.caller import Caller
    from ostiary.engines.fast.engine import FastEngine


class HandedOver(ClientHandler):
    """A connection that is already open and inside its tunnel, where there is one."""

    async def handle_hook(self, hook: commands.StartHook) -> None:
        if isinstance(hook, server_hooks.ClientConnectedHook):
            return  # it was, when it was accepted
        await super().handle_hook(hook)


def take_over(engine: FastEngine, caller: Caller, transport: asyncio.Transport, held: bytes) -> HandedOver:
    """A handler for the caller's connection, ready to be run.

    Args:
        engine: of both.
        caller: whose connection it is.
        transport: decrypted.
        held: bytes that have been read of it.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if held:
        reader.feed_data(held)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    handler = HandedOver(engine, caller.connection, caller.client, reader, writer)
    context = handler.layer.context
    tunnel = caller.connection.tunnel
    if tunnel is not None:
        context.server.address = (tunnel.authority.host, tunnel.authority.port)
        context.server.tls = True
    else:
        nowhere(context, caller.listener.name)
    handler.layer = GuardedHttpLayer(context, HTTPMode.transparent, handler)
    return handler
