"""A log on a file of its own, and a clock that tests move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from addons.audit import AuditConfig, AuditLog, Fields, FileSink
from addons.telemetry import Metrics

FACTS: Fields = {
    "request_id": "0190a6f0-0000-7000-8000-000000000001",
    "workload": "billing",
    "proof": "key_hash",
    "source": "10.0.0.7",
    "listener": "sidecar",
    "route": "api",
    "host": "api.test",
    "port": 443,
    "method": "POST",
    "path": "/v1/charges",
    "secret": "secret/egress/api",
    "secret_version": "7",
    "cache": "hit",
}
ENDED: Fields = {"status": 200, "outcome": "ok", "bytes_in": 12, "bytes_out": 345, "ms": 12.5}


class Moved:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.wall = 1_790_000_000.25

    def monotonic_s(self) -> float:
        return self.monotonic

    def wall_s(self) -> float:
        return self.wall


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; fails on a torn line."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def events(path: Path) -> list[str]:
    return [record["event"] for record in read(path)]


async def until(condition: Callable[[], bool]) -> None:
    """Waits until it holds; five seconds at most."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def clock() -> Moved:
    return Moved()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def audit_file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


type Start = Callable[..., Awaitable[AuditLog]]


@pytest.fixture
async def start(audit_file: Path, metrics: Metrics, clock: Moved) -> AsyncIterator[Start]:
    """Starts logs, of one file unless told otherwise, and stops them at the end."""
    made: list[AuditLog] = []

    async def begin(*sinks: FileSink, **settings: Any) -> AuditLog:
        settings = {"reserve_bytes": 0, "wait_s": 0.3, **settings}
        log = AuditLog(AuditConfig(sinks or (FileSink(audit_file),), **settings), metrics, clock)
        made.append(log)
        await log.start()
        return log

    yield begin
    for log in made:
        await log.stop()
