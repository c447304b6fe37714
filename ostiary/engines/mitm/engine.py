"""mitmproxy's engine as one object: accepts connections on our own listeners and hands each to a `ClientHandler`."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from mitmproxy import flow as mitm_flow
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.proxy import mode_specs, server_hooks
from mitmproxy.tls import ClientHelloData, TlsData

from addons.continuous import withdrawn
from addons.exchange import Connection, Exchange, Listener
from addons.parts import Deadlines, Parts
from addons.pipeline import stages
from addons.refusal import Code, Refusal
from addons.stages.registry import Registry
from addons.uuid7 import uuid7
from ostiary.ca import LeafStore
from ostiary.dispatch import Dispatcher
from ostiary.engines.held import HeldBodies
from ostiary.engines.listener_tls import ListenerTls, protocols
from ostiary.engines.mitm.answers import response_of
from ostiary.engines.mitm.handler import ClientHandler
from ostiary.engines.mitm.master import LeanMaster
from ostiary.engines.mitm.options import snapshot
from ostiary.engines.mitm.tls import TlsStage, UpstreamContexts
from ostiary.engines.needs import longest_silence_s
from ostiary.engines.threshold import Threshold, agreed
from policies import Policy

_log = logging.getLogger("ostiary.engine")


RECHECK_S: Final = 1.0
"""How often open streams are asked whether they may go on."""


KEPT_FILE: Final[Mapping[str, Any]] = {"cleanup_socket": False}
"""The file of a Unix socket belongs to whoever opened it: other processes may accept on it still."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Caps of `limits:` that concern connections."""

    connections: int = 10_000
    per_source: int = 1_000
    sockets: int = 0
    """Connections of callers and upstreams together; 0 means any number."""
    header_timeout_s: float = 10.0
    idle_s: float = 300.0
    first_byte_s: float = 300.0


class Live(Protocol):
    """A caller's connection, whatever serves it."""

    connection: Connection

    def hang_up(self) -> None:
        """Closes it at once, and with it all that was opened for it."""
        ...


class MitmEngine:
    """Serves requests with mitmproxy's layers.

    Args:
        parts: what the stages need.
        leaves: certificates for intercepted hosts.
        upstream_roots: extra roots for every upstream, PEM.
        limits: connection caps.
    """

    def __init__(self, parts: Parts, leaves: LeafStore, upstream_roots: Path | None, limits: ConnectionLimits) -> None:
        self.parts = parts
        self.registry = Registry()
        self.held = HeldBodies()
        self.master = LeanMaster(asyncio.get_running_loop())
        self.dispatcher: Dispatcher = self.master.addons
        self.header_timeout_s = limits.header_timeout_s
        self.idle_s = longest_silence_s(Deadlines(idle_s=limits.idle_s, first_byte_s=limits.first_byte_s))
        # A connection may be silent for as long as the longest wait that is allowed on it; requests have tighter
        # deadlines of their own.
        self.options = snapshot(self.master.options, idle_s=self.idle_s)
        self._limits = limits
        self._servers: list[asyncio.Server] = []
        self._handlers: dict[str, Live] = {}
        self._sources: Counter[str] = Counter()
        self._draining = False
        self._dialled = 0
        self._rounds: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._upstream_tls = UpstreamContexts(upstream_roots)
        self.master.install((TlsStage(self, leaves, self._upstream_tls), *stages(parts, self.registry)))
        self.dispatcher.on_failure = self._hook_failed

    # --- listeners ---

    async def listen(self, listener: Listener, bound: socket.socket, tls: ListenerTls | None = None) -> asyncio.Server:
        """Accepts on a bound socket; who hands what it gives to `unlisten` accepts no more there.

        Args:
            listener: what it is called and serves.
            bound: where.
            tls: its certificate, where callers speak TLS to it.
        """

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accepted(listener, reader, writer)

        self.keep_looking()
        if tls is not None:
            return await self._listen_tls(listener, bound, tls)
        start = asyncio.start_unix_server if listener.unix else asyncio.start_server
        server = await start(accepted, sock=bound, backlog=1024, **KEPT_FILE if listener.unix else {})
        self._servers.append(server)
        return server

    def unlisten(self, server: asyncio.Server) -> None:
        """Accepts no more there. What was accepted goes on."""
        server.close()
        self._servers.remove(server)

    async def _listen_tls(self, listener: Listener, bound: socket.socket, tls: ListenerTls) -> asyncio.Server:
        def offered() -> ssl.SSLContext:
            reverse = listener.reverse is not None
            return tls.context(protocols(reverse=reverse, http2_first=self._http2_first(listener)))

        def made() -> Threshold:
            return Threshold(
                self, listener, offered, facts_of_peer, new_client, functools.partial(self._secured, listener)
            )

        loop: Any = asyncio.get_running_loop()
        create, kept = (loop.create_unix_server, KEPT_FILE) if listener.unix else (loop.create_server, {})
        server: asyncio.Server = await create(made, sock=bound, backlog=1024, **kept)
        self._servers.append(server)
        return server

    def _http2_first(self, listener: Listener) -> bool:  # noqa: ARG002 - the fast engine asks
        """Whether a caller of this listener that speaks HTTP/2 is to speak it."""
        return True

    def _secured(self, listener: Listener, transport: asyncio.Transport, below: asyncio.Transport, held: bytes) -> None:
        """Serves a connection whose TLS has ended at the threshold."""
        del below  # mitmproxy's layers read what TLS gives them
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if held:
            reader.feed_data(held)
        task = loop.create_task(
            self._accepted(listener, reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        )
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    def keep_looking(self) -> None:
        """Begins the rounds that end what is open and may no longer be."""
        if self._rounds is None:
            self._rounds = asyncio.get_running_loop().create_task(self._look_around())

    async def _accepted(self, listener: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = facts_of_peer(listener, writer)
        if not self.admits(connection):
            writer.close()
            return
        client = new_client(writer)
        if listener.reverse is not None:
            client.alpn = agreed(writer)
        handler = ClientHandler(self, connection, client, reader, writer)
        self.enter(client, handler)
        try:
            self.parts.metrics.connection("downstream", 1)
            await handler.handle_client()
        finally:
            self.leave(client, connection)
            writer.close()
            self.parts.metrics.connection("downstream", -1)

    def admits(self, connection: Connection) -> bool:
        """Whether one more connection is accepted from there now; where it is not, that is recorded."""
        if (
            not self._draining
            and self.registry.live() < self._limits.connections
            and self._sources[connection.source] < self._limits.per_source
        ):
            return True
        code = Code.DRAINING if self._draining else Code.OVERLOADED
        self.parts.boundary.refuse_unparsed(
            connection, Refusal(code, "No more connections are accepted right now.", retry_after_s=1.0)
        )
        return False

    def enter(self, client: Client, live: Live) -> None:
        """Counts a connection that was admitted."""
        self.registry.connected(client, live.connection)
        self._handlers[client.id] = live
        self._sources[live.connection.source] += 1

    def leave(self, client: Client, connection: Connection) -> None:
        """The connection has ended."""
        self._handlers.pop(client.id, None)
        self.registry.disconnected(client)
        self._sources[connection.source] -= 1
        if not self._sources[connection.source]:
            del self._sources[connection.source]

    def handler_of(self, client: Client) -> ClientHandler:
        """The one that speaks with this caller by mitmproxy's layers; KeyError where none does."""
        handler = self._handlers[client.id]
        if not isinstance(handler, ClientHandler):
            raise KeyError(client.id)
        return handler

    # --- descriptors ---

    def take_socket(self) -> None:
        """Counts an upstream connection that is about to be dialled.

        Raises:
            Refusal: `overloaded`; the descriptors that are left are for the audit.
        """
        if self._limits.sockets and self.registry.live() + self._dialled >= self._limits.sockets:
            raise Refusal(Code.OVERLOADED, "No descriptor is free for another connection.", retry_after_s=1.0)
        self._dialled += 1

    def release_socket(self) -> None:
        self._dialled -= 1

    # --- what is open ---

    async def _look_around(self) -> None:
        """Each second: ends what is open and may no longer be. An idle process does nothing here but wake."""
        while True:
            await asyncio.sleep(RECHECK_S)
            self._recheck_all()
            self._upstream_tls.sweep()

    def _recheck_all(self) -> None:
        # A step of its own: a frame that sleeps would keep the last connection it looked at.
        policy = self.parts.in_force.policy
        for handler in tuple(self._handlers.values()):
            for exchange in tuple(handler.connection.exchanges):
                if exchange.policy is not policy:
                    self._recheck(handler, exchange, policy)

    def _recheck(self, handler: Live, exchange: Exchange, policy: Policy) -> None:
        try:
            refusal: BaseException | None = withdrawn(exchange, policy, extra_keys=self.parts.extra_keys)
        except Exception as error:  # noqa: BLE001 - what cannot be judged may not stay open
            refusal = error
        if refusal is None:
            return
        self.parts.boundary.refuse(exchange, refusal)
        # The whole connection: what else is open on it comes from the same caller and goes to the same authority.
        handler.hang_up()

    # --- end ---

    async def drain(self, timeout_s: float) -> None:
        """Stops accepting, lets exchanges finish for a while, then closes what is left."""
        self._draining = True
        if self._rounds is not None:
            self._rounds.cancel()
        for started in self._servers:
            started.close()
        deadline = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline and any(
            connection.exchanges for connection in self.registry
        ):
            self._close(idle_only=True)
            await asyncio.sleep(0.02)
        self._close(idle_only=False)
        for _ in range(100):
            if not self._handlers:
                break
            await asyncio.sleep(0.01)

    def _close(self, *, idle_only: bool) -> None:
        for handler in tuple(self._handlers.values()):
            if idle_only and handler.connection.exchanges:
                continue
            handler.hang_up()

    # --- failures ---

    def _hook_failed(self, name: str, subject: Any, error: BaseException) -> None:
        """Refuses whatever the failed hook was about."""
        if isinstance(subject, mitm_flow.Flow):
            self._flow_failed(subject, error)
            return
        if not isinstance(error, Refusal):
            _log.error("hook %s failed: %s", name, type(error).__name__)
        if isinstance(subject, server_hooks.ServerConnectionHookData):
            subject.server.error = "ostiary|internal|The proxy failed; nothing was sent upstream."
        elif isinstance(subject, TlsData):
            subject.ssl_conn = None  # the layer closes the connection
        elif isinstance(subject, ClientHelloData | Client):
            client = subject if isinstance(subject, Client) else subject.context.client
            client.error = "refused"
            handler = self._handlers.get(client.id)
            if isinstance(handler, ClientHandler):
                handler.loop.call_soon(handler.close_connection, client)
            elif handler is not None:
                handler.hang_up()

    def _flow_failed(self, flow: mitm_flow.Flow, error: BaseException) -> None:
        exchange = self.registry.find(flow)
        if exchange is None:
            # The very first stage failed: there is nothing to record on, and nothing may pass.
            _log.error("a request was cut before it was begun: %s", type(error).__name__)
            if flow.killable:
                flow.kill()
            return
        if exchange.settled and exchange.refused is None and isinstance(error, asyncio.CancelledError):
            return  # the caller went away; it has been recorded
        answer = self.parts.boundary.refuse(exchange, error)
        if exchange.connect:
            flow.response = response_of(answer, http2=False)  # type: ignore[attr-defined]  # every flow here is an HTTPFlow


class _Socket(Protocol):
    """What asyncio's transports and writers have in common."""

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


def facts_of_peer(listener: Listener, accepted: _Socket) -> Connection:
    """What the socket itself says about the peer."""
    if not listener.unix:
        peer = accepted.get_extra_info("peername")
        return Connection(uuid7(), listener, str(peer[0]) if peer else "unknown")
    raw = accepted.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return Connection(uuid7(), listener, f"unix:uid={uid}", uid)


_REGULAR: Final = mode_specs.ProxyMode.parse("regular")


def new_client(accepted: _Socket) -> Client:
    """What mitmproxy knows of a caller's connection."""
    return Client(
        peername=accepted.get_extra_info("peername") or ("unix", 0),
        sockname=accepted.get_extra_info("sockname") or ("unix", 0),
        timestamp_start=time.time(),  # noqa: TID251 - mitmproxy's own record
        proxy_mode=_REGULAR,
        state=ConnectionState.OPEN,
    )
