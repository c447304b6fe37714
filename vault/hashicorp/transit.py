"""Vault's Transit engine: signatures and HMACs of keys that stay there.

One request, one call. At most `at_once` of them are under way, so that reads of secrets always find a thread; the others
wait inside the same total deadline, and only so many. What was computed is checked for its shape and for the version
that Vault names in front of it (`vault:v3:…`).
https://developer.hashicorp.com/vault/api-docs/secret/transit
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

import hvac

from vault.keys import SIGNATURE, KeyRef, Operation
from vault.secret import Secret
from vault.store import (
    SecretDenied,
    SecretMalformed,
    SecretMissing,
    SecretRef,
    SecretUnavailable,
    SecretVersion,
)

MOST_WAITING: Final = 512
"""Requests that wait for a turn; more are told at once that there is none."""
_ANSWER: Final = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/_-]{1,8192}={0,2})")
_HMAC: Final = {"hmac-sha256": ("sha2-256", 32), "hmac-sha384": ("sha2-384", 48), "hmac-sha512": ("sha2-512", 64)}
_SIGN: Final[dict[str, tuple[dict[str, str], int]]] = {
    "ed25519": ({}, 64),
    # r and s alone, as RFC 9421 section 3.3.4 has them, in base64url without padding.
    "ecdsa-p256-sha256": ({"hash_algorithm": "sha2-256", "marshaling_algorithm": "jws"}, 64),
    # The salt is as long as the hash (RFC 9421 section 3.3.1); Vault takes the longest unless told.
    "rsa-pss-sha512": ({"hash_algorithm": "sha2-512", "signature_algorithm": "pss", "salt_length": "hash"}, 256),
}


class Calls(Protocol):
    """One call by the rules of the store: one deadline, one new login after a 403, its errors as `StoreError`."""

    async def __call__[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T: ...


def path_of(ref: KeyRef, operation: Operation) -> str:
    """Path of Vault's API below the mount. The algorithm goes into the body, so that a policy names one path a key."""
    return f"{'hmac' if operation in _HMAC else 'sign'}/{ref.key}"


class Transit:
    """Computes with keys of Transit mounts.

    Args:
        calls: of the store.
        deadline_s: total, waiting for a turn included.
        at_once: calls under way together.
    """

    def __init__(self, calls: Calls, deadline_s: float, at_once: int) -> None:
        self._calls = calls
        self._deadline_s = deadline_s
        self._turns = asyncio.Semaphore(at_once)
        self._waiting = 0

    async def compute(self, ref: KeyRef, operation: Operation, text: bytes) -> SecretVersion:
        """See `KeyStore.compute`."""
        if self._waiting >= MOST_WAITING:
            raise SecretUnavailable(ref.name, "too many signatures are waited for")
        # The version is said, so that nobody asks which KV version this mount has: it has none.
        place = SecretRef(path_of(ref, operation), mount=ref.mount, kv=1, namespace=ref.namespace)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._deadline_s), self._turns:
                return await self._calls(place, lambda client, _: _asked(client, ref, operation, text))
        except TimeoutError:
            raise SecretUnavailable(ref.name, f"Vault did not sign within {self._deadline_s:g} s") from None
        except SecretUnavailable as error:
            raise SecretUnavailable(ref.name, error.reason, retry_after_s=error.retry_after_s) from None
        except SecretDenied:
            raise SecretDenied(ref.name, f"Vault denies update on {place.name}") from None
        except SecretMissing:
            raise SecretMissing(ref.name, "is no key there, or none that can do this") from None
        except SecretMalformed:
            raise SecretMalformed(ref.name, "was answered by something that is no signature of it") from None
        finally:
            self._waiting -= 1


def _asked(client: hvac.Client, ref: KeyRef, operation: Operation, text: bytes) -> SecretVersion:
    body: dict[str, Any] = {"input": base64.b64encode(text).decode("ascii")}
    if ref.version is not None:
        body["key_version"] = ref.version
    if operation in _HMAC:
        algorithm, size = _HMAC[operation]
        body["algorithm"] = algorithm
        kind = "hmac"
    else:
        options, size = _SIGN[operation]
        body |= options
        kind = "signature"
    # The same text may be signed twice: a connection that was just closed is no outage.
    answer = client.adapter.post(f"/v1/{ref.mount}/{path_of(ref, operation)}", json=body, repeatable=True)
    return _read(ref, answer["data"][kind], size, longer=operation == "rsa-pss-sha512")


def _read(ref: KeyRef, told: object, size: int, *, longer: bool) -> SecretVersion:
    found = _ANSWER.fullmatch(told) if isinstance(told, str) else None
    if found is None:
        raise SecretMalformed(ref.name, "was answered by something that is no signature of it")
    version, text = found[1], found[2].rstrip("=").translate(_STANDARD)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise SecretMalformed(ref.name, "was answered by something that is no base64") from None
    if (len(raw) < size) if longer else (len(raw) != size):
        raise SecretMalformed(ref.name, "is a key of another kind than the policy says")
    if ref.version is not None and version != str(ref.version):
        raise SecretMalformed(ref.name, "signed with another version than the one that was asked for")
    return SecretVersion({SIGNATURE: Secret(raw)}, version)


_STANDARD: Final = str.maketrans("-_", "+/")
