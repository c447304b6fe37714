"""A caller's connection from its acceptance to its loss: counted, its hooks run, and what fails in a step caught.

    made      admitted and counted, or closed; then the hook `client_connected`
    lost      what is under way is told; the hook `client_disconnected`; its slot is free again
    guarded   whatever fails in a step ends the request or, where no request is, the connection

A connection is left exactly once, by whoever first knows of its end: the transport, the handshake that broke off, or
mitmproxy's layers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from mitmproxy.connection import Client, ConnectionState

from addons.bodies import held_bytes
from addons.boundary import place_of
from addons.exchange import Connection, Listener
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.downstream import Downstream
from ostiary.engines.fast.failures import FAILURES
from ostiary.engines.fast.flows import new_client
from ostiary.engines.fast.link import WRITE_HIGH_BYTES, Link
from ostiary.engines.fast.phase import Phase
from ostiary.engines.fast.steps import Steps
from ostiary.engines.mitm.engine import facts_of_peer
from ostiary.engines.threshold import agreed

if TYPE_CHECKING:
    from ostiary.engines.fast.engine import FastEngine

_log = logging.getLogger("ostiary.engine")


class Accepted(Downstream):
    """A connection that a listener has accepted.

    Args:
        engine: whose listener it was.
        listener: where it came in.
        below: the socket's transport, where TLS ended at the listener.
    """

    connection: Connection
    client: Client

    def __init__(self, engine: FastEngine, listener: Listener, below: asyncio.Transport | None = None) -> None:
        super().__init__(engine.loop, below)
        self.engine = engine
        self.listener = listener
        self._steps = Steps(self.loop)
        self._full = False
        """Whether what was written waits for the caller to read it."""
        self._then: Callable[[], None] | None = None
        self._entered = False

    def gone(self) -> None:
        """The connection is lost: whatever is under way on it ends."""
        raise NotImplementedError

    def request_failed(self, error: BaseException) -> bool:
        """Ends the request under way by this error; false where there is none."""
        raise NotImplementedError

    def upstream(self) -> Link | None:
        """Whose bytes go to this caller now."""
        raise NotImplementedError

    # --- its life ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._entered:
            return  # TLS on a connection that is known
        accepted = cast("asyncio.Transport", transport)
        self.attach(accepted)
        self.connection = facts_of_peer(self.listener, transport)
        if not self.engine.admits(self.connection):
            self.phase = Phase.CLOSED
            accepted.close()
            return
        self.client = new_client(transport, self.connection.id)
        if self.listener.reverse is not None:
            self.phase, self.client.alpn = Phase.ENTRANCE, agreed(transport)
        self.engine.enter(self.client, self)
        self._entered = True
        accepted.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        # Who connects has something to say; nothing is known of it yet that would let it wait.
        self.deadline.expect(Wait.REQUEST, self.engine.header_timeout_s)
        self.guarded(self._begin)

    def _begin(self) -> None:
        self.engine.parts.metrics.connection("downstream", 1)
        self.hook("client_connected", self.client, self._welcomed)

    def _welcomed(self) -> None:
        if self.client.error:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # why a caller goes is its own affair
        if not self._entered:
            self.part()
            return
        self.deadline.stop()
        self.client.state = ConnectionState.CLOSED
        self.guarded(self.gone)
        self.phase = Phase.CLOSED
        self._steps.cancel()
        self.hook("client_disconnected", self.client, _nothing)
        self._leave()

    def handed_back(self) -> None:
        """Who served the connection instead has done with it."""
        if self.transport is not None:
            self.transport.close()
        self._leave()

    def _leave(self) -> None:
        self._entered = False
        self._then = None
        if self.engine.parts.buffers is not None:
            self.engine.parts.buffers.forget(self)
        self.engine.leave(self.client, self.connection)
        self.engine.parts.metrics.connection("downstream", -1)
        self.part()

    # --- what waits here ---

    def when_there_is_room(self, then: Callable[[], None]) -> None:
        """Goes on with the next turn of the loop, or when the caller has read what waits for it."""
        if self._full:
            self._then = then
        else:
            self.loop.call_soon(then)

    def pause_writing(self) -> None:
        self._full = True
        self.backlog()
        link = self.upstream()
        if link is not None:
            link.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        link = self.upstream()
        if link is not None and not link.waiting:
            link.resume_reading()
        then, self._then = self._then, None
        if then is not None:
            then()

    def backlog(self) -> None:
        """Something waits here: it is counted until nothing does."""
        if self.engine.parts.buffers is not None:
            self.engine.parts.buffers.watch(self)

    def held_bytes(self) -> int:
        """What waits to be written to either side, and what has been read and waits for its turn."""
        if self.phase is Phase.CLOSED:
            return 0
        held = len(self.ahead) + held_bytes(self.connection)
        link = self.upstream()
        for transport in (self.transport, link.transport if link is not None else None):
            if transport is not None:
                held += transport.get_write_buffer_size()
        return held

    # --- steps, and what fails in them ---

    def hook(self, name: str, subject: object, then: Callable[[], None]) -> None:
        """Runs a hook, then goes on: at once where nothing in it has to wait.

        Args:
            name: of the hook.
            subject: what it is about.
            then: the next step.
        """
        rest = self.engine.dispatcher.start(name, subject)
        if rest is None:
            then()
        else:
            self._steps.finish(rest, then, self.guarded)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what has to wait; cancelled when the connection ends."""
        self._steps.run(work)

    def guarded(self, step: Callable[[], None]) -> None:
        """Takes a step; what fails in it ends the request, or the connection."""
        try:
            step()
        except FAILURES as error:  # what fails must not leave the connection half alive
            self.crashed(error)
        self.flush()

    def crashed(self, error: BaseException) -> None:
        """A step has failed."""
        try:
            if self.request_failed(error):
                return
        except FAILURES as again:
            error = again
        _log.error("connection %s closed: %s at %s", self.connection.id, type(error).__name__, place_of(error))
        try:
            for exchange in tuple(self.connection.exchanges):
                self.engine.parts.boundary.refuse(exchange, error)
        finally:
            self.hang_up()


def _nothing() -> None:
    """Nothing follows."""
