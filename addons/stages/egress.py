"""Resolves and vets the destination of a granted request, before any secret is read, and of a tunnel that is passed on
unopened.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from mitmproxy import http

from addons.egress import destination, destination_now
from addons.exchange import Authority, Exchange
from addons.parts import Parts
from addons.stages.plans import Plans, RoutePlan
from addons.stages.registry import Registry
from policies import Grant, Passage
from policies.model import Route


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

    def requestheaders(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        exchange = self._registry.exchange(flow)
        parts = self._parts
        route = exchange.ask(Grant).route
        plan = self._plans.of(exchange.policy, route)
        known = destination_now(
            exchange.ask(Authority), parts.egress, route.egress, plan.allow, parts.resolver, plan.vetted
        )
        if known is None:
            return self._resolve(exchange, route, plan)
        exchange.put(known)
        return None

    async def _resolve(self, exchange: Exchange, route: Route, plan: RoutePlan) -> None:
        parts = self._parts
        exchange.put(
            await destination(
                exchange.ask(Authority),
                parts.egress,
                route.egress,
                plan.allow,
                parts.resolver,
                plan.vetted,
                deadline_s=parts.deadlines.connect_s if route.timeouts.connect_s is None else route.timeouts.connect_s,
            )
        )
