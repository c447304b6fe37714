"""How a caller's tunnel is opened: CONNECT is judged and answered, then the caller's TLS ends here, or its bytes are passed
on unopened.

Inside an accepted CONNECT only TLS goes on; anything else is closed (raw bytes, plain HTTP on a TLS route). A caller
that speaks only HTTP/2 there is handed to mitmproxy's layers, and so is every caller of an authority where a route says
`http2: prefer`: the fast lane speaks HTTP/1.1 alone to upstreams.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from functools import partial
from typing import TYPE_CHECKING, Final

from mitmproxy import http
from mitmproxy.net.http import url
from mitmproxy.net.tls import starts_like_tls_record

from addons.boundary import place_of
from addons.egress import Destination
from addons.exchange import Exchange, WorkloadIdentity
from addons.parts import Deadlines
from addons.refusal import Answer, Code, Refusal
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.failures import FAILURES, cancelled
from ostiary.engines.fast.flows import new_flow
from ostiary.engines.fast.link import WRITE_HIGH_BYTES, Link
from ostiary.engines.fast.phase import CLOSE_S, Phase
from ostiary.engines.mitm.dialling import Bound, PoolKey
from ostiary.engines.threshold import feed
from ostiary.tls_rules import ALPN_HTTP2
from policies import Passage

if TYPE_CHECKING:
    from ostiary.engines.fast.caller import Caller

_log = logging.getLogger("ostiary.engine")
_tls_log = logging.getLogger("ostiary.tls")

UNBOUNDED_S: Final = 365 * 86_400.0
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Opening:
    """Opens tunnels for one caller's connection."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._prefers_http2 = False
        """As the policy said that the CONNECT was judged by."""

    def connect(self, request: http.Request) -> None:
        """Judges a CONNECT and answers it."""
        caller = self._caller
        authority, port = url.parse_authority(request.data.path.decode("ascii", "replace"), check=False)
        request.data.host, request.data.port = authority, port or 443
        request.data.authority, request.data.path = request.data.path, b""
        flow = new_flow(caller.client, caller.no_server, request)
        caller.hook("http_connect", flow, lambda: self._admitted(flow))

    def _admitted(self, flow: http.HTTPFlow) -> None:
        caller = self._caller
        exchange = caller.engine.registry.find(flow)
        if caller.phase is not Phase.WAITING:
            return
        if exchange is None:
            caller.close()
        elif exchange.refused is not None:
            self._refused(flow, exchange.refused)
        elif exchange.find(Passage) is not None:
            caller.spawn(self._pass_on(flow, exchange))
        else:
            caller.hook("http_connected", flow, lambda: self._established(exchange))

    def _refused(self, flow: http.HTTPFlow, answer: Answer) -> None:
        """The connection stays usable: many clients answer a 407 on it."""
        caller = self._caller
        caller.say(answer)
        caller.hook("http_connect_error", flow, _nothing)
        if any(name == "Connection" for name, _ in answer.headers):
            caller.close()
            return
        caller.flush()
        caller.await_request()

    def _established(self, exchange: Exchange) -> None:
        caller = self._caller
        if caller.phase is not Phase.WAITING:
            return
        if exchange.refused is not None or caller.connection.tunnel is None:
            caller.close()
            return
        authority = caller.connection.tunnel.authority
        self._prefers_http2 = exchange.policy.http2(authority.host, authority.port) == "prefer"
        caller.write(ESTABLISHED)
        caller.flush()
        caller.enter(Phase.ENTRANCE)
        caller.deadline.expect(Wait.HANDSHAKE, caller.engine.header_timeout_s)
        if caller.ahead:
            self.enter()

    async def _pass_on(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        """A tunnel that is passed on unopened: dialled before it is accepted, so that a failure can be told."""
        caller = self._caller
        times = caller.engine.parts.deadlines
        try:
            link = await caller.engine.dial_blind(exchange)
        except FAILURES as error:  # whatever a dial meets, the caller must be told
            if cancelled():
                return
            caller.engine.parts.boundary.refuse(exchange, error)
            if exchange.refused is not None:
                answer = exchange.refused
                caller.guarded(lambda: self._refused(flow, answer))
            return
        caller.guarded(lambda: self._reached(flow, link, exchange, times))

    def _reached(self, flow: http.HTTPFlow, link: Link, exchange: Exchange, times: Deadlines) -> None:
        caller = self._caller
        try:
            if caller.phase is not Phase.WAITING:
                link.close()
                return
            exchange.dialled_s = caller.engine.parts.clock.monotonic_s()
            caller.hook("http_connected", flow, lambda: self._passing(link, exchange, times))
        except BaseException:
            link.close()
            raise

    def _passing(self, link: Link, exchange: Exchange, times: Deadlines) -> None:
        caller = self._caller
        if exchange.refused is not None or caller.phase is not Phase.WAITING:
            link.close()
            caller.close()
            return
        caller.write(ESTABLISHED)
        caller.join(link, exchange, times, frames=False)

    def enter(self) -> None:
        """Looks at the first bytes inside the tunnel."""
        caller = self._caller
        # Some clients send superfluous line ends after CONNECT.
        held = caller.ahead = caller.ahead.lstrip(b"\r\n")
        if len(held) < 3:
            return
        if not starts_like_tls_record(held):
            refusal = Refusal(Code.BAD_REQUEST, "Inside this tunnel the proxy expects TLS.", close=True)
            caller.engine.parts.boundary.refuse_unparsed(caller.connection, refusal)
            caller.close()
            return
        caller.enter(Phase.WAITING)
        caller.ahead = b""
        caller.spawn(self._shake_hands(held))

    def late(self) -> None:
        """The handshake must be done: its bytes may come one by one as those of a head may."""
        caller = self._caller
        refusal = Refusal(Code.REQUEST_TIMEOUT, "The TLS handshake did not end in time.", close=True)
        caller.engine.parts.boundary.refuse_unparsed(caller.connection, refusal)
        caller.hang_up()

    async def _shake_hands(self, held: bytes) -> None:
        caller = self._caller
        tunnel, transport = caller.connection.tunnel, caller.transport
        if tunnel is None or transport is None or transport.is_closing():
            return  # lost already: TLS that were begun now would never be told
        limit_s = caller.engine.header_timeout_s
        try:
            # The leaf is for the authority of CONNECT, whatever the ClientHello says: another SNI gets a certificate
            # that does not fit and, if it goes on, 421.
            context = caller.engine.caller_contexts.of(tunnel.authority.host, http2_first=self._prefers_http2)
            caller.loop.call_soon(feed, transport, held)
            secured = await caller.loop.start_tls(
                transport,
                caller,
                context,
                server_side=True,
                # The deadline is ours, and began with the tunnel; this one is for what neither side tells us of.
                ssl_handshake_timeout=limit_s + CLOSE_S if limit_s else UNBOUNDED_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except FAILURES as error:  # a handshake fails in many ways; each ends the connection
            if not cancelled() and caller.phase is Phase.WAITING:
                self._no_tls(error)
            caller.connection_lost(None)
            return
        session = secured.get_extra_info("ssl_object") if secured is not None else None
        if secured is None or session is None or caller.phase is not Phase.WAITING:
            # uvloop tells of the end of a connection whose handshake is not done nobody but this call.
            caller.connection_lost(None)
            return
        caller.transport = secured
        caller.guarded(partial(self._secured, secured, session))

    def _no_tls(self, error: BaseException) -> None:
        caller = self._caller
        if isinstance(error, ssl.SSLError | ConnectionError | TimeoutError):
            _tls_log.warning(
                "TLS with the caller failed on listener %s for %s: does the client trust Ostiary's CA? (ostiary env prints the settings)",
                caller.listener.name,
                caller.connection.tunnel.authority if caller.connection.tunnel else "no authority",
            )
        else:
            _log.error("TLS could not be begun: %s at %s", type(error).__name__, place_of(error))
        caller.hang_up()

    def _secured(self, transport: asyncio.Transport, session: ssl.SSLObject) -> None:
        caller = self._caller
        tunnel = caller.connection.tunnel
        if tunnel is None:
            return
        caller.opened()
        tunnel.sni_seen, tunnel.sni = True, caller.engine.caller_contexts.server_name(session)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        chosen = session.selected_alpn_protocol()
        client = caller.client
        client.tls, client.sni = True, tunnel.sni
        client.alpn = chosen.encode() if chosen is not None else None
        held, caller.ahead = caller.ahead, b""
        if client.alpn == ALPN_HTTP2 or self._prefers_http2:
            caller.enter(Phase.HANDED)
            caller.engine.hand_over(caller, held)
            return
        caller.enter(Phase.HEAD)
        caller.deadline.expect(Wait.REQUEST, caller.engine.idle_s)
        if held:
            caller.received(held)


def _nothing() -> None:
    """Nothing follows."""


def blind_bound(exchange: Exchange, times: Deadlines) -> Bound:
    """What the upstream connection of an unopened tunnel is for."""
    destination = exchange.ask(Destination)
    key = PoolKey(exchange.ask(WorkloadIdentity).workload, destination.authority, destination.addresses, None)
    return Bound(destination, key, times.connect_s)
