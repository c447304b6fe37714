"""What is held for slow readers is counted while somebody holds something, and not a moment longer."""

from __future__ import annotations

import asyncio

from addons.buffers import SAMPLE_S, Buffers
from addons.telemetry import Metrics


class Holder:
    def __init__(self, held: int) -> None:
        self.held = held
        self.asked = 0

    def held_bytes(self) -> int:
        self.asked += 1
        return self.held


def shown(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("ostiary_buffered_bytes")


async def test_full_and_empty_again() -> None:
    metrics = Metrics()
    buffers = Buffers(metrics, 100)
    one, two = Holder(60), Holder(41)
    buffers.watch(one)
    assert not buffers.full
    buffers.watch(two)
    await asyncio.sleep(SAMPLE_S * 1.5)
    assert (buffers.full, buffers.held_bytes, shown(metrics)) == (True, 101, 101)
    one.held = 59
    buffers.sample()
    assert not buffers.full
    one.held = two.held = 0
    await asyncio.sleep(SAMPLE_S * 1.5)
    assert (buffers.held_bytes, shown(metrics)) == (0, 0)
    asked = one.asked
    await asyncio.sleep(SAMPLE_S * 2.5)
    assert one.asked == asked  # nobody is asked while nothing waits


async def test_a_connection_that_is_gone_holds_nothing() -> None:
    buffers = Buffers(Metrics(), 10)
    one = Holder(50)
    buffers.watch(one)
    buffers.sample()
    assert buffers.full
    buffers.forget(one)
    await asyncio.sleep(SAMPLE_S * 1.5)
    assert not buffers.full
