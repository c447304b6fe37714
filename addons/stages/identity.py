"""Proves the caller at CONNECT, and again on every request inside the tunnel."""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.connection import Client

from addons.exchange import Authority, Exchange, Tunnel, WorkloadIdentity
from addons.identity import prove, still_proven
from addons.identity.budget import FailureBudget
from addons.identity.presence import Presence
from addons.parts import Parts
from addons.refusal import Code, Refusal
from addons.stages.registry import Registry
from policies import Passage


class IdentityStage:
    """Puts `WorkloadIdentity`."""

    def __init__(self, parts: Parts, registry: Registry) -> None:
        self._parts = parts
        self._registry = registry
        self._budget = FailureBudget(parts.clock)
        self._presence = Presence(parts.connections_per_workload)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        self._prove(self._registry.exchange(flow))

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        tunnel = exchange.connection.tunnel
        if tunnel is None:
            # A plain http:// request brings its own proof, as a CONNECT does, and so does one on a reverse listener.
            self._prove(exchange)
            return
        if not still_proven(tunnel.identity, exchange.connection, exchange.policy, extra_keys=self._parts.extra_keys):
            raise Refusal(
                Code.PROOF_EXPIRED, "The proof this tunnel was opened with is no longer accepted.", close=True
            )
        exchange.put(tunnel.identity)

    def _prove(self, exchange: Exchange) -> None:
        try:
            identity = prove(exchange.connection, exchange.policy, exchange.head, extra_keys=self._parts.extra_keys)
        except Refusal as refusal:
            if refusal.code is Code.PROOF_INVALID and not self._budget.spend(exchange.connection.source):
                refusal.close = True
            raise
        if identity.proof != "signature":
            # Strangers who have yet to be told from senders must not take up these places.
            self._presence.enter(exchange.connection, identity.workload)
        exchange.put(identity)

    def client_disconnected(self, client: Client) -> None:
        gone = self._registry.find_connection(client)
        if gone is not None:
            self._presence.leave(gone)


class TunnelStage:
    """The last stage of CONNECT: what every request inside will be bound to."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def http_connect(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        if exchange.find(Passage) is not None:
            return  # nothing inside will be read
        exchange.connection.tunnel = Tunnel(exchange.ask(Authority), exchange.ask(WorkloadIdentity))
