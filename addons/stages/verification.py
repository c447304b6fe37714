"""Has the signature of a request checked, in the turn of the credential stage and before it does anything else.

In this order: what the request says of itself is read; the keys are read from the store, still sealed; their audit records
are opened; the signature is judged; a nonce is used up. Only then does `Verified` stand on the exchange, without which no
credential of the upstream is read. Whatever fails on the way refuses the request.

The records stay open with a request that gets no other credential, and close as it ends. Where one follows, they close when
the check is done.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import ssl
from dataclasses import replace
from typing import Final

from addons.audit import AuditUnavailable, Fields, OpenRecord
from addons.boundary import facts_of
from addons.credentials import Credential, Needs, Openings, SealedCredential, field_name, release, seal, unseal
from addons.egress import destination
from addons.exchange import Authority, Exchange, WorkloadIdentity
from addons.injection.content import LARGE_BYTES
from addons.parts import Parts
from addons.refusal import Code, Refusal
from addons.stages.plans import RoutePlan
from addons.stages.remote_keys import RemoteKeys, name_of, note_opened
from addons.state import StateError
from addons.verifying.apply import Verifying
from addons.verifying.certificates import Certificates, roots
from addons.verifying.claim import Claim, Single, invalid
from addons.verifying.received import Verified, received
from addons.verifying.sns import CertificateClaim
from policies import Grant
from policies.model import CredentialSpec
from policies.verify import VERIFIED
from vault.store import SealedSecret

CLOCKS_APART_S: Final = 60.0
"""How much longer a nonce is remembered than our clock takes its signature: processes that share the state may lag behind,
and a clock may be set back.
"""
_NOTHING: Final = CredentialSpec("", {})
"""Of a route that reads no secret: its key stays in Vault."""


class Verification:
    """Checks signatures for one process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._certificates = Certificates(parts.clock)
        self._context: ssl.SSLContext | None = None

    async def check(self, exchange: Exchange, plan: RoutePlan, verifying: Verifying, body: bytes) -> None:
        """Puts `Verified`, or refuses.

        Raises:
            Refusal: `signature_invalid`, `replayed`, `state_unavailable`; what the store says of a key.
            AuditUnavailable: no record can be written, or not for a stranger.
        """
        request, now_s = received(exchange, body), self._parts.clock.wall_s()
        large = len(body) > LARGE_BYTES
        claim = await asyncio.to_thread(verifying.claim, request, now_s) if large else verifying.claim(request, now_s)
        _wanted(exchange)
        if isinstance(claim, CertificateClaim):
            await self._certified(exchange, plan, claim)
        else:
            keys = await self._keyed(exchange, claim, large=large)
            if claim.single is not None:
                await self._use_up(exchange, claim.single, keys)
        _wanted(exchange)
        exchange.payload = hashlib.sha256(body)
        exchange.put(Verified())

    def done(self, exchange: Exchange) -> None:
        """Another credential follows: the records of the check are closed."""
        openings = exchange.forget(Openings)
        if openings is not None:
            for record in openings.records:
                elapsed_s = self._parts.clock.monotonic_s() - exchange.started_s
                self._parts.audit.close(record, {"outcome": "ok", "ms": elapsed_s * 1000})

    async def _keyed(self, exchange: Exchange, claim: Claim, *, large: bool) -> frozenset[str]:
        """Names of what holds its keys: secrets, or the key that stays in Vault."""
        spec = exchange.ask(Grant).credential
        if spec is None:
            if claim.remote is None or claim.reads:
                raise Refusal(Code.INTERNAL, "A signature was to be checked without a key.")
            spec = _NOTHING
        if self._parts.audit.scarce and exchange.ask(WorkloadIdentity).workload == VERIFIED:
            raise AuditUnavailable  # a stranger so far
        needed = tuple((reference.entry, field_name(spec, reference)) for reference in claim.needed)
        before_s = self._parts.clock.monotonic_s()
        sealed = await seal(replace(Needs.of(spec, claim.reads), fields=needed), self._parts.secrets)
        _wanted(exchange)
        exchange.secret_ms = (self._parts.clock.monotonic_s() - before_s) * 1000
        await self._open(exchange, sealed)
        credential = unseal(sealed, exchange.ask(Openings) if sealed.secrets else Openings(()))
        try:
            holds = await self._holds(exchange, claim, credential, large=large)
        finally:
            release(sealed)
        _wanted(exchange)
        if not holds:
            raise invalid("The signature was not made with a key of this route over what came.")
        if claim.remote is not None:
            return frozenset({name_of(claim.remote.use)})
        return frozenset(secret.name for secret in sealed.secrets)

    async def _holds(self, exchange: Exchange, claim: Claim, credential: Credential, *, large: bool) -> bool:
        """Whether the signature was made with a key of the route. Vault is asked after all that can be told without it."""
        remote = claim.remote
        if remote is None:
            return await asyncio.to_thread(claim.holds, credential) if large else claim.holds(credential)
        text = await asyncio.to_thread(remote.text, credential) if large else remote.text(credential)
        _wanted(exchange)
        facts: Fields = {**facts_of(exchange), "use": "verify"}
        keys = RemoteKeys(self._parts, exchange, facts, functools.partial(note_opened, exchange))
        return await keys.is_made(remote.use, text, remote.signature)

    async def _open(self, exchange: Exchange, sealed: SealedCredential) -> None:
        """A record for each secret; whoever settles the exchange meanwhile finds those that are open by then."""
        facts, records = facts_of(exchange), tuple[OpenRecord, ...]()
        for secret in sealed.secrets:
            record = await self._parts.audit.open(_opened(facts, secret))
            if exchange.settled:
                self._parts.audit.close(record, {"outcome": "client_gone" if exchange.refused is None else "refused"})
            _wanted(exchange)
            records = (*records, record)
            exchange.forget(Openings)
            exchange.put(Openings(records))

    async def _use_up(self, exchange: Exchange, single: Single, keys: frozenset[str]) -> None:
        """Marks a nonce, for as long as its signature could be sent again: for the workload, or, where the signature is
        all that there is of one, for whoever has these keys. Another route that takes them takes no nonce twice either.
        """
        state = self._parts.state
        if state is None:
            raise _no_state()
        identity = exchange.ask(WorkloadIdentity).workload
        for scope in [f"{VERIFIED}/{name}" for name in sorted(keys)] if identity == VERIFIED else [identity]:
            digest = hashlib.sha256(f"{scope}\0{single.nonce}".encode()).hexdigest()
            try:
                new = await state.once(f"nonce:{digest}", max(single.ttl_s, 0.0) + CLOCKS_APART_S)
            except StateError:
                raise _no_state() from None
            if not new:
                raise Refusal(Code.REPLAYED, "The nonce of the signature has been used before.")

    async def _certified(self, exchange: Exchange, plan: RoutePlan, claim: CertificateClaim) -> None:
        parts = self._parts
        # The certificate is no part of the route's upstream: what the route says of networks and roots is not for it.
        found = await destination(
            Authority(claim.host, 443),
            parts.egress,
            None,
            parts.egress.allow,
            parts.resolver,
            plan.vetted_certificates,
            deadline_s=parts.deadlines.connect_s,
        )
        _wanted(exchange)
        key = await self._certificates.key_of(found, claim.path, self._made_context)
        _wanted(exchange)
        if not claim.holds(key):
            raise invalid("The signature was not made with the key of its certificate over what came.")

    def _made_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = roots(self._parts.ca_file)
        return self._context


def _opened(facts: Fields, secret: SealedSecret) -> Fields:
    return {**facts, "secret": secret.name, "secret_version": secret.version, "cache": secret.cache, "use": "verify"}


def _no_state() -> Refusal:
    return Refusal(
        Code.STATE_UNAVAILABLE,
        "Whether the nonce was used before cannot be told right now, so it is taken as used.",
        retry_after_s=1.0,
    )


def _wanted(exchange: Exchange) -> None:
    """Ends the work here where the caller has gone, or time is up, while something was waited for."""
    if exchange.settled:
        raise asyncio.CancelledError
