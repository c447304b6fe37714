"""Signatures of keys that stay in Vault, for one request, to send or to compare: asked for, recorded, and only then opened.

A signature is a credential. The record names the key and the version that made it, so it can be written only when the
signature is there; it is durable before the signature is taken out of its `SealedSecret` and put into the request.
Whatever fails, nothing has left yet.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import replace

from addons.audit import Fields, OpenRecord
from addons.credentials import Credential, Openings, refusal_for
from addons.exchange import Exchange
from addons.head import HeadersToSend
from addons.injection.content import LARGE_BYTES
from addons.parts import Parts
from addons.refusal import Code, Refusal
from addons.signing.apply import Signing
from addons.signing.outgoing import Outgoing
from policies.sign import TransitUse
from vault.keys import MAX_TEXT_BYTES, SIGNATURE, KeyRef
from vault.store import SealedSecret, StoreError


def opening(facts: Fields, secret: SealedSecret) -> Fields:
    """What `credential.opened` says."""
    if secret.lease:
        facts = {**facts, "lease": secret.lease}
    return {**facts, "secret": secret.name, "secret_version": secret.version, "cache": secret.cache}


def note_opened(exchange: Exchange, record: OpenRecord) -> None:
    """Adds a record to those of an exchange: whoever settles it closes them all."""
    before = exchange.forget(Openings)
    exchange.put(Openings((*(before.records if before is not None else ()), record)))


def name_of(use: TransitUse) -> str:
    """What audit and metrics call a key."""
    return _ref(use).name


def _ref(use: TransitUse) -> KeyRef:
    key = use.key
    return KeyRef(key.key, key.mount, key.namespace, key.version)


class RemoteKeys:
    """Signs one request.

    Args:
        parts: of this process.
        exchange: whose request it is.
        facts: of its records.
        opened: is given each record, at once when it is open.
    """

    def __init__(self, parts: Parts, exchange: Exchange, facts: Fields, opened: Callable[[OpenRecord], None]) -> None:
        self._parts = parts
        self._exchange = exchange
        self._facts = facts
        self._opened = opened

    async def sign(self, signing: Signing, request: Outgoing, credential: Credential) -> HeadersToSend:
        """The signed head.

        Raises:
            Refusal: it cannot be signed.
            AuditUnavailable: no record can be written.
            CancelledError: nobody waits for it any more.
        """
        large = request.body is not None and len(request.body) > LARGE_BYTES

        async def beside[T](work: Callable[[], T]) -> T:
            return await asyncio.to_thread(work) if large else work()

        return await signing.sign_remotely(request, credential, self._parts.clock.wall_s(), self._ask, beside)

    async def is_made(self, use: TransitUse, text: bytes, signature: bytes) -> bool:
        """Whether an HMAC was made with the newest version of a key or with the one before it, or with the pinned one: of
        a rotation, both sides do not learn at once. Raises as `sign` does.
        """
        made, version = await self._made(use, text)
        if hmac.compare_digest(made, signature):
            return True
        if use.key.version is not None or version < 2:
            return False
        try:
            before = replace(use, key=replace(use.key, version=version - 1))
            made, _ = await self._made(before, text, in_use=False)
        except Refusal as refusal:
            if refusal.code is not Code.SECRET_MISSING:
                raise
            # Vault lets nobody compute with it any more.
            return False
        return hmac.compare_digest(made, signature)

    async def _ask(self, use: TransitUse, text: bytes) -> bytes:
        made, _ = await self._made(use, text)
        return made

    async def _made(self, use: TransitUse, text: bytes, *, in_use: bool = True) -> tuple[bytes, int]:
        """A signature, and the version of the key that made it."""
        if len(text) > MAX_TEXT_BYTES:
            raise Refusal(
                Code.BODY_TOO_LARGE,
                f"The key of this route stays in Vault, which is sent at most {MAX_TEXT_BYTES} bytes to sign.",
            )
        clock, exchange, ref = self._parts.clock, self._exchange, _ref(use)
        before_s = clock.monotonic_s()
        try:
            sealed = await self._parts.keys.sign(ref, use.operation, text, in_use=in_use)
        except StoreError as error:
            raise refusal_for(error) from None
        finally:
            exchange.secret_ms = (exchange.secret_ms or 0.0) + (clock.monotonic_s() - before_s) * 1000
        self._still_wanted()
        record = await self._parts.audit.open(opening(self._facts, sealed))
        if exchange.settled:
            self._parts.audit.close(record, {"outcome": "client_gone" if exchange.refused is None else "refused"})
            self._still_wanted()
        self._opened(record)
        return sealed.unseal(record)[SIGNATURE].reveal_bytes(), int(sealed.version)

    def _still_wanted(self) -> None:
        if self._exchange.settled:
            raise asyncio.CancelledError
