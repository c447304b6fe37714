"""Resolves and vets the destination of a granted request, before any secret is read, and of a tunnel that is passed on
unopened.
"""

from __future__ import annotations

from mitmproxy import http

from addons.egress import destination
from addons.exchange import Authority
from addons.parts import Parts
from addons.stages.plans import Plans
from addons.stages.registry import Registry
from policies import Grant, Passage


class EgressStage:
    """Puts `Destination`."""

    def __init__(self, parts: Parts, registry: Registry, plans: Plans) -> None:
        self._parts = parts
        self._registry = registry
        self._plans = plans

    async def http_connect(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        if exchange.find(Passage) is None:
            return  # inspected: each request inside is vetted by itself
        exchange.put(
            await destination(
                exchange.ask(Authority),
                self._parts.egress,
                None,
                self._parts.egress.allow,
                self._parts.resolver,
                {},
                deadline_s=self._parts.deadlines.connect_s,
            )
        )

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        authority = exchange.ask(Authority)
        route = exchange.ask(Grant).route
        plan = self._plans.of(exchange.policy, route)
        deadline_s = (
            route.timeouts.connect_s if route.timeouts.connect_s is not None else self._parts.deadlines.connect_s
        )
        exchange.put(
            await destination(
                authority,
                self._parts.egress,
                route.egress,
                plan.allow,
                self._parts.resolver,
                plan.vetted,
                deadline_s=deadline_s or self._parts.deadlines.connect_s,
            )
        )
