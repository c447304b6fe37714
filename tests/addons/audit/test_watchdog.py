"""A disk that hangs, seen from another thread."""

from __future__ import annotations

import logging
import os
import time

import pytest

from addons.audit import watchdog
from addons.audit.sinks import Stopwatch
from addons.audit.watchdog import Watchdog
from tests.addons.audit.conftest import FACTS, Start, until


async def test_a_write_that_hangs_is_seen_from_a_thread(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "HUNG_S", 0.1)
    log = await start()
    real = os.write
    seen: list[tuple[bool, str]] = []

    def write(descriptor: int, content: bytes) -> int:
        time.sleep(0.4)
        seen.append((log.healthy, log.why))
        assert log.lag_s >= 0.3
        return real(descriptor, content)

    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL):
        patch.setattr(os, "write", write)
        await log.open(FACTS)
    assert seen == [(False, "a write to an audit file hangs")]
    assert any("hanging" in one.message for one in caplog.records)
    await until(lambda: log.healthy)
    assert log.lag_s == 0


def test_lag() -> None:
    stopwatch = Stopwatch()
    one = Watchdog(stopwatch)
    assert one.lag_s == 0
    stopwatch.since_s = time.monotonic() - 5
    assert 4.9 < one.lag_s < 6
