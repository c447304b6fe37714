"""Asks the policy: whether a tunnel may be opened, and which grant a request gets."""

from __future__ import annotations

from mitmproxy import http

from addons.authorization import admit, grant
from addons.exchange import Authority, WorkloadIdentity
from addons.stages.registry import Registry


class AuthorizationStage:
    """Puts `Grant`."""

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
        exchange.put(grant(exchange))
