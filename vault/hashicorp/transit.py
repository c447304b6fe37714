"""Vault's Transit engine: signatures and HMACs of keys that stay there.

A request that finds a turn is one call. At most `at_once` of them are under way, so that reads of secrets always find a
thread; the others wait inside the same total deadline, and only so many. What waits for the same key goes together, as one
call (`batch_input`), once there is a turn. What was computed is checked for its shape and for the version that Vault names
in front of it (`vault:v3:…`).
https://developer.hashicorp.com/vault/api-docs/secret/transit
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import hvac

from vault.failures import again
from vault.keys import MAX_TEXT_BYTES, SIGNATURE, KeyRef, Operation
from vault.secret import Secret
from vault.store import (
    SecretDenied,
    SecretMalformed,
    SecretMissing,
    SecretRef,
    SecretUnavailable,
    SecretVersion,
    StoreError,
)

MOST_WAITING: Final = 512
"""Requests that wait; more are told at once that there is no turn."""
MOST_TOGETHER: Final = 64
"""Signatures of one call; their texts together are no longer than one may be."""
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


type _Work = tuple[KeyRef, Operation]


class _Asked(NamedTuple):
    """One text that somebody waits to have signed."""

    text: bytes
    done: asyncio.Future[SecretVersion]


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
        self._free = at_once
        self._waiting = 0
        self._queues: dict[_Work, deque[_Asked]] = {}
        """What waits for a turn; the work that had one last stands last."""
        self._sent: set[asyncio.Task[None]] = set()

    async def compute(self, ref: KeyRef, operation: Operation, text: bytes) -> SecretVersion:
        """See `KeyStore.compute`."""
        if self._waiting >= MOST_WAITING:
            raise SecretUnavailable(ref.name, "too many signatures are waited for")
        asked = _Asked(text, asyncio.get_running_loop().create_future())
        self._queues.setdefault((ref, operation), deque()).append(asked)
        self._waiting += 1
        self._send()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asked.done
        except TimeoutError:
            raise SecretUnavailable(ref.name, f"Vault did not sign within {self._deadline_s:g} s") from None
        finally:
            self._waiting -= 1
            asked.done.cancel()

    async def close(self) -> None:
        """Whoever still waits is told that there is no signature."""
        for task in self._sent:
            task.cancel()
        await asyncio.gather(*self._sent, return_exceptions=True)

    def _send(self) -> None:
        while self._free and self._queues:
            work = next(iter(self._queues))
            queue = self._queues.pop(work)
            batch: list[_Asked] = []
            size = 0
            while queue and len(batch) < MOST_TOGETHER and (not batch or size + len(queue[0].text) <= MAX_TEXT_BYTES):
                one = queue.popleft()
                if not one.done.done():  # else it has waited for too long, or nobody wants it any more
                    batch.append(one)
                    size += len(one.text)
            if queue:
                self._queues[work] = queue
            if batch:
                self._free -= 1
                task = asyncio.get_running_loop().create_task(self._together(work, batch))
                self._sent.add(task)
                task.add_done_callback(self._sent.discard)

    async def _together(self, work: _Work, batch: list[_Asked]) -> None:
        ref, operation = work
        # The version is said, so that nobody asks which KV version this mount has: it has none.
        place = SecretRef(path_of(ref, operation), mount=ref.mount, kv=1, namespace=ref.namespace)
        texts = [one.text for one in batch]
        failure: StoreError = SecretUnavailable(ref.name, "this process ends")
        try:
            found = await self._calls(place, lambda client, _: _asked(client, ref, operation, texts))
        except SecretUnavailable as error:
            failure = SecretUnavailable(ref.name, error.reason, retry_after_s=error.retry_after_s)
        except SecretDenied:
            failure = SecretDenied(ref.name, f"Vault denies update on {place.name}")
        except SecretMissing:
            failure = SecretMissing(ref.name, "is no key there, or none that can do this")
        except SecretMalformed:
            failure = SecretMalformed(ref.name, "was answered by something that is no signature of it")
        except Exception as error:  # noqa: BLE001 - nobody may wait for ever, and its text may hold anything
            failure = SecretUnavailable(ref.name, f"the call failed ({type(error).__name__})")
        else:
            for one, version in zip(batch, found, strict=True):
                if not one.done.done():
                    one.done.set_result(version)
        finally:
            for one in batch:
                if not one.done.done():
                    one.done.set_exception(again(failure))
            self._free += 1
            self._send()


def _asked(client: hvac.Client, ref: KeyRef, operation: Operation, texts: Sequence[bytes]) -> list[SecretVersion]:
    coded = [base64.b64encode(text).decode("ascii") for text in texts]
    body: dict[str, Any] = (
        {"input": coded[0]} if len(coded) == 1 else {"batch_input": [{"input": one} for one in coded]}
    )
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
    data = client.adapter.post(f"/v1/{ref.mount}/{path_of(ref, operation)}", json=body, repeatable=True)["data"]
    told = [data[kind]] if len(coded) == 1 else [one[kind] for one in data["batch_results"]]
    if len(told) != len(coded):
        raise ValueError("another number of signatures than was asked for")
    return [_read(ref, one, size, longer=operation == "rsa-pss-sha512") for one in told]


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
