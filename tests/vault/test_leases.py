"""Leases: one flight, renewal, make before break, revocation after the last use, and a random walk against a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vault.leases import GRACE_S, REJECTED_FIRST_S, Leased, LeaseGone, LeaseRef, Leases
from vault.secret import Secret
from vault.store import SealedSecret, SecretDenied, SecretUnavailable, SecretVersion, StoreError

REF = LeaseRef("database/creds/egress-ro")
LIFE_S = 60.0


@dataclass
class Record:
    """An audit record that opens one lease."""

    secret: str | None
    secret_version: str | None


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Store:
    """Lends for a minute, at most five in all, and checks at each call what no caller may do."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.number = 1
        self.made: list[Leased] = []
        self.ends_s: dict[str, float] = {}
        self.max_s: dict[str, float] = {}
        self.revoked: set[str] = set()
        self.failure: StoreError | None = None
        self.no_renewal = False
        self.renewable = True
        self.latency_s = 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.flying = self.most = self.renewals = 0

    def login(self) -> int:
        return self.number

    def keep_login(self, lent: Callable[[], bool]) -> None:
        raise AssertionError("a store of tests has no login")

    async def _call(self) -> None:
        self.clock.now_s += self.latency_s
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def lease(self, ref: LeaseRef) -> Leased:
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            await self._call()
        finally:
            self.flying -= 1
        name = str(len(self.made) + 1)
        self.ends_s[name], self.max_s[name] = self.clock.now_s + LIFE_S, self.clock.now_s + 5 * LIFE_S
        self.clock.now_s += self.latency_s
        fields = {"username": Secret(f"u{name}"), "password": Secret(f"p{name}")}
        self.made.append(Leased(SecretVersion(fields, name), name, LIFE_S, self.renewable, self.number))
        return self.made[-1]

    async def renew(self, ref: LeaseRef, leased: Leased) -> float:
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            await self._call()
        finally:
            self.flying -= 1
        if not self.alive(leased):
            raise LeaseGone
        if self.no_renewal:
            raise SecretDenied(ref.name, "no")
        self.renewals += 1
        granted_s = min(LIFE_S, self.max_s[leased.lease_id] - self.clock.now_s)
        self.ends_s[leased.lease_id] = self.clock.now_s + granted_s
        return granted_s

    async def revoke(self, ref: LeaseRef, leased: Leased) -> None:
        await self._call()
        assert leased.version.uses.live == 0, "revoked while a request held it"
        self.revoked.add(leased.lease_id)

    def alive(self, leased: Leased) -> bool:
        name = leased.lease_id
        return name not in self.revoked and leased.login == self.number and self.clock.now_s < self.ends_s[name]

    def living(self) -> list[str]:
        return [one.lease_id for one in self.made if self.alive(one)]


class Made:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Store(self.clock)
        self.leases = Leases(cast("Any", None), self.store, self.clock, jitter=lambda: 0.5)

    async def read(self, *, bypass: bool = False) -> SealedSecret:
        found = await self.leases.read(REF, ttl_s=0, max_stale_s=1e9, bypass=bypass)
        # Served: not run out as the store counts, and all of one lease.
        assert self.clock.now_s < self.store.ends_s[found.version]
        return found

    def hold(self, sealed: SealedSecret) -> SealedSecret:
        fields = sealed.unseal(Record(sealed.name, sealed.version))
        assert fields["username"].matches(Secret(f"u{sealed.version}"))
        assert fields["password"].matches(Secret(f"p{sealed.version}"))
        return sealed

    async def settled(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float, step_s: float = 1.0) -> None:
        until_s = self.clock.now_s + seconds
        while self.clock.now_s < until_s:
            self.clock.now_s += min(step_s, until_s - self.clock.now_s)
            self.leases.tick()
            await self.settled()


async def test_many_wait_for_one_lease() -> None:
    made = Made()
    made.store.gate.clear()
    waiting = [asyncio.create_task(made.read()) for _ in range(20)]
    await made.settled()
    waiting[0].cancel()
    await made.settled()
    made.store.gate.set()
    assert {(one.version, one.cache) for one in await asyncio.gather(*waiting[1:])} == {("1", "miss")}
    assert len(made.store.made) == 1
    await made.leases.close()
    assert made.store.revoked == {"1"}


async def test_renewed_while_used_and_replaced_before_its_max_ttl() -> None:
    made = Made()
    states = []
    for _ in range(400):
        states.append((await made.read()).cache)
        await made.pass_time(1)
    assert set(states[1:]) == {"hit"}, "a request had to wait"
    assert made.store.renewals >= 4
    assert len(made.store.made) == 2
    assert (await made.read()).version == "2"
    assert made.store.living() == ["2"]
    await made.leases.close()
    assert made.store.living() == []


async def test_an_unused_lease_runs_out_and_the_next_read_takes_another() -> None:
    made = Made()
    await made.read()
    await made.pass_time(5 * LIFE_S)
    assert made.store.living() == []
    assert made.store.renewals == 1
    assert (await made.read()).version == "2"
    await made.leases.close()


@pytest.mark.parametrize("how", ["not renewable", "refused"])
async def test_replaced_at_85_percent_where_it_is_not_renewed(how: str) -> None:
    made = Made()
    made.store.renewable = how == "refused"
    made.store.no_renewal = True
    held = made.hold(await made.read())
    await made.pass_time(LIFE_S * 0.84)
    assert (await made.read()).version == "1"
    made.store.gate.clear()
    await made.pass_time(2)
    assert (await made.read()).version == "1"  # make before break
    made.store.gate.set()
    await made.settled()
    assert (await made.read()).version == "2"
    await made.pass_time(3)
    assert made.store.revoked == set()
    held.release()
    await made.pass_time(GRACE_S - 1)
    assert made.store.revoked == set()  # it was held a moment ago
    await made.pass_time(GRACE_S)
    assert made.store.living() == ["2"]
    await made.leases.close()


async def test_an_outage_serves_to_the_end_of_the_lease_and_no_longer() -> None:
    made = Made()
    await made.read()
    made.store.failure = SecretUnavailable("", "sealed")
    await made.pass_time(LIFE_S * 0.7)
    assert made.leases.left_s(REF) == pytest.approx(LIFE_S * 0.3)
    assert (await made.read()).cache == "stale"
    await made.pass_time(LIFE_S * 0.3)
    with pytest.raises(SecretUnavailable):
        await made.read()
    made.store.failure = None
    await made.pass_time(3)
    assert (await made.read()).version == "2"
    await made.leases.close()


async def test_it_ends_as_the_store_counts_however_long_the_answer_took_and_whoever_ticks() -> None:
    made = Made()
    made.store.latency_s = 9.0
    await made.read()
    made.store.latency_s = 0.0
    made.store.failure = SecretUnavailable("", "sealed")
    made.clock.now_s = made.store.ends_s["1"] + 0.5  # nobody has ticked since
    with pytest.raises(SecretUnavailable):
        await made.read()
    await made.leases.close()


async def test_revoked_at_the_store_it_is_dropped_and_one_new_one_taken() -> None:
    made = Made()
    await made.read()
    made.store.revoked.add("1")
    await made.pass_time(LIFE_S * 0.7)
    assert (await made.read()).version == "2"
    made.store.revoked.add("2")
    made.store.failure = SecretDenied(REF.name, "no")
    made.store.gate.set()
    await made.pass_time(LIFE_S * 0.9)
    with pytest.raises(SecretDenied):
        await made.read()
    await made.leases.close()


async def test_a_rejected_lease_is_replaced_once_and_then_not_before_a_pause() -> None:
    made = Made()
    first = await made.read()
    others = await asyncio.gather(*(made.leases.read_other(REF, first, ttl_s=0) for _ in range(9)))
    assert {one.version for one in others if one is not None} == {"2"}
    assert all(others)
    late = await made.leases.read_other(REF, first, ttl_s=0)
    assert late is not None
    assert late.version == "2"
    assert await made.leases.read_other(REF, late, ttl_s=0) is None
    await made.pass_time(REJECTED_FIRST_S)
    assert await made.leases.read_other(REF, late, ttl_s=0) is not None
    await made.pass_time(REJECTED_FIRST_S)
    made.leases.suspect(REF, await made.read())  # the pause has doubled
    await made.settled()
    assert len(made.store.made) == 3
    await made.leases.close()


async def test_an_old_lease_is_revoked_after_an_outage_too() -> None:
    made = Made()
    await made.leases.read_other(REF, await made.read(), ttl_s=0)
    made.store.failure = SecretUnavailable("", "sealed")
    await made.pass_time(GRACE_S + 2)
    made.store.failure = None
    await made.pass_time(2 * GRACE_S + 2)
    assert made.store.living() == ["2"]
    await made.leases.close()
    assert made.store.living() == []


async def test_what_no_route_has_any_more_is_given_back_when_its_last_request_ends() -> None:
    made, routes = Made(), {REF}
    made.leases.only(lambda ref: ref in routes)
    held = made.hold(await made.read())
    await made.pass_time(2 * GRACE_S)
    assert made.store.living() == ["1"]
    routes.clear()
    await made.pass_time(2 * GRACE_S)
    assert made.store.living() == ["1"]
    held.release()
    await made.pass_time(GRACE_S + 2)
    assert made.store.living() == []
    await made.leases.close()


async def test_a_new_login_takes_leases_anew() -> None:
    made = Made()
    await made.read()
    made.store.number = 2
    await made.pass_time(1)
    assert (await made.read()).version == "2"
    await made.leases.close()


async def test_close_is_bounded_and_nothing_is_leased_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.leases.CLOSE_S", 0.05)
    made = Made()
    await made.read()
    made.store.gate.clear()
    async with asyncio.timeout(20):
        await made.leases.close()
    with pytest.raises(SecretUnavailable):
        await made.read()
    assert len(made.store.made) == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 20.0, 45.0, 70.0])),
        st.tuples(st.sampled_from(["read", "hold", "release", "reject", "refresh", "revoked", "login"]), st.just(0.0)),
        st.tuples(st.sampled_from(["up", "down", "deny", "no_renewal"]), st.just(0.0)),
        st.tuples(st.just("latency"), st.sampled_from([0.0, 0.4, 9.0])),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_no_walk_breaks_the_rules(steps: list[tuple[str, float]]) -> None:
    asyncio.run(_walk(iter(steps)))


async def _walk(steps: Iterator[tuple[str, float]]) -> None:
    made, held = Made(), cast("list[SealedSecret]", [])
    store = made.store
    for what, amount in steps:
        match what:
            case "wait":
                await made.pass_time(amount)
            case "read" | "hold" | "refresh" | "reject":
                try:
                    served = await made.read(bypass=what == "refresh")
                    if what == "hold":
                        held.append(made.hold(served))
                    if what == "reject":
                        await made.leases.read_other(REF, served, ttl_s=0)
                except SecretDenied:
                    # Nothing serves after a no, until the store has said yes.
                    assert made.leases.left_s(REF) is None
                except StoreError:
                    pass
            case "release" if held:
                held.pop().release()
            case "revoked" if store.made:
                store.revoked.add(store.made[-1].lease_id)
            case "login":
                store.number += 1
            case "up":
                store.failure, store.no_renewal = None, False
            case "down":
                store.failure = SecretUnavailable("", "sealed")
            case "deny":
                store.failure = SecretDenied("", "no")
            case "no_renewal":
                store.no_renewal = True
            case "latency":
                store.latency_s = amount
            case _:
                pass
        assert store.most <= 1
    store.failure, store.latency_s = None, 0.0
    for one in held:
        one.release()
    # Once all is well again it serves, and at its end nothing is left of it.
    await made.pass_time(5)
    await made.read()
    await made.leases.close()
    # One that was left to run out does so later there than here, by as much as its answer was under way.
    made.clock.now_s += 9.0
    assert store.living() == []
    assert store.most <= 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
