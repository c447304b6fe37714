"""Counts the bytes that this process holds for slow readers, and says when new requests must be shed.

An engine tells of each connection with a backlog (`watch`); while there is one, all that are known are asked ten times
a second, and one without a backlog is forgotten. A process in which nothing waits does nothing here. What one
connection can hold is bounded by its engine, so shedding new requests bounds the whole.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from addons.telemetry import Metrics

SAMPLE_S: Final = 0.1
DEFAULT_BYTES: Final = 256 * 1024 * 1024


class Holder(Protocol):
    """A caller's connection with those to its upstreams."""

    def held_bytes(self) -> int:
        """Bytes that wait here to be written or read."""


class Buffers:
    """The bytes in flight of one process.

    Args:
        metrics: told at every sample.
        limit_bytes: above this, new requests are refused.
    """

    def __init__(self, metrics: Metrics, limit_bytes: int = DEFAULT_BYTES) -> None:
        self._metrics = metrics
        self._limit_bytes = limit_bytes
        self._holders: set[Holder] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.held_bytes = 0
        """As of the last sample."""

    @property
    def full(self) -> bool:
        return self.held_bytes > self._limit_bytes

    def watch(self, holder: Holder) -> None:
        """Counts a connection for as long as it has a backlog."""
        self._holders.add(holder)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SAMPLE_S, self._again)

    def forget(self, holder: Holder) -> None:
        """The connection is gone."""
        self._holders.discard(holder)

    def sample(self) -> None:
        """Asks everyone; those with nothing left are forgotten."""
        held_bytes = 0
        for holder in tuple(self._holders):
            found = holder.held_bytes()
            if not found:
                self._holders.discard(holder)
            held_bytes += found
        self.held_bytes = held_bytes
        self._metrics.buffered(held_bytes)

    def _again(self) -> None:
        self._timer = None
        self.sample()
        if self._holders:
            self._timer = asyncio.get_running_loop().call_later(SAMPLE_S, self._again)
