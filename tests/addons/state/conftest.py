"""Stores to test, each with the clock it goes by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from addons.state.memory import MemoryStore
from addons.state.sqlite import SqliteStore
from addons.state.store import StateStore
from addons.state.valkey import Server, ValkeyStore
from tests.harness.valkey import Valkey, valkey_server

KINDS = ("memory", "sqlite", "valkey")


@dataclass
class Turned:
    """A clock that tests turn."""

    now_s: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Heard:
    """What a store told its observer."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    ups: list[bool] = field(default_factory=list)
    local: list[tuple[str, str]] = field(default_factory=list)
    ages: list[tuple[str, float]] = field(default_factory=list)

    def state_call(self, operation: str, result: str, duration_s: float) -> None:
        assert duration_s >= 0
        self.calls.append((operation, result))

    def state_up(self, *, up: bool) -> None:
        self.ups.append(up)

    def state_local(self, operation: str, result: str) -> None:
        self.local.append((operation, result))

    def state_age(self, prefix: str, age_s: float) -> None:
        self.ages.append((prefix, age_s))


@dataclass
class Made:
    """A store, and how time passes for it."""

    store: StateStore
    passes: Callable[[float], Awaitable[None]]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


def server_of(valkey: Valkey, **given: Any) -> Server:
    return Server("127.0.0.1", valkey.port, prefix=valkey.fresh_prefix(), **given)


@pytest.fixture(params=KINDS)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Made]:
    clock = Turned()

    async def turned(span_s: float) -> None:
        clock.now_s += span_s

    if request.param == "memory":
        one: StateStore = MemoryStore(clock)
        passes: Callable[[float], Awaitable[None]] = turned
    elif request.param == "sqlite":
        one, passes = SqliteStore(tmp_path / "state.db", clock), turned
    else:
        # A deadline that a loaded machine keeps: what these tests ask is what the store does, not how fast.
        one, passes = ValkeyStore(server_of(request.getfixturevalue("valkey")), deadline_s=5), asyncio.sleep
    yield Made(one, passes)
    await one.close()


@pytest.fixture
def store(made: Made) -> StateStore:
    return made.store
