"""Reads the secret, opens its audit record, builds the head that leaves, and signs it: the last stages before the wire.

Where nothing has to be waited for (the secret is in memory, the audit is a file) all of it happens at once. The
credential lives in local variables and in the `HeadersToSend` that it becomes, which the engine
takes off the exchange. The flow never sees it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple

from mitmproxy import http

from addons import client_certificate
from addons.audit import Fields, OpenRecord
from addons.bodies import HeldBody, framed, rewriting
from addons.boundary import facts_of
from addons.credentials import Credential, Needs, Openings, SealedCredential, may_travel, seal, seal_now, unseal
from addons.egress import Destination
from addons.exchange import Authority, Exchange
from addons.grpc import speaks_grpc
from addons.head import HeadersToSend
from addons.injection import (
    Content,
    applicable,
    brought,
    build_forward,
    build_with_credential,
    reads_body,
    reject_caller_credentials,
)
from addons.injection.content import LARGE_BYTES
from addons.injection.segments import judge_path
from addons.parts import Parts
from addons.refusal import Code, Refusal
from addons.signing.apply import Judged, Signing
from addons.signing.outgoing import Outgoing, one_cookie
from addons.stages.plans import Plans, RoutePlan
from addons.stages.registry import Registry
from addons.stages.remote_keys import RemoteKeys, note_opened, opening
from addons.stages.verification import Verification
from addons.verifying.apply import Verifying
from addons.verifying.received import SentHead
from policies import Grant
from policies.model import Injector

NONE_OPEN: Final = Openings(())


class _Work(NamedTuple):
    """What is to be done to one request, fixed when its head was judged."""

    exchange: Exchange
    plan: RoutePlan
    injectors: tuple[Injector, ...]
    body: bytes | None = None
    """Where it was held."""
    content: Content | None = None
    """The same, taken apart, where a credential goes into it."""


class CredentialStage:
    """Puts `SealedCredential`, `Openings`, `Scrub` and `HeadersToSend`; for a request whose body must be whole first,
    `HeldBody` with the head and the rest with the body.
    """

    def __init__(self, parts: Parts, registry: Registry, plans: Plans) -> None:
        self._parts = parts
        self._registry = registry
        self._plans = plans
        self._verification = Verification(parts)

    def requestheaders(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        exchange = self._registry.exchange(flow)
        grant, head = exchange.ask(Grant), exchange.head
        route_plan = self._plans.of(exchange.policy, grant.route)
        plan = route_plan.plan
        if plan.reject:
            reject_caller_credentials(plan, head)
        exchange.caller_credential = brought(plan, head)
        travels = may_travel(grant.route, exchange.ask(Destination))
        if not route_plan.bare and self._reads_body(exchange, grant, route_plan, travels=travels):
            held = HeldBody(self._parts.buffered_body_bytes, self._parts.buffers)
            held.announced(head)
            exchange.put(held)
            return None
        injectors = applicable(plan, head)
        if not route_plan.always and (grant.credential is None or not injectors or not travels):
            exchange.put(build_forward(plan, head, exchange.ask(Authority)))
            return None
        return self._begin(_Work(exchange, route_plan, injectors))

    @staticmethod
    def _reads_body(exchange: Exchange, grant: Grant, route_plan: RoutePlan, *, travels: bool) -> bool:
        """Judges what only some routes do with a head; whether the body must be whole first.

        Raises:
            Refusal: this request does not fit what its route does.
        """
        plan, signing = route_plan.plan, route_plan.signing
        if not travels and (plan.body or plan.path is not None):
            # What the caller has there cannot be taken out of it.
            raise Refusal(
                Code.ACCESS_DENIED,
                "This route puts its credential into the path or the body, over https alone: use https.",
            )
        if signing is not None and not travels:
            raise Refusal(
                Code.ACCESS_DENIED,
                "This route signs its requests, and does not over plain http to where this one goes: use https.",
            )
        verifying = route_plan.verifying
        if verifying is not None:
            verifying.judge_head(exchange.head if (sent := exchange.find(SentHead)) is None else sent.head)
            if speaks_grpc(exchange.head.fields):
                raise Refusal(
                    Code.BAD_REQUEST,
                    "This route verifies whole bodies, and a gRPC call is a stream that cannot be held: call over another route.",
                )
        if route_plan.client_cert is not None and exchange.ask(Authority).cleartext:
            raise Refusal(Code.ACCESS_DENIED, "This route shows its upstream a client certificate: use https.")
        if plan.path is not None:
            judge_path(plan.path, exchange.head.target.partition(b"?")[0])
        reads = bool(plan.body) and grant.credential is not None and reads_body(plan, exchange.head)
        reads = reads or verifying is not None
        if signing is not None:
            judged = signing.judge(exchange.head)
            exchange.put(judged)
            if judged.reads_body and speaks_grpc(exchange.head.fields):
                # Which of its calls end soon, a head does not tell: a stream would wait for its deadline.
                raise Refusal(
                    Code.BAD_REQUEST,
                    "This route signs whole bodies, and a gRPC call is a stream that cannot be held: sign without the body, or call over another route.",
                )
            reads = reads or judged.reads_body
        return reads

    def request(self, flow: http.HTTPFlow) -> Coroutine[Any, Any, None] | None:
        """The body is whole, or has passed."""
        exchange = self._registry.exchange(flow)
        held = exchange.find(HeldBody)
        if held is None:
            return None
        route_plan = self._plans.of(exchange.policy, exchange.ask(Grant).route)
        body = held.whole()
        exchange.bytes_in = len(body)
        if route_plan.verifying is not None:
            return self._check(exchange, route_plan, route_plan.verifying, body)
        return self._whole(exchange, route_plan, body)

    async def _check(self, exchange: Exchange, route_plan: RoutePlan, verifying: Verifying, body: bytes) -> None:
        """The signature comes before all else. A request that gets no credential then leaves as it is."""
        await self._verification.check(exchange, route_plan, verifying, body)
        plan, head = route_plan.plan, exchange.head
        puts = bool(applicable(plan, head)) or (bool(plan.body) and reads_body(plan, head))
        travels = may_travel(exchange.ask(Grant).route, exchange.ask(Destination))
        if not route_plan.always and not (puts and travels):
            ready = build_forward(plan, head, exchange.ask(Authority))
            fields = framed(ready.fields, len(body), http2=head.http2)
            _hand_on(exchange, HeadersToSend(ready.target, fields, body))
            return
        self._verification.done(exchange)
        rest = self._whole(exchange, route_plan, body)
        if rest is not None:
            await rest

    def _whole(self, exchange: Exchange, route_plan: RoutePlan, body: bytes) -> Coroutine[Any, Any, None] | None:
        if not (route_plan.plan.body and reads_body(route_plan.plan, exchange.head)):
            # Held for a signer alone: it is not looked into.
            injectors = applicable(route_plan.plan, exchange.head)
            return self._begin(_Work(exchange, route_plan, injectors, body))
        if len(body) > LARGE_BYTES:
            return self._read(exchange, route_plan, body)
        return self._content(exchange, route_plan, body, Content(route_plan.plan, body))

    async def _read(self, exchange: Exchange, route_plan: RoutePlan, body: bytes) -> None:
        """A large body is read beside the loop."""
        content = await asyncio.to_thread(Content, route_plan.plan, body)
        rest = self._content(exchange, route_plan, body, content)
        if rest is not None:
            await rest

    def _content(
        self, exchange: Exchange, route_plan: RoutePlan, body: bytes, content: Content
    ) -> Coroutine[Any, Any, None] | None:
        plan, head = route_plan.plan, exchange.head
        content.reject()
        exchange.caller_credential = exchange.caller_credential or content.brought()
        injectors = applicable(plan, head, content.found)
        if injectors or route_plan.always:
            return self._begin(_Work(exchange, route_plan, injectors, body, content))
        ready = build_forward(plan, head, exchange.ask(Authority))
        left = content.stripped()
        _hand_on(exchange, HeadersToSend(ready.target, framed(ready.fields, len(left), http2=head.http2), left))
        return None

    def _begin(self, work: _Work) -> Coroutine[Any, Any, None] | None:
        still_wanted(work.exchange)
        spec = work.exchange.ask(Grant).credential
        if spec is None:
            raise Refusal(Code.INTERNAL, "A request was about to get a credential without having one.")
        needs = work.plan.needs(spec, work.injectors)
        before_s = self._parts.clock.monotonic_s()
        sealed = seal_now(needs, work.plan.source, work.exchange.ask(Grant).workload)
        if sealed is None:
            return self._seal(work, needs, before_s)
        return self._sealed(work, sealed, before_s)

    async def _seal(self, work: _Work, needs: Needs, before_s: float) -> None:
        """The secret is not in memory, or too old: the store is asked."""
        sealed = await seal(needs, work.plan.source, work.exchange.ask(Grant).workload)
        still_wanted(work.exchange)
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
        return self._build(work, sealed)

    async def _open(self, work: _Work, sealed: SealedCredential, facts: Fields) -> None:
        """A sink has to be waited for: it does, for each secret that has no record yet. Whoever settles the exchange
        meanwhile finds every record that is open by then.
        """
        exchange = work.exchange
        before = exchange.find(Openings)
        records = before.records if before is not None else ()
        for secret in sealed.secrets[len(records) :]:
            record = await self._parts.audit.open(opening(facts, secret))
            if exchange.settled:
                self._parts.audit.close(record, {"outcome": "client_gone" if exchange.refused is None else "refused"})
            still_wanted(exchange)
            records = (*records, record)
            exchange.forget(Openings)
            exchange.put(Openings(records))
        rest = self._build(work, sealed)
        if rest is not None:
            await rest

    def _build(self, work: _Work, sealed: SealedCredential) -> Coroutine[Any, Any, None] | None:
        # A route whose only keys stay in Vault has read nothing, and so opened nothing yet.
        credential = unseal(sealed, work.exchange.ask(Openings) if sealed.secrets else NONE_OPEN)
        if work.plan.bare:
            # Its body streams, and nobody else has a say.
            exchange, plan = work.exchange, work.plan
            exchange.payload = hashlib.sha256()
            ready = build_with_credential(plan.plan, work.injectors, exchange.head, exchange.ask(Authority), credential)
            plan.watch(exchange, credential, ready)
            exchange.put(ready)
            return None
        if work.plan.client_cert is not None:
            now_s = self._parts.clock.wall_s()
            client_certificate.show(work.exchange, work.plan.client_cert, sealed, credential, now_s)
        signing = work.plan.signing
        if signing is not None and signing.remote:
            return self._build_remotely(work, signing, credential)
        if work.body is not None and len(work.body) > LARGE_BYTES:
            return self._build_large(work, credential)
        self._built(work, credential, self._made(work, credential))
        return None

    async def _build_large(self, work: _Work, credential: Credential) -> None:
        """A large body is hashed, written anew and signed beside the loop: its records are open, whoever settles them."""
        made = await asyncio.to_thread(self._made, work, credential)
        still_wanted(work.exchange)
        self._built(work, credential, made)

    async def _build_remotely(self, work: _Work, signing: Signing, credential: Credential) -> None:
        """As `_build`, where Vault signs: what is signed is built first, and its signatures are waited for."""
        exchange = work.exchange
        make = functools.partial(self._made, work, credential, signed=False)
        large = work.body is not None and len(work.body) > LARGE_BYTES
        payload, ready = await asyncio.to_thread(make) if large else make()
        still_wanted(exchange)
        keys = RemoteKeys(self._parts, exchange, facts_of(exchange), functools.partial(note_opened, exchange))
        ready = await keys.sign(signing, outgoing(exchange, ready), credential)
        still_wanted(exchange)
        self._built(work, credential, (payload, ready))

    def _made(self, work: _Work, credential: Credential, *, signed: bool = True) -> tuple[Any, HeadersToSend]:
        """The digest of the body, and what leaves."""
        # Of what the caller sent: a digest of what leaves would let others try out values.
        payload = hashlib.sha256(work.body or b"")
        body = work.body
        if work.content is not None:
            body = work.content.put(work.injectors, credential) if work.injectors else work.content.stripped()
        return payload, head_to_send(
            self._parts, work.exchange, work.plan, work.injectors, credential, body, signed=signed
        )

    @staticmethod
    def _built(work: _Work, credential: Credential, made: tuple[Any, HeadersToSend]) -> None:
        exchange = work.exchange
        exchange.payload, ready = made
        work.plan.watch(exchange, credential, ready)
        _hand_on(exchange, ready)


def _hand_on(exchange: Exchange, ready: HeadersToSend) -> None:
    """What leaves is ready, and a body that was held is now counted there."""
    exchange.forget(HeldBody)
    exchange.put(ready)


def still_wanted(exchange: Exchange) -> None:
    """Ends the work here where the caller has gone, or time is up, while something was waited for.

    Raises:
        CancelledError: the exchange is settled: no record of it would be closed any more.
    """
    if exchange.settled:
        raise asyncio.CancelledError


def head_to_send(
    parts: Parts,
    exchange: Exchange,
    plan: RoutePlan,
    injectors: tuple[Injector, ...],
    credential: Credential,
    body: bytes | None = None,
    *,
    signed: bool = True,
) -> HeadersToSend:
    """The head with its credential, signed where the route signs: the last step before the wire.

    Args:
        parts: of this process.
        exchange: judged; what rewrites its body is noted on it.
        plan: of its route.
        injectors: those that apply.
        credential: opened for it.
        body: as it leaves, where it was held.
        signed: False leaves the signing to `RemoteKeys`.

    Raises:
        Refusal: nothing may leave.
    """
    head = exchange.head
    ready = build_with_credential(plan.plan, injectors, head, exchange.ask(Authority), credential)
    if body is not None:
        ready = HeadersToSend(ready.target, framed(ready.fields, len(body), http2=head.http2), body)
    if plan.signing is None or not signed:
        return ready
    request = outgoing(exchange, ready)
    ready, chunks = plan.signing.sign(exchange.ask(Judged), request, credential, parts.clock.wall_s())
    exchange.rewrite = None if chunks is None else rewriting(exchange, chunks, parts.buffers)
    return ready


def outgoing(exchange: Exchange, ready: HeadersToSend) -> Outgoing:
    """What signers read and add to."""
    head, authority = exchange.head, exchange.ask(Authority)
    fields = one_cookie(ready.fields) if head.http2 else ready.fields
    scheme = "http" if authority.cleartext else "https"
    return Outgoing(
        head.method, scheme, authority.host_header, ready.target, fields, ready.body, head, http2=head.http2
    )
