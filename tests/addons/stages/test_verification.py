"""Nonces are remembered for as long as anybody who shares the state could take their signature for a new one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons.exchange import WorkloadIdentity
from addons.refusal import Code, Refusal
from addons.stages.verification import CLOCKS_APART_S, Verification
from addons.state.memory import MemoryStore
from addons.verifying.claim import Single


class Now:
    s = 1000.0

    def __call__(self) -> float:
        return self.s


def stage(now: Now) -> Verification:
    return Verification(cast("Any", SimpleNamespace(clock=None, state=MemoryStore(now))))


def of(workload: str) -> Any:
    identity = WorkloadIdentity(workload, cast("Any", "any"))
    return SimpleNamespace(ask=lambda _: identity)


async def spent(one: Verification, workload: str, *keys: str, left_s: float = 10.0) -> bool:
    """Whether a nonce was used before."""
    try:
        await one._use_up(of(workload), Single("nonce", left_s), frozenset(keys))
    except Refusal as refusal:
        return refusal.code is Code.REPLAYED
    return False


@pytest.mark.parametrize("left_s", [-0.5, 0.0, 10.0])
async def test_a_clock_that_lags_takes_no_nonce_twice(left_s: float) -> None:
    """Where one clock sees a signature end, another process sees some of its time left."""
    now = Now()
    one = stage(now)
    assert not await spent(one, "billing", "secret/a", left_s=left_s)
    now.s += max(left_s, 0.0) + CLOCKS_APART_S - 0.1
    assert await spent(one, "billing", "secret/a", left_s=0.5)
    now.s += 0.2
    assert not await spent(one, "billing", "secret/a")


async def test_whose_a_nonce_is() -> None:
    one = stage(Now())
    assert not await spent(one, "billing", "secret/a")
    assert not await spent(one, "reports", "secret/a")
    # Where the signature is all that there is of a caller: its keys', whatever else a route takes beside them.
    assert not await spent(one, "verified", "secret/a")
    assert await spent(one, "verified", "secret/b", "secret/a")
    assert not await spent(one, "verified", "secret/c")
