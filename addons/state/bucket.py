"""The arithmetic of a token bucket, for the stores that have no script of their own; `valkey_scripts.py` says the same in
Lua, and the conformance suite holds them together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from addons.state.store import Taken

ROUNDING: Final = 1e-6
"""Tokens that count as there although rounding lost them."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """`tokens` as they were at `at_s`."""

    tokens: float
    at_s: float


def take(
    before: Bucket | None, cost: float, capacity: float, refill_per_s: float, now_s: float
) -> tuple[Bucket | None, Taken]:
    """What stands in the bucket afterwards, None where nothing need be written; and what it said.

    A clock that was set back refills nothing, and the bucket is read by the new time from then on.
    """
    bucket = before or Bucket(capacity, now_s)
    tokens = min(capacity, bucket.tokens + max(0.0, now_s - bucket.at_s) * refill_per_s)
    if tokens + ROUNDING >= cost:
        return Bucket(max(0.0, tokens - cost), now_s), Taken(allowed=True, retry_after_s=0.0)
    wait_s = math.ceil((cost - tokens) / refill_per_s * 1000) / 1000
    return (Bucket(tokens, now_s) if now_s < bucket.at_s else None), Taken(allowed=False, retry_after_s=wait_s)


def full_in_s(bucket: Bucket, capacity: float, refill_per_s: float) -> float:
    """Until it is full, and need not be remembered."""
    return (capacity - bucket.tokens) / refill_per_s
