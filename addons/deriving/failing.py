"""Remembers that a token could not be made: for which versions of its secrets, and until when nobody is asked again.

An endpoint that is down is asked again after 0.5 s, doubling to 30 s; one that refuses after 2 s, doubling to 60 s. Other
versions are tried at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from addons.refusal import Code, Refusal
from vault.store import SealedSecret, SecretRef

_DOWN: Final = (0.5, 30.0)
_REFUSED: Final = (2.0, 60.0)
_ASKED_MOST_S: Final = 60.0
"""What an endpoint may ask for by `Retry-After`."""


class Failures:
    """Those of one token, in a row."""

    __slots__ = ("_count", "_last", "_of", "_retry_s")

    def __init__(self) -> None:
        self._last: Refusal | None = None
        self._of: Mapping[SecretRef, SealedSecret] | None = None
        self._count = 0
        self._retry_s = 0.0

    def note(self, inputs: Mapping[SecretRef, SealedSecret], refusal: Refusal, now_s: float, jitter: float) -> bool:
        """A flight for these versions has failed; whether it is the first in a row.

        Args:
            inputs: what the flight was for.
            refusal: why.
            now_s: monotonic.
            jitter: in [0, 1).
        """
        if not self._alike(inputs):
            self._count = 0
        self._count += 1
        first_s, most_s = _DOWN if refusal.status == 503 else _REFUSED
        pause_s = min(first_s * 2 ** min(self._count - 1, 10), most_s) * (0.5 + jitter / 2)
        if refusal.retry_after_s is not None and refusal.retry_after_s > 1.0:
            # More was asked for; believed up to a bound.
            pause_s = max(pause_s, min(refusal.retry_after_s, _ASKED_MOST_S))
        self._last, self._of, self._retry_s = refusal, inputs, now_s + pause_s
        return self._count == 1

    def forget(self) -> None:
        """A token was made."""
        self._last, self._of, self._count, self._retry_s = None, None, 0, 0.0

    def allow(self, inputs: Mapping[SecretRef, SealedSecret], now_s: float) -> bool:
        """Whether a token of these versions may be asked for now."""
        return now_s >= self._retry_s or not self._alike(inputs)

    def are_of(self, inputs: Mapping[SecretRef, SealedSecret]) -> bool:
        """Whether the last flight failed, and was for these versions."""
        return self._last is not None and self._alike(inputs)

    def again(self, now_s: float) -> Refusal:
        """A fresh exception: one object raised to many waiters would gather all their tracebacks."""
        last = self._last
        if last is None:
            return Refusal(Code.SECRET_UNAVAILABLE, "The token was not made.", retry_after_s=1.0)
        wait_s = last.retry_after_s
        if wait_s is not None:
            wait_s = max(wait_s, self._retry_s - now_s)
        return Refusal(last.code, last.message, retry_after_s=wait_s)

    def _alike(self, inputs: Mapping[SecretRef, SealedSecret]) -> bool:
        """Whether what failed was for these versions."""
        known = self._of
        return (
            known is not None
            and known.keys() == inputs.keys()
            and all(inputs[ref].same(one) for ref, one in known.items())
        )
