"""Random calls in any order against a model that fits on a page. Where the clock is ours, time passes too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from addons.state.memory import MemoryStore
from addons.state.sqlite import SqliteStore
from addons.state.store import Added, StateConflict, StateStore
from addons.state.valkey import ValkeyStore
from tests.addons.state.conftest import Turned, server_of
from tests.harness.valkey import Valkey

KEYS = st.sampled_from(["a:1", "a:2", "b:1"])
SPANS = st.sampled_from([1.0, 5.0, 30.0])
LONG_S = 86_400.0


class Machine(RuleBasedStateMachine):
    """What a store must say, from dictionaries of `(value, ends_s)`."""

    def __init__(self, runner: asyncio.Runner, store: StateStore, clock: Turned | None) -> None:
        super().__init__()
        self.run = runner.run
        self.store = store
        self.clock = clock
        self.now_s = clock.now_s if clock else 0.0
        self.marks: dict[str, float] = {}
        self.counters: dict[str, tuple[int, float]] = {}
        self.kept: dict[str, tuple[bytes, int, float]] = {}
        self.revision = ""

    def ttl(self, span_s: float) -> float:
        return span_s if self.clock else LONG_S

    def version(self, key: str) -> int:
        return self.kept[key][1] if key in self.kept and self.kept[key][2] > self.now_s else 0

    @rule(span_s=st.sampled_from([0.5, 2.0, 29.0, 31.0]))
    def time_passes(self, span_s: float) -> None:
        if self.clock is not None:
            self.clock.now_s += span_s
            self.now_s = self.clock.now_s

    @rule(key=KEYS, span_s=SPANS)
    def once(self, key: str, span_s: float) -> None:
        fresh = self.marks.get(key, -1.0) <= self.now_s
        assert self.run(self.store.once(key, self.ttl(span_s))) is fresh
        if fresh:
            self.marks[key] = self.now_s + self.ttl(span_s)

    @rule(key=KEYS, amount=st.integers(-9, 9), span_s=SPANS, limit=st.none() | st.integers(0, 12))
    def add(self, key: str, amount: int, span_s: float, limit: int | None) -> None:
        before, ends_s = self.counters.get(key, (0, -1.0))
        alive = ends_s > self.now_s
        before = before if alive else 0
        after = max(0, before + amount)
        added = amount <= 0 or limit is None or after <= limit
        assert self.run(self.store.add(key, amount, self.ttl(span_s), limit)) == Added(
            after if added else before, added
        )
        if added and (alive or amount > 0):
            self.counters[key] = (after, ends_s if alive else self.now_s + self.ttl(span_s))

    @rule(
        key=KEYS,
        value=st.binary(max_size=9),
        span_s=st.none() | SPANS,
        expect=st.sampled_from(["any", "right", "wrong"]),
    )
    def put(self, key: str, value: bytes, span_s: float | None, expect: str) -> None:
        stands = self.version(key)
        wanted = {"any": None, "right": stands, "wrong": stands + 1}[expect]
        ttl_s = None if span_s is None else self.ttl(span_s)
        if expect == "wrong":
            with pytest.raises(StateConflict) as met:
                self.run(self.store.put(key, value, ttl_s=ttl_s, expect=wanted))
            assert met.value.version == stands
            return
        version = self.run(self.store.put(key, value, ttl_s=ttl_s, expect=wanted))
        assert all(version > other for _, other, _ in self.kept.values())
        self.kept[key] = (value, version, float("inf") if ttl_s is None else self.now_s + ttl_s)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.run(self.store.delete(key)) is bool(self.version(key))
        self.kept.pop(key, None)

    @rule(prefix=st.sampled_from(["", "a:", "b:", "c:"]))
    def items(self, prefix: str) -> None:
        listing = self.run(self.store.items(prefix))
        alive = {
            key: (value, version)
            for key, (value, version, _) in sorted(self.kept.items())
            if key.startswith(prefix) and self.version(key)
        }
        assert {item.key: (item.value, item.version) for item in listing.items} == alive
        assert [item.key for item in listing.items] == list(alive)
        for key in ("a:1", "b:1"):
            found = self.run(self.store.get(key))
            assert (found.version if found else 0) == self.version(key)
        assert self.run(self.store.changes(listing.revision, prefix)) is None
        self.revision = listing.revision

    @rule(key=KEYS)
    def a_change_is_seen(self, key: str) -> None:
        before = self.run(self.store.items()).revision
        self.put(key, b"c", None, "any")
        assert self.run(self.store.changes(before)) is not None


@contextlib.contextmanager
def opened(kind: str, runner: asyncio.Runner, clock: Turned, valkey: Any) -> Iterator[StateStore]:
    async def make(folder: Path) -> StateStore:
        if kind == "memory":
            return MemoryStore(clock)
        if kind == "sqlite":
            return SqliteStore(folder / "state.db", clock, busy_s=5)
        return ValkeyStore(server_of(valkey), deadline_s=5)

    with TemporaryDirectory() as folder:
        store = runner.run(make(Path(folder)))
        try:
            yield store
        finally:
            runner.run(store.close())


@pytest.mark.parametrize("kind", ["memory", "sqlite", "valkey"])
def test_any_order_of_calls(kind: str, request: pytest.FixtureRequest) -> None:
    valkey: Valkey | None = request.getfixturevalue("valkey") if kind == "valkey" else None
    endings = contextlib.ExitStack()

    def machine() -> Machine:
        endings.close()
        runner = endings.enter_context(asyncio.Runner())
        clock = Turned()
        store = endings.enter_context(opened(kind, runner, clock, valkey))
        return Machine(runner, store, None if kind == "valkey" else clock)

    with endings:
        run_state_machine_as_test(
            machine,  # type: ignore[arg-type]  # it calls what it is given; a factory does
            settings=settings(
                max_examples=100 if kind == "memory" else 25,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
