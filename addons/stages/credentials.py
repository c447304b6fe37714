"""Reads the secret, opens its audit record, and builds the head that leaves: the last stages before the wire.

The credential lives in local variables of one coroutine and in the `HeadersToSend` that it becomes, which the engine
takes off the exchange. The flow never sees it.
"""

from __future__ import annotations

import hashlib

from mitmproxy import http

from addons.audit import OpenRecord
from addons.boundary import facts_of
from addons.credentials import Openings, SealedCredential, may_travel, seal, unseal
from addons.egress import Destination
from addons.exchange import Authority, Exchange
from addons.injection import (
    applicable,
    brought,
    build_forward,
    build_with_credential,
    references,
    reject_caller_credentials,
)
from addons.parts import Parts
from addons.stages.plans import Plans
from addons.stages.registry import Registry
from policies import Grant
from policies.model import Injector


class CredentialStage:
    """Puts `SealedCredential`, `Openings` and `HeadersToSend`."""

    def __init__(self, parts: Parts, registry: Registry, plans: Plans) -> None:
        self._parts = parts
        self._registry = registry
        self._plans = plans

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        grant = exchange.ask(Grant)
        authority = exchange.ask(Authority)
        plan = self._plans.of(exchange.policy, grant.route).plan
        reject_caller_credentials(plan, exchange.head)
        exchange.caller_credential = brought(plan, exchange.head)
        injectors = applicable(plan, exchange.head)
        if grant.credential is None or not injectors or not may_travel(grant.route, exchange.ask(Destination)):
            exchange.put(build_forward(plan, exchange.head, authority))
            return
        openings = await self._open(exchange, grant, injectors)
        credential = unseal(exchange.ask(SealedCredential), openings)
        exchange.put(build_with_credential(plan, injectors, exchange.head, authority, credential))

    async def _open(self, exchange: Exchange, grant: Grant, injectors: tuple[Injector, ...]) -> Openings:
        clock = self._parts.clock
        before_s = clock.monotonic_s()
        sealed = await seal(grant, self._parts.secrets, references(injectors))
        exchange.secret_ms = (clock.monotonic_s() - before_s) * 1000
        exchange.put(sealed)
        facts = facts_of(exchange)
        records: list[OpenRecord] = []
        try:
            for secret in sealed.secrets:
                records.append(  # noqa: PERF401 - what was opened before a failure must be known
                    await self._parts.audit.open(
                        {**facts, "secret": secret.name, "secret_version": secret.version, "cache": secret.cache}
                    )
                )
        finally:
            # Also when the second of two records could not be written: the first one is open and must be closed.
            if records:
                exchange.put(Openings(tuple(records)))
        exchange.payload = hashlib.sha256()
        return exchange.ask(Openings)
