"""Reads the secret, opens its audit record, and builds the head that leaves: the last stages before the wire.

Where nothing has to be waited for (the secret is in memory, the audit is a file) all of it happens at once. The
credential lives in local variables and in the `HeadersToSend` that it becomes, which the engine
takes off the exchange. The flow never sees it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from mitmproxy import http

from addons.audit import Fields, OpenRecord
from addons.boundary import facts_of
from addons.credentials import Needs, Openings, SealedCredential, may_travel, seal, seal_now, unseal
from addons.egress import Destination
from addons.exchange import Authority, Exchange
from addons.injection import (
    applicable,
    brought,
    build_forward,
    build_with_credential,
    reject_caller_credentials,
)
from addons.parts import Parts
from addons.reply.scrub import basics_of
from addons.stages.plans import Plans, RoutePlan
from addons.stages.registry import Registry
from policies import Grant
from policies.model import CredentialSpec, Injector
from vault.store import SealedSecret


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be done to one request, fixed when its head was judged."""

    exchange: Exchange
    plan: RoutePlan
    injectors: tuple[Injector, ...]


class CredentialStage:
    """Puts `SealedCredential`, `Openings`, `Scrub` and `HeadersToSend`."""

    def __init__(self, parts: Parts, registry: Registry, plans: Plans) -> None:
        self._parts = parts
        self._registry = registry
        self._plans = plans

    def requestheaders(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        exchange = self._registry.exchange(flow)
        grant = exchange.ask(Grant)
        route_plan = self._plans.of(exchange.policy, grant.route)
        plan = route_plan.plan
        reject_caller_credentials(plan, exchange.head)
        exchange.caller_credential = brought(plan, exchange.head)
        injectors = applicable(plan, exchange.head)
        if grant.credential is None or not injectors or not may_travel(grant.route, exchange.ask(Destination)):
            exchange.put(build_forward(plan, exchange.head, exchange.ask(Authority)))
            return None
        return self._begin(_Work(exchange, route_plan, injectors), grant.credential)

    def _begin(self, work: _Work, spec: CredentialSpec) -> Coroutine[Any, Any, None] | None:
        needs = work.plan.needs(spec, work.injectors)
        before_s = self._parts.clock.monotonic_s()
        sealed = seal_now(needs, self._parts.secrets)
        if sealed is None:
            return self._seal(work, needs, before_s)
        return self._sealed(work, sealed, before_s)

    async def _seal(self, work: _Work, needs: Needs, before_s: float) -> None:
        """The secret is not in memory, or too old: the store is asked."""
        sealed = await seal(needs, self._parts.secrets)
        rest = self._sealed(work, sealed, before_s)
        if rest is not None:
            await rest

    def _sealed(self, work: _Work, sealed: SealedCredential, before_s: float) -> Coroutine[Any, Any, None] | None:
        exchange = work.exchange
        exchange.secret_ms = (self._parts.clock.monotonic_s() - before_s) * 1000
        exchange.put(sealed)
        facts = facts_of(exchange)
        records: list[OpenRecord] = []
        try:
            for secret in sealed.secrets:
                record = self._parts.audit.open_now(opening(facts, secret))
                if record is None:
                    return self._open(work, sealed, facts)
                records.append(record)
        finally:
            # Also when the second of two records could not be written: the first one is open and must be closed.
            if records:
                exchange.put(Openings(tuple(records)))
        self._build(work, sealed)
        return None

    async def _open(self, work: _Work, sealed: SealedCredential, facts: Fields) -> None:
        """A sink has to be waited for: it does, for each secret that has no record yet."""
        exchange = work.exchange
        before = exchange.forget(Openings)
        records = list(before.records) if before is not None else []
        try:
            for secret in sealed.secrets[len(records) :]:
                records.append(await self._parts.audit.open(opening(facts, secret)))
        finally:
            if records:
                exchange.put(Openings(tuple(records)))
        self._build(work, sealed)

    @staticmethod
    def _build(work: _Work, sealed: SealedCredential) -> None:
        exchange, authority = work.exchange, work.exchange.ask(Authority)
        exchange.payload = hashlib.sha256()
        credential = unseal(sealed, exchange.ask(Openings))
        ready = build_with_credential(work.plan.plan, work.injectors, exchange.head, authority, credential)
        scrubs = work.plan.scrubs
        if scrubs is not None:
            exchange.put(scrubs.of(credential.confidential(), basics_of(ready.fields)))
        exchange.put(ready)


def opening(facts: Fields, secret: SealedSecret) -> Fields:
    """What `credential.opened` says."""
    return {**facts, "secret": secret.name, "secret_version": secret.version, "cache": secret.cache}
