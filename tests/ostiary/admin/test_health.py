"""Readiness: what it is made of, and how often the store is asked."""

from __future__ import annotations

from typing import Any, cast

from addons.audit import AuditLog
from addons.state import StateStore
from addons.state.store import StateUnavailable
from ostiary.admin.health import STALE_S, Health
from vault.store import SecretStore, SecretUnavailable


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s


class Store:
    def __init__(self) -> None:
        self.fails = False
        self.asked = 0

    async def probe(self) -> None:
        self.asked += 1
        if self.fails:
            raise SecretUnavailable("", "sealed")


def health_of(store: Store, audit: Any, clock: Clock) -> Health:
    return Health(cast("SecretStore", store), cast("AuditLog", audit), clock, lambda: "v1")


class Audit:
    healthy = True
    why = ""


async def test_ready() -> None:
    found = await health_of(Store(), Audit(), Clock()).readiness()
    assert (found.policy, found.problems) == ("v1", ())


async def test_a_store_that_goes_away_counts_once_nothing_stale_may_serve() -> None:
    store, clock = Store(), Clock()
    health = health_of(store, Audit(), clock)
    assert not await health.problems()
    store.fails = True
    clock.now_s += STALE_S - 1
    assert not await health.problems()
    clock.now_s += 2
    (problem,) = await health.problems()
    assert problem == "secret store: sealed"
    store.fails = False
    clock.now_s += 2
    assert not await health.problems()


async def test_a_store_that_was_never_there() -> None:
    store = Store()
    store.fails = True
    assert await health_of(store, Audit(), Clock()).problems() == ["secret store: sealed"]


async def test_the_store_is_asked_once_a_second_at_most() -> None:
    store, clock = Store(), Clock()
    health = health_of(store, Audit(), clock)
    for _ in range(10):
        await health.problems()
    assert store.asked == 1
    clock.now_s += 1
    await health.problems()
    assert store.asked == 2


class State:
    fails = False

    async def probe(self) -> None:
        if self.fails:
            raise StateUnavailable("locked")


async def test_the_state_where_there_is_one() -> None:
    state, clock = State(), Clock()
    health = health_of(Store(), Audit(), clock)
    health.state = cast("StateStore", state)
    assert not await health.problems()
    state.fails = True
    clock.now_s += STALE_S - 1
    assert not await health.problems()
    clock.now_s += 2
    assert await health.problems() == ["state store: locked"]


async def test_draining_and_the_audit() -> None:
    audit = Audit()
    health = health_of(Store(), audit, Clock())
    audit.healthy, audit.why = False, "no space"
    health.draining = True
    assert await health.problems() == ["draining", "audit: no space"]
