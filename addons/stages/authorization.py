"""Asks the policy: whether a tunnel may be opened, and which grant a request gets. On a reverse listener the granted
route says where the request goes.
"""

from __future__ import annotations

from mitmproxy import http

from addons.authorization import admit, grant
from addons.exchange import Authority, Exchange, WorkloadIdentity
from addons.reverse import authority_of, for_upstream
from addons.stages.registry import Registry
from addons.verifying.received import keep_sent
from policies import Grant


class AuthorizationStage:
    """Puts `Grant`; on a reverse listener `Authority`, too."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def http_connect(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        passage = admit(exchange.policy, exchange.ask(Authority), exchange.ask(WorkloadIdentity))
        if passage is not None:
            exchange.put(passage)
            exchange.rule = passage.rule

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        granted = grant(exchange)
        exchange.put(granted)
        if exchange.connection.listener.reverse is not None:
            _lead(exchange, granted, flow.request.data)


def _lead(exchange: Exchange, granted: Grant, request: http.RequestData) -> None:
    """From a reverse listener to the route's upstream."""
    authority = authority_of(granted.route)
    keep_sent(exchange)
    exchange.put(authority)
    exchange.head = for_upstream(exchange.head, authority)
    # What the engine goes by, and what addons of users are shown.
    request.headers.fields = exchange.head.fields
    request.host, request.port = authority.host, authority.port
    request.scheme = b"http" if authority.cleartext else b"https"
