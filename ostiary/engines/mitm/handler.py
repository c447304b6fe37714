"""One caller's connection: moves bytes between sockets and mitmproxy's layers, runs hooks inline, dials what was
vetted.

Differs from mitmproxy's handler in three ways. Hooks run at once in an eager task instead of being scheduled (half the
cost of a request). A crash in a layer closes the connection instead of leaving it hanging. An upstream connection can
only be opened for a destination that a stage has vetted: there is no other way to dial.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy import commands, events, layer, server, server_hooks
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode

from addons.bodies import held_bytes
from addons.boundary import place_of
from addons.exchange import Connection, Exchange
from addons.parts import Deadlines
from addons.refusal import Refusal
from ostiary.engines.mitm.dialling import Bound, PoolKey, dial, failure_text
from ostiary.engines.mitm.growing import RoomHook
from ostiary.engines.mitm.inactivity import InactivityWatch
from ostiary.engines.mitm.layers import GuardedHttpLayer
from ostiary.engines.mitm.reverse import ReverseEntrance
from ostiary.engines.needs import bound_of, longest_silence_s, times_of
from policies import Grant

if TYPE_CHECKING:
    from ostiary.engines.mitm.engine import MitmEngine

_log = logging.getLogger("ostiary.engine")

PIPELINE_DEADLINE_S: Final = 30.0
"""A hook that is still waiting after this is cancelled, and its request refused. Every wait inside has a shorter
deadline of its own; this one catches the unforeseen."""


MAX_HTTP2_WAITING_BYTES: Final = 1 << 20
"""What may wait for an HTTP/2 caller that does not read, before its upstreams are held back; and the other way round."""
MAX_HTTP2_UPLOAD_BYTES: Final = 16 << 20
"""What may wait for HTTP/2 upstreams while the caller's own window is closed as well."""


class ClientHandler(server.ConnectionHandler):
    """Handles one connection from accept to close."""

    def __init__(
        self,
        engine: MitmEngine,
        connection: Connection,
        client: Client,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        context = Context(client, engine.options)  # type: ignore[arg-type]  # a snapshot with the same attributes
        super().__init__(context)
        self.engine = engine
        self.parts = engine.parts
        self.boundary = engine.parts.boundary
        self.registry = engine.registry
        self.connection = connection
        self.loop = asyncio.get_running_loop()
        self.timeout_watchdog = InactivityWatch(self._silence_allowed_s, self.on_timeout)
        self.header_timeout_s = engine.header_timeout_s
        self.layer: layer.Layer = (
            GuardedHttpLayer(context, HTTPMode.regular, self)
            if connection.listener.reverse is None
            else ReverseEntrance(context, self)
        )
        self.transports[client] = server.ConnectionIO(reader=reader, writer=writer)
        self.sent_ahead: Callable[[], int] | None = None
        """Bytes that an HTTP/1 caller has sent ahead of its turn."""
        self.http2_waiting: Callable[[], int] | None = None
        """Bytes that wait for an HTTP/2 caller to open its window; None for an HTTP/1 caller."""
        self.http2_uploads: dict[Server, Callable[[], int]] = {}
        """Bytes that wait for an HTTP/2 upstream to open its window or to take another stream."""
        self._progress = asyncio.Event()
        self.http_layer: GuardedHttpLayer | None = None
        """The innermost one."""
        self.entrance: layer.Layer | None = None
        """What an accepted CONNECT leads to."""
        self._bound: dict[Server, Bound] = {}
        self._queue: collections.deque[events.Event] = collections.deque()
        self._pumping = False
        self._hooks: set[asyncio.Task[None]] = set()
        self._waiting: set[commands.StartHook] = set()
        """Hooks that an inner layer has started and that are on their way up only to be waited for."""
        self._timers: set[asyncio.TimerHandle] = set()

    # --- what layers ask ---

    def bind(self, connection: Any, bound: Bound) -> None:
        """Says what a connection that is about to be opened is for."""
        self._bound[connection] = bound

    def bound(self, connection: Any) -> Bound | None:
        return self._bound.get(connection)

    def pool_key(self, connection: Any) -> PoolKey | None:
        found = self._bound.get(connection)
        return None if found is None else found.pool_key

    def bound_for(self, exchange: Exchange) -> Bound:
        return bound_of(exchange, self.times_of(exchange))

    def times_of(self, exchange: Exchange) -> Deadlines:
        return times_of(exchange, self.parts.deadlines)

    def _silence_allowed_s(self) -> float:
        """How long nothing may move here: for as long as the most patient request in flight waits, if there is one."""
        in_flight = (one for one in self.connection.exchanges if one.find(Grant) is not None)
        return max((longest_silence_s(self.times_of(one)) for one in in_flight), default=self.engine.idle_s)

    def later(self, delay_s: float, event: events.Event) -> None:
        """Posts an event after a while, unless the connection is gone by then."""
        handle = self.loop.call_later(delay_s, self._wake, event)
        self._timers.add(handle)

    def head_due(self, event: events.Event) -> None:
        """Posts an event when what a caller has begun must be complete; never where no deadline is set."""
        if self.header_timeout_s:
            self.later(self.header_timeout_s, event)

    def _wake(self, event: events.Event) -> None:
        self._timers = {
            handle for handle in self._timers if handle.when() > self.loop.time() and not handle.cancelled()
        }
        self.post(event)

    def splice(self, entrance: layer.Layer, held: bytes) -> None:
        """Makes what is inside an accepted CONNECT the outermost layer.

        The layers that carried the CONNECT would only pass every event on: without them a request costs a third less.
        """
        self.layer = entrance
        self._queue.append(events.Start())
        if held:
            self._queue.append(events.DataReceived(self.client, held))

    def hang_up(self) -> None:
        """Closes the caller's connection, and with it every upstream connection made for it."""
        io = self.transports.get(self.client)
        if io is not None and io.handler is not None:
            io.handler.cancel("hung up")

    # --- the pump ---

    async def server_event(self, event: events.Event) -> None:
        self.post(event)

    def post(self, event: events.Event) -> None:
        """Feeds one event to the layers and carries out what they answer. Never suspends; re-entrant calls queue."""
        self.timeout_watchdog.register_activity()
        self._progress.set()  # A window opened, a hook is done, or a deadline reset the stream: those who wait look again.
        self._queue.append(event)
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                for command in self.layer.handle_event(self._queue.popleft()):
                    self._perform(command)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a layer that fails must not leave the connection half alive; nothing here suspends, so a cancellation is a failure too
            self._crashed(error)
        finally:
            self._pumping = False

    def _perform(self, command: commands.Command) -> None:
        match command:
            case commands.SendData():
                io = self.transports.get(command.connection)
                if io is not None and io.writer is not None and not io.writer.is_closing():
                    io.writer.write(command.data)
            case commands.StartHook():
                self._start_hook(command)
            case commands.OpenConnection():
                task = self.loop.create_task(self.open_connection(command))
                self.transports[command.connection] = server.ConnectionIO(handler=task)
            case commands.RequestWakeup():
                self.later(command.delay, events.Wakeup(command))
            case commands.ConnectionCommand() if command.connection not in self.transports:
                pass  # already closed
            case commands.CloseTcpConnection():
                self.close_connection(command.connection, command.half_close)
            case commands.CloseConnection():
                self.close_connection(command.connection, half_close=False)
            case commands.Log():
                # mitmproxy's own words may quote what was sent: only that something was said is passed on.
                _log.debug("engine notice on connection %s", self.connection.id)
            case _:
                raise RuntimeError(f"unexpected command {type(command).__name__}")

    def hook_now(self, hook: commands.StartHook) -> bool:
        """Runs a hook; False if it has to wait for something, and its completion will be posted."""
        (subject,) = hook.args()
        rest = self._room() if isinstance(hook, RoomHook) else self.engine.dispatcher.start(hook.name, subject)
        if rest is None:
            return True
        task = asyncio.Task(rest, loop=self.loop, eager_start=True)
        if task.done():
            return True
        self._hooks.add(task)
        deadline = self.loop.call_later(PIPELINE_DEADLINE_S, task.cancel)

        def completed(done: asyncio.Task[None]) -> None:
            deadline.cancel()
            self._hooks.discard(done)
            if hook.blocking:
                self.post(events.HookCompleted(hook))

        task.add_done_callback(completed)
        self._waiting.add(hook)
        return False

    def _start_hook(self, hook: commands.StartHook) -> None:
        """A hook of a layer outside HTTP (TLS), or one that already waits."""
        if hook in self._waiting:
            self._waiting.discard(hook)
        elif self.hook_now(hook) and hook.blocking:
            self._queue.append(events.HookCompleted(hook))
        else:
            self._waiting.discard(hook)

    def _crashed(self, error: BaseException) -> None:
        self._queue.clear()
        _log.error("connection %s closed: %s at %s", self.connection.id, type(error).__name__, place_of(error))
        for exchange in tuple(self.connection.exchanges):
            self.boundary.refuse(exchange, error)
        for connection, io in tuple(self.transports.items()):
            connection.state = ConnectionState.CLOSED
            if io.handler is not None:
                io.handler.cancel("closed after a failure")
            elif io.writer is not None:
                io.writer.close()

    async def drain_writers(self) -> None:
        """Back-pressure: reads on only once what was written has left. Costs nothing while nothing waits."""
        for io in self.transports.values():
            writer = io.writer
            if isinstance(writer, asyncio.StreamWriter) and writer.transport.get_write_buffer_size():
                self.backlog()
                await super().drain_writers()
                break
        client = self.transports.get(self.client)
        if client is None:
            return
        # Each side is held back by what waits for the other: it is that side's own frames that open its window again.
        waits = self._upload_waits if asyncio.current_task() is client.handler else self._download_waits
        while self.client.connected and waits():
            self.backlog()
            self._progress.clear()
            await self._progress.wait()

    async def _room(self) -> None:
        """Comes back when the caller has read what waits for it, and never in the same turn of the loop."""
        await asyncio.sleep(0)
        io = self.transports.get(self.client)
        if io is not None and isinstance(io.writer, asyncio.StreamWriter):
            with contextlib.suppress(OSError):
                await io.writer.drain()
        while self.client.connected and self._http2_waits():
            self.backlog()
            self._progress.clear()
            await self._progress.wait()

    def _http2_waits(self) -> bool:
        return self.http2_waiting is not None and self.http2_waiting() > MAX_HTTP2_WAITING_BYTES

    def _download_waits(self) -> bool:
        if self._http2_waits():
            return True
        # Answers whose heads a hook still judges: a store is asked, or an addon, and both have deadlines.
        return self.http_layer is not None and self.http_layer.answers_paused()

    def _upload_waits(self) -> bool:
        uploads = sum(waiting() for waiting in self.http2_uploads.values())
        # Held back on both sides nobody would move again; so the caller is read on, up to a cap of its own.
        if uploads > MAX_HTTP2_WAITING_BYTES and (not self._download_waits() or uploads > MAX_HTTP2_UPLOAD_BYTES):
            return True
        # Bodies whose requests wait for a secret or a dial, which have deadlines of their own.
        return self.http_layer is not None and self.http_layer.paused()

    def backlog(self) -> None:
        """Something waits here: it is counted until nothing does."""
        if self.parts.buffers is not None:
            self.parts.buffers.watch(self)

    def held_bytes(self) -> int:
        """What waits to be written, has been read and not been looked at, and waits for a window or a turn."""
        held = held_bytes(self.connection)
        for io in tuple(self.transports.values()):
            if isinstance(io.writer, asyncio.StreamWriter):
                held += io.writer.transport.get_write_buffer_size()
            held += len(getattr(io.reader, "_buffer", b""))  # asyncio shows it to nobody
        for waiting in (self.sent_ahead, self.http2_waiting, *self.http2_uploads.values()):
            if waiting is not None:
                held += waiting()
        return held

    # --- life ---

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Life-cycle hooks that mitmproxy's base class awaits."""
        await self.engine.dispatcher.run(hook)

    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:  # noqa: ARG002 - mitmproxy's signature
        """Mitmproxy's texts may quote hosts, errors and data; the type of an exception is all that is kept."""
        if exc_info and isinstance(exc_info, tuple):
            _log.error("connection %s failed: %s", self.connection.id, exc_info[0].__name__)

    async def handle_client(self) -> None:
        try:
            await super().handle_client()
        finally:
            for handle in self._timers:
                handle.cancel()
            for task in tuple(self._hooks):
                task.cancel()
            self._progress.set()
            self._bound.clear()
            if self.parts.buffers is not None:
                self.parts.buffers.forget(self)

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Dials the vetted destination this connection was bound to, and nothing else."""
        try:
            self.engine.take_socket()
        except Refusal as refusal:
            self._failed(command, failure_text(refusal))
            return
        try:
            await self._open(command)
        finally:
            self.engine.release_socket()

    async def _open(self, command: commands.OpenConnection) -> None:
        connection = command.connection
        bound = self._bound.get(connection)
        if bound is None:
            # Nothing has vetted it. Reached only by a mistake in a layer; refused all the same.
            _log.error(
                "connection %s: an upstream connection without a vetted destination was refused", self.connection.id
            )
            self._failed(command, "ostiary|internal|The proxy failed; nothing was sent upstream.")
            return
        try:
            reader, writer = await dial(bound)
        except Refusal as refusal:
            self._failed(command, failure_text(refusal))
            return
        except asyncio.CancelledError:
            # Dials are given up when the caller has gone: that is what the records must say, not that the upstream failed.
            for exchange in tuple(self.connection.exchanges):
                self.boundary.settle(exchange, "client_gone")
            self._failed(command, "ostiary|upstream_unreachable|The connection was given up.")
            raise
        except Exception as error:  # noqa: BLE001 - whatever a dial meets, the request that waits for it must be told
            self._broken(command, error)
            return
        connection.timestamp_start = connection.timestamp_tcp_setup = time.time()  # noqa: TID251 - mitmproxy's own record
        connection.state = ConnectionState.OPEN
        connection.peername = writer.get_extra_info("peername")
        connection.sockname = writer.get_extra_info("sockname")
        self.transports[connection] = server.ConnectionIO(handler=asyncio.current_task(), reader=reader, writer=writer)
        host = bound.destination.authority.host
        try:
            self.parts.metrics.upstream_connection(host, "open", 1)
        except BaseException as error:  # noqa: BLE001 - as above: nobody else would tell the request
            writer.close()
            connection.state = ConnectionState.CLOSED
            self._broken(command, error)
            return
        try:
            await self.handle_hook(
                server_hooks.ServerConnectedHook(
                    server_hooks.ServerConnectionHookData(client=self.client, server=connection)
                )
            )
            self.post(events.OpenConnectionCompleted(command, None))
            await self.handle_connection(connection)
        finally:
            self._bound.pop(connection, None)
            self.http2_uploads.pop(connection, None)
            self._progress.set()
            self.parts.metrics.upstream_connection(host, "open", -1)

    def _broken(self, command: commands.OpenConnection, error: BaseException) -> None:
        """A connection that could not be opened for a reason nobody foresaw."""
        _log.error("connection %s: opening failed: %s at %s", self.connection.id, type(error).__name__, place_of(error))
        self._failed(command, "ostiary|internal|The proxy failed; nothing was sent upstream.")

    def _failed(self, command: commands.OpenConnection, text: str) -> None:
        self.transports.pop(command.connection, None)
        self._bound.pop(command.connection, None)
        command.connection.error = text
        self.post(events.OpenConnectionCompleted(command, text))
