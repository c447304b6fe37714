"""Judges what callers hand to a state store, before anything is sent or kept.

A key is `<kind>:<rest>`: lower-case kind, then visible ASCII without spaces, so that it can stand in logs and in a
server's tools. What comes from outside (a nonce, a model's name) goes into a key hashed or encoded.
"""

from __future__ import annotations

import math
import re
from typing import Final

from addons.state.store import MAX_AMOUNT, MAX_KEY_BYTES, MAX_TTL_S, MAX_VALUE_BYTES, StateMisuse

_KEY: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}:[\x21-\x7e]+")
_PREFIX: Final = re.compile(r"[\x21-\x7e]*")
MIN_TTL_S: Final = 0.001
MAX_TOKENS: Final = 1e12
MIN_REFILL_PER_S: Final = 1e-6


def check_key(key: str) -> None:
    """Raises StateMisuse unless it can name a fact."""
    if len(key) > MAX_KEY_BYTES or not _KEY.fullmatch(key):
        raise StateMisuse(f"a key is kind:rest in visible ASCII of at most {MAX_KEY_BYTES} bytes")


def check_prefix(prefix: str) -> None:
    """Raises StateMisuse unless keys could begin with it."""
    if len(prefix) > MAX_KEY_BYTES or not _PREFIX.fullmatch(prefix):
        raise StateMisuse(f"a prefix is visible ASCII of at most {MAX_KEY_BYTES} bytes")


def check_ttl(ttl_s: float) -> None:
    """Raises StateMisuse unless it is a span that every store can hold."""
    if not math.isfinite(ttl_s) or not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise StateMisuse(f"a fact lives between {MIN_TTL_S} and {MAX_TTL_S:.0f} seconds")


def check_value(value: bytes) -> None:
    """Raises StateMisuse unless it is small enough."""
    if len(value) > MAX_VALUE_BYTES:
        raise StateMisuse(f"a kept value has at most {MAX_VALUE_BYTES} bytes")


def check_amount(amount: int, limit: int | None) -> None:
    """Raises StateMisuse unless every store holds both exactly."""
    if abs(amount) > MAX_AMOUNT or (limit is not None and not 0 <= limit <= MAX_AMOUNT):
        raise StateMisuse(f"amounts and limits are whole numbers up to {MAX_AMOUNT}")


def check_bucket(cost: float, capacity: float, refill_per_s: float) -> None:
    """Raises StateMisuse unless the cost could ever be taken."""
    if not all(math.isfinite(one) for one in (cost, capacity, refill_per_s)):
        raise StateMisuse("a bucket is described by finite numbers")
    if not 0 < capacity <= MAX_TOKENS or not MIN_REFILL_PER_S <= refill_per_s <= MAX_TOKENS:
        raise StateMisuse("a bucket has a capacity and is refilled")
    if not 0 < cost <= capacity:
        raise StateMisuse("a cost lies above 0 and is no more than the bucket can hold")


def check_expect(expect: int | None) -> None:
    """Raises StateMisuse unless it is a version."""
    if expect is not None and not 0 <= expect <= MAX_AMOUNT:
        raise StateMisuse("a version is a whole number, 0 for none")
