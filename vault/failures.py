"""Failures of a store that outlive the read that met them: told to others, and counted by kind."""

from __future__ import annotations

from vault.observer import ReadResult
from vault.store import SecretDenied, SecretMalformed, SecretMissing, SecretUnavailable, StoreError


def again(failure: StoreError, wait_s: float = 0.0) -> StoreError:
    """A fresh exception of the same kind: one object raised to many waiters would gather all their tracebacks.

    Args:
        failure: as it was met.
        wait_s: seconds before which the store is not asked again.
    """
    if isinstance(failure, SecretUnavailable):
        return SecretUnavailable(failure.name, failure.reason, retry_after_s=max(failure.retry_after_s, wait_s))
    kind = type(failure) if isinstance(failure, SecretDenied | SecretMissing | SecretMalformed) else SecretMalformed
    return kind(failure.name, failure.reason)


def result_of(failure: StoreError) -> ReadResult:
    """How a read that ended like this is counted."""
    match failure:
        case SecretUnavailable():
            return "unavailable"
        case SecretDenied():
            return "denied"
        case SecretMissing():
            return "missing"
        case _:
            return "malformed"
