"""An upstream has rejected a credential (401): perhaps it was rotated a moment ago.

The store is asked past the cache. Where it has another version, or its owners say that the upstream still accepts the one
before, or the upstream asks for a nonce in the proof (DPoP), the head is built anew, with records of its own, and the
engine sends the request once more, to the same vetted destination. Else, and whatever fails here, the caller gets the upstream's own 401: it is a whole and true answer.

Rules:
- A request is sent a second time only if it can be repeated byte for byte (`Exchange.replayable`), and only once. A 401
  says that the upstream has not acted on it (RFC 9110 section 15.5.2), so any method may be repeated.
- The new record is durable before the new credential is opened; the first one is closed with the answer that it got.
- Nothing is dropped because an upstream says so: see `vault/cache.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

from mitmproxy import http

from addons import client_certificate
from addons.audit import AuditUnavailable, Fields, OpenRecord
from addons.boundary import facts_of
from addons.credentials import (
    Needs,
    Openings,
    SealedCredential,
    release,
    seal_before,
    seal_other,
    suspect,
    unseal,
)
from addons.exchange import Authority, Exchange
from addons.head import Challenge, HeadersToSend
from addons.injection import applicable
from addons.parts import Parts
from addons.refusal import Code, Refusal
from addons.signing.dpop import wants_nonce
from addons.stages.credentials import head_to_send, outgoing, still_wanted
from addons.stages.plans import Plans
from addons.stages.registry import Registry
from addons.stages.remote_keys import RemoteKeys, opening
from policies import Grant
from vault.observer import RejectionResult
from vault.store import SecretSource, StoreError


class RejectedStage:
    """Exchanges `SealedCredential` and `Openings`, and puts `HeadersToSend` again where the request is to be sent once
    more.
    """

    def __init__(self, parts: Parts, registry: Registry, plans: Plans) -> None:
        self._parts = parts
        self._registry = registry
        self._plans = plans

    def rejected(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        """A hook of ours: the head of a 401 is there, and nothing of it has been passed on."""
        exchange = self._registry.exchange(flow)
        sealed, openings = exchange.find(SealedCredential), exchange.find(Openings)
        grant = exchange.ask(Grant)
        if sealed is None or openings is None or grant.credential is None:
            return None
        route_plan = self._plans.of(exchange.policy, grant.route)
        challenge = exchange.forget(Challenge)
        nonces = route_plan.signing.nonces if route_plan.signing is not None else None
        if (
            nonces is not None
            and challenge is not None
            and nonces.learn(exchange.ask(Authority).host_header, challenge.values(b"dpop-nonce"))
            and wants_nonce(challenge.values(b"www-authenticate"))
            and exchange.replayable
            and exchange.rewrite is None
        ):
            return self._anew(exchange, grant, sealed, openings)
        # What signed a body as it passed signed it for the head before this one.
        if not exchange.replayable or exchange.rewrite is not None:
            needs = route_plan.needs(grant.credential, route_plan.plan.injectors)
            suspect(needs, sealed, route_plan.source, grant.workload)
            self._parts.store_observer.secret_rejected("not_replayable")
            return None
        needs = route_plan.needs(grant.credential, applicable(route_plan.plan, exchange.head))
        return self._look(exchange, route_plan.source, needs, sealed, openings)

    async def _look(
        self, exchange: Exchange, source: SecretSource, needs: Needs, sealed: SealedCredential, openings: Openings
    ) -> None:
        parts = self._parts
        result: RejectionResult = "retried"
        try:
            found = await seal_other(needs, sealed, source, exchange.ask(Grant).workload)
            if found is None:
                result = "retried_before"
                found = await seal_before(needs, sealed, source, parts.clock.wall_s())
            if exchange.settled:
                return  # the caller has gone, or has lost its right
            if found is None:
                parts.store_observer.secret_rejected("unchanged")
                return
            await self._put(exchange, exchange.ask(Grant), found, openings)
        except (StoreError, Refusal, AuditUnavailable):
            parts.store_observer.secret_rejected("failed")
            return
        parts.store_observer.secret_rejected(result)
        release(sealed)

    async def _anew(self, exchange: Exchange, grant: Grant, sealed: SealedCredential, openings: Openings) -> None:
        """The same credential, with a proof that has the nonce that the upstream wants (RFC 9449 section 9)."""
        result: RejectionResult = "retried"
        try:
            await self._put(exchange, grant, sealed, openings)
        except (StoreError, Refusal, AuditUnavailable):
            result = "failed"
        self._parts.store_observer.secret_rejected(result)

    async def _put(self, exchange: Exchange, grant: Grant, sealed: SealedCredential, before: Openings) -> None:
        """Opens the new records, builds the head, and only then closes the old ones."""
        facts = facts_of(exchange)
        records: list[OpenRecord] = []
        try:
            for secret in sealed.secrets:
                records.append(await self._parts.audit.open(opening(facts, secret)))  # noqa: PERF401 - where the second fails, the first must be known
            still_wanted(exchange)
            openings = Openings(tuple(records))
            route_plan = self._plans.of(exchange.policy, grant.route)
            injectors, credential = applicable(route_plan.plan, exchange.head), unseal(sealed, openings)
            if route_plan.client_cert is not None:
                now_s = self._parts.clock.wall_s()
                client_certificate.show(exchange, route_plan.client_cert, sealed, credential, now_s)
            signing = route_plan.signing
            if signing is not None and signing.remote:
                keys = RemoteKeys(self._parts, exchange, facts, records.append)
                head = head_to_send(self._parts, exchange, route_plan, injectors, credential, signed=False)
                head = await keys.sign(signing, outgoing(exchange, head), credential)
                still_wanted(exchange)
                openings = Openings(tuple(records))
            else:
                head = head_to_send(self._parts, exchange, route_plan, injectors, credential)
            route_plan.watch(exchange, credential, head)
        except BaseException as error:
            release(sealed)
            for record in records:
                self._parts.audit.close(record, _unused(error))
            raise
        self._parts.boundary.attempt_ended(exchange, before, HTTPStatus.UNAUTHORIZED)
        for kind in (SealedCredential, Openings, HeadersToSend):
            exchange.forget(kind)
        exchange.put(sealed)
        exchange.put(openings)
        exchange.put(head)
        exchange.retries += 1


def _unused(error: BaseException) -> Fields:
    """How a record ends whose credential was not sent."""
    if isinstance(error, asyncio.CancelledError):
        return {"outcome": "client_gone"}
    code = error.code if isinstance(error, Refusal) else Code.INTERNAL
    return {"outcome": "refused", "code": code.value}
