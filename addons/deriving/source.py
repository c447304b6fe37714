"""What one credential derives: which secrets it reads, which token they have, and how a new one is made (`flight.py`). The
`TokenSource` of routes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable
from typing import final

from addons.audit import AuditLog
from addons.clock import Clock
from addons.credentials import TokenParts, field_name, reference_of, refusal_for
from addons.deriving.asking import Asker, Way
from addons.deriving.entry import Entry, Inputs, Token
from addons.deriving.flight import Flight
from addons.deriving.rotating import Rotation
from addons.deriving.tokens import Tokens
from addons.refusal import Code, Refusal
from policies.derive import Derivation, RefreshToken, references_of_derivation
from policies.model import CredentialSpec
from vault.store import SealedSecret, SecretSource, SecretWriter, StoreError


@final
class _Key:
    """A key whose hash is computed once: it stands in every request's look-up."""

    __slots__ = ("_hash", "_of")

    def __init__(self, of: Hashable) -> None:
        self._of = of
        self._hash = hash(of)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Key) and self._hash == other._hash and self._of == other._of)


class Derived:
    """One credential's derived token. Implements `TokenSource` and `Maker`.

    Args:
        spec: the credential; it derives.
        derive: its grant.
        way: to the endpoint.
        tokens: of this process.
        secrets: where its secrets are read.
        asker: of endpoints.
        audit: records.
        clock: for assertions.
        rotation: takes refresh tokens back to the store; None where the store takes nothing.
    """

    def __init__(
        self,
        spec: CredentialSpec,
        derive: Derivation,
        way: Way,
        *,
        tokens: Tokens,
        secrets: SecretSource,
        asker: Asker,
        audit: AuditLog,
        clock: Clock,
        rotation: Rotation | None,
    ) -> None:
        self._spec, self._derive = spec, derive
        self._tokens, self._secrets = tokens, secrets
        self._clock, self._rotation = clock, rotation
        references = references_of_derivation(derive)
        self._fields = tuple((reference.entry, field_name(spec, reference)) for reference in references)
        names = dict.fromkeys(reference.entry for reference in references)
        self._refs = {name: reference_of(spec.secrets[name]) for name in names}
        # One path is read once, however many names it has.
        self._reads = {ref: spec.secrets[name] for name, ref in self._refs.items()}
        # With the fields: a bare reference stands for the `field:` of its secret, which the grant does not show.
        self._key = _Key((derive, tuple(sorted(self._refs.items(), key=lambda one: one[0])), self._fields, way.key))
        self._flight = Flight(
            spec, derive, way, refs=self._refs, fields=self._fields, asker=asker, audit=audit, clock=clock
        )
        self.max_stale_s = max((one.max_stale_s for one in self._reads.values()), default=0.0)
        self.word = derive.word

    # --- TokenSource ---

    def now(self, workload: str) -> TokenParts | None:
        inputs: Inputs = {}
        for ref, one in self._reads.items():
            found = self._secrets.read_now(ref, ttl_s=one.ttl_s, watch_s=one.watch_s)
            if found is None:
                return None
            inputs[ref] = found
        return self._tokens.now(self._key_of(workload), self, inputs, workload)

    async def read(self, workload: str) -> TokenParts:
        return await self._tokens.read(self._key_of(workload), self, await self._inputs(), workload)

    async def other(self, workload: str, used: SealedSecret) -> TokenParts | None:
        inputs = await self._inputs()
        others = await asyncio.gather(
            *(self._secrets.read_other(ref, inputs[ref], ttl_s=one.ttl_s) for ref, one in self._reads.items())
        )
        for ref, found in zip(self._reads, others, strict=True):
            if found is not None:
                inputs[ref] = found
        return await self._tokens.other(self._key_of(workload), self, inputs, workload, used)

    def suspect(self, workload: str, used: SealedSecret) -> None:
        inputs: Inputs = {}
        for ref, one in self._reads.items():
            found = self._secrets.read_now(ref, ttl_s=one.ttl_s)
            if found is None:
                return
            self._secrets.suspect(ref, found)
            inputs[ref] = found
        self._tokens.suspect(self._key_of(workload), self, inputs, workload, used)

    def _key_of(self, workload: str) -> Hashable:
        return (self._key, workload) if self._derive.per_workload else self._key

    async def _inputs(self, *, bypass: bool = False) -> Inputs:
        try:
            return {
                ref: await self._secrets.read(
                    ref,
                    ttl_s=one.ttl_s,
                    max_stale_s=one.max_stale_s,
                    watch_s=one.watch_s,
                    bypass=bypass and not one.is_made,  # past its memory, another certificate would be signed
                )
                for ref, one in self._reads.items()
            }
        except StoreError as error:
            raise refusal_for(error) from None

    # --- Maker ---

    async def make(self, entry: Entry, inputs: Inputs, workload: str) -> Token:
        if not isinstance(self._derive, RefreshToken):
            began_s = self._clock.monotonic_s()
            found = await self._flight.made(inputs, workload)
            return Token(found.values, inputs, began_s, found.life_s)
        return await self._rotated(self._derive, entry, workload)

    async def _rotated(self, grant: RefreshToken, entry: Entry, workload: str) -> Token:
        """With a refresh token, which may be good for one use: read past the cache, and replaced before its access token is
        used.
        """
        if self._rotation is None:
            raise Refusal(Code.SECRET_DENIED, "The secret store takes no refresh token back.")
        entry_name, field = self._place(grant)
        ref = self._refs[entry_name]
        again = True
        while True:
            inputs = await self._inputs(bypass=True)
            if await self._rotation.settle(entry, inputs[ref]):
                inputs = await self._inputs(bypass=True)
            began_s = self._clock.monotonic_s()
            try:
                found = await self._flight.made(inputs, workload)
            except Refusal as refusal:
                if not again or refusal.code is not Code.SECRET_DENIED:
                    raise
                # Another process may have used it a moment ago, and have written its successor.
                again = False
                now = await self._inputs(bypass=True)
                if now[ref].agrees(inputs[ref], (field,)):
                    raise
                continue
            token = Token(found.values, inputs, began_s, found.life_s)
            try:
                stored = found.refresh is None or await self._rotation.replace(
                    entry, ref, field, inputs[ref], found.refresh
                )
                if stored and found.refusal is None:
                    with contextlib.suppress(Refusal):
                        await self._inputs(bypass=True)  # so that memory has what was written
                    return token
            except BaseException:
                token.drop()
                raise
            token.drop()
            if found.refusal is not None:
                raise found.refusal
            if not again:
                raise Refusal(
                    Code.SECRET_UNAVAILABLE, "The refresh token is being replaced by others.", retry_after_s=1.0
                )
            again = False

    def _place(self, grant: RefreshToken) -> tuple[str, str]:
        (reference,) = grant.refresh_token.references
        return reference.entry, field_name(self._spec, reference)

    def serves(self, token: Token, inputs: Inputs) -> bool:
        """A version that only has another refresh token changes nothing: it is our own doing, or that of another process
        of ours. One that was put there by hand serves from the next renewal on.
        """
        if not isinstance(self._derive, RefreshToken):
            return False
        place = self._place(self._derive)
        fields = [(self._refs[name], field) for name, field in self._fields if (name, field) != place]
        return all(inputs[ref].agrees(token.inputs[ref], (field,)) for ref, field in fields)


class Deriving:
    """What a process derives tokens with: built once, asked by the plan of each route.

    Args:
        tokens: the memory.
        asker: of endpoints.
        audit: records.
        clock: of both.
        writer: takes refresh tokens back; None where the store takes nothing.
    """

    def __init__(
        self, tokens: Tokens, asker: Asker, audit: AuditLog, clock: Clock, writer: SecretWriter | None
    ) -> None:
        self._tokens, self._asker, self._audit, self._clock, self._writer = tokens, asker, audit, clock, writer

    def of(self, spec: CredentialSpec, way: Way, secrets: SecretSource) -> Derived:
        """The tokens of one credential, for routes of one way to its endpoint."""
        if spec.derive is None:
            raise Refusal(Code.INTERNAL, "A credential that derives nothing was asked for a token.")
        return Derived(
            spec,
            spec.derive,
            way,
            tokens=self._tokens,
            secrets=secrets,
            asker=self._asker,
            audit=self._audit,
            clock=self._clock,
            rotation=Rotation(self._writer, secrets) if self._writer is not None else None,
        )

    async def close(self) -> None:
        """Ends flights, and drops every token."""
        await self._tokens.close()
