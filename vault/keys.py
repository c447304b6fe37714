"""Keys that sign and never leave their store: they are named and asked for a signature, never read.

A signature is a credential like one that is read: it comes as a `SealedSecret` whose one field is `signature`, with the
version of the key that made it, and is had only in exchange for an audit record that names key and version.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

from vault.observer import ReadResult, StoreObserver
from vault.store import (
    SealedSecret,
    SecretDenied,
    SecretMalformed,
    SecretMissing,
    SecretUnavailable,
    SecretVersion,
    StoreError,
)

type Operation = Literal["hmac-sha256", "hmac-sha384", "hmac-sha512", "ed25519", "ecdsa-p256-sha256", "rsa-pss-sha512"]
"""What a key is asked for. Signatures come as RFC 9421 has them: `r` and `s` of ECDSA as 64 bytes, a salt of 64 bytes."""
SIGNATURE: Final = "signature"
MAX_TEXT_BYTES: Final = 1024 * 1024
"""Of what is sent to the store to be signed."""
MOST_KEYS: Final = 1000
"""Whose versions are remembered."""


@dataclass(frozen=True, slots=True)
class KeyRef:
    """Names one key. `name` is what audit records, metrics and `may` call it."""

    key: str
    mount: str = "transit"
    namespace: str | None = None
    version: int | None = None
    """Pinned version; None: the newest signs."""

    @property
    def name(self) -> str:
        return f"{self.mount}/keys/{self.key}"

    def __str__(self) -> str:
        return self.name


@runtime_checkable
class KeyStore(Protocol):
    """A store that computes with keys it keeps."""

    async def compute(self, ref: KeyRef, operation: Operation, text: bytes) -> SecretVersion:
        """One signature over `text`, in one call within the store's total deadline.

        Raises:
            SecretUnavailable, SecretDenied, SecretMissing, SecretMalformed.
        """


class Keys:
    """What the pipeline asks for signatures.

    Args:
        store: any secret store; one that keeps no such keys refuses.
        observer: told of each call, and of versions.
    """

    def __init__(self, store: object, observer: StoreObserver) -> None:
        self._store = store
        self._observer = observer
        self._versions: OrderedDict[KeyRef, str] = OrderedDict()

    async def sign(self, ref: KeyRef, operation: Operation, text: bytes, *, in_use: bool = True) -> SealedSecret:
        """A signature, sealed.

        Args:
            ref: the key.
            operation: what it is asked for.
            text: what is signed.
            in_use: False where its version is only tried: nobody is told then that this one is in use.

        Raises:
            SecretUnavailable, SecretDenied, SecretMissing, SecretMalformed.
        """
        if not isinstance(self._store, KeyStore):
            raise SecretMissing(ref.name, "needs Vault: the embedded store keeps no keys that sign")
        if len(text) > MAX_TEXT_BYTES:
            raise SecretMalformed(ref.name, f"signs at most {MAX_TEXT_BYTES} bytes, and this request has more")
        result: ReadResult = "unavailable"
        try:
            made = await self._store.compute(ref, operation, text)
            result = "ok"
        except StoreError as error:
            result = _result(error)
            raise
        finally:
            self._observer.secret_read("vault", result)
        self._observer.secret_cache("bypass")
        if in_use:
            self._used(ref, made.version)
        return SealedSecret(ref.name, made, cache="bypass", age_s=0.0)

    def _used(self, ref: KeyRef, version: str) -> None:
        """Tells which version signs. A call that was overtaken by another does not bring an old one back."""
        before = self._versions.get(ref)
        if before is None or int(version) > int(before):
            self._versions[ref] = version
            while len(self._versions) > MOST_KEYS:
                self._versions.popitem(last=False)
            if before is not None:
                self._observer.secret_changed(ref.name, before, version)
        self._observer.secret_in_use(ref.name, version, 0.0)


def _result(error: StoreError) -> ReadResult:
    match error:
        case SecretDenied():
            return "denied"
        case SecretMissing():
            return "missing"
        case SecretMalformed():
            return "malformed"
        case SecretUnavailable():
            return "unavailable"
        case _:
            return "malformed"
