"""The fast engine as one object: listeners of asyncio protocols, a pool of upstream connections, and mitmproxy's engine
for what is no HTTP/1.1.

It is mitmproxy's engine with another front door: the same Master and dispatcher, the same stages, registry, caps,
rechecks and drain. So a stage cannot tell which of the two called it.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, cast

from addons.exchange import Exchange, Listener
from addons.parts import Parts
from ostiary.ca import LeafStore
from ostiary.engines.fast import dialling
from ostiary.engines.fast.caller import Caller
from ostiary.engines.fast.handover import HandedOver, take_over
from ostiary.engines.fast.link import Link
from ostiary.engines.fast.opening import blind_bound
from ostiary.engines.fast.pool import Pool
from ostiary.engines.fast.sessions import Sessions
from ostiary.engines.fast.tls import CallerContexts, UpstreamContexts
from ostiary.engines.listener_tls import ListenerTls
from ostiary.engines.mitm.dialling import Bound
from ostiary.engines.mitm.engine import KEPT_FILE, ConnectionLimits, MitmEngine
from ostiary.engines.needs import Bounds

SWEEP_S = 1.0
BACKLOG = 1024


class FastEngine(MitmEngine):
    """Serves HTTP/1.1 by itself and hands the rest to mitmproxy's layers.

    Args:
        parts: what the stages need.
        leaves: certificates for intercepted hosts.
        upstream_roots: extra roots for every upstream, PEM.
        limits: connection caps.
    """

    def __init__(self, parts: Parts, leaves: LeafStore, upstream_roots: Path | None, limits: ConnectionLimits) -> None:
        super().__init__(parts, leaves, upstream_roots, limits)
        self.loop = asyncio.get_running_loop()
        self.pool = Pool()
        self.sessions = Sessions()
        self.bounds = Bounds()
        self.caller_contexts = CallerContexts(leaves, self.loop.time)
        self.upstream_contexts = UpstreamContexts(upstream_roots)
        # A root file that cannot be read is a fault of the start, not of the first request.
        self.upstream_contexts.of(None)
        self._handed: set[asyncio.Task[None]] = set()
        self._sweeps: asyncio.Task[None] | None = None

    async def listen(self, listener: Listener, bound: socket.socket, tls: ListenerTls | None = None) -> asyncio.Server:
        """Accepts on a bound socket."""
        self.keep_looking()
        if self._sweeps is None:
            self._sweeps = self.loop.create_task(self._sweep())
        if tls is not None:
            return await self._listen_tls(listener, bound, tls)
        create: Any = self.loop.create_unix_server if listener.unix else self.loop.create_server
        kept = KEPT_FILE if listener.unix else {}
        server: asyncio.Server = await create(lambda: Caller(self, listener), sock=bound, backlog=BACKLOG, **kept)
        self._servers.append(server)
        return server

    def _http2_first(self, listener: Listener) -> bool:
        return self.parts.in_force.policy.prefers_http2(listener.name)

    def _secured(self, listener: Listener, transport: asyncio.Transport, below: asyncio.Transport, held: bytes) -> None:
        caller = Caller(self, listener, below)
        transport.set_protocol(caller)
        caller.connection_made(transport)
        if held:
            caller.data_received(held)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.pool.sweep(self.loop.time())
            self.sessions.sweep(self.loop.time())
            self.upstream_contexts.sweep()

    async def dial(self, bound: Bound) -> Link:
        """A new upstream connection. Raises Refusal."""
        return await dialling.dial(self, bound)

    async def dial_blind(self, exchange: Exchange) -> Link:
        """The upstream connection of a tunnel that is not opened: TCP alone. Raises Refusal."""
        return await dialling.dial(self, blind_bound(exchange, self.parts.deadlines), tls=False)

    def hand_over(self, caller: Caller, held: bytes) -> None:
        """From now on mitmproxy's layers serve this caller."""
        handler = take_over(self, caller, cast("asyncio.Transport", caller.transport), held)
        self._handlers[caller.client.id] = handler
        caller.deadline.stop()
        task = self.loop.create_task(self._serve_handed(caller, handler))
        self._handed.add(task)
        task.add_done_callback(self._handed.discard)

    async def _serve_handed(self, caller: Caller, handler: HandedOver) -> None:
        try:
            await handler.handle_client()
        finally:
            caller.handed_back()

    async def drain(self, timeout_s: float) -> None:
        if self._sweeps is not None:
            self._sweeps.cancel()
        await super().drain(timeout_s)
        self.pool.close()
        self.sessions.close()
