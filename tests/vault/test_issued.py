"""Certificates that are issued: one flight, renewal ahead, outages to their own end, and no word after a no."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from vault.control import Control
from vault.issued import Issuance, Issued, IssuedRef
from vault.observer import Silent
from vault.secret import Secret
from vault.store import SecretDenied, SecretMissing, SecretRef, SecretUnavailable, SecretVersion, StoreError

REF = IssuedRef("sign/egress", mount="pki", common_name="billing")
LIFE_S = 900.0


class Store:
    """Issues certificates that live for 15 minutes, or fails as it is told."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def issue(self, ref: IssuedRef) -> Issued:
        self.calls += 1
        number = self.calls
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        ends_s = self.clock.now_s + LIFE_S
        control = Control(expires_at_s=ends_s, renewed=True)
        return Issued(SecretVersion({"private_key": Secret("k")}, str(number), None, control), self.clock.now_s, ends_s)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Observer(Silent):
    def __init__(self) -> None:
        self.changed: list[tuple[str, str, str]] = []
        self.told: list[Control] = []
        self.read: list[str] = []

    def secret_changed(self, name: str, before: str, version: str) -> None:
        self.changed.append((name, before, version))

    def secret_told(self, name: str, control: Control) -> None:
        self.told.append(control)

    def secret_read(self, store: str, result: str) -> None:
        self.read.append(result)


class Made:
    def __init__(self) -> None:
        self.clock, self.observer = Clock(), Observer()
        self.store = Store(self.clock)
        self.issuance = Issuance(
            cast("Any", None), self.store, self.clock, self.clock, self.observer, jitter=lambda: 0.0
        )

    async def read(self, *, bypass: bool = False) -> tuple[str, str]:
        found = await self.issuance.read(REF, ttl_s=0, max_stale_s=0, bypass=bypass)
        return found.version, found.cache

    async def settled(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_many_wait_for_one_and_renewal_is_behind_their_back() -> None:
    made = Made()
    made.store.gate.clear()
    waiting = [asyncio.create_task(made.read()) for _ in range(20)]
    await made.settled()
    waiting[0].cancel()  # a caller that goes away does not end it for the others
    await made.settled()
    made.store.gate.set()
    assert {await one for one in waiting[1:]} == {("1", "miss")}
    assert made.store.calls == 1
    made.clock.now_s += LIFE_S * 2 / 3 - 1
    assert await made.read() == ("1", "hit")
    assert made.store.calls == 1
    made.clock.now_s += 2
    made.store.gate.clear()
    # Make before break: the old one serves while the new one is made.
    assert [await made.read() for _ in range(3)] == [("1", "hit")] * 3
    made.store.gate.set()
    await made.settled()
    assert await made.read() == ("2", "hit")
    assert made.store.calls == 2
    assert made.observer.changed == [("pki/sign/egress#billing", "1", "2")]
    known = made.issuance.known(REF)
    assert known is not None
    assert (known.version, known.before, known.control.expires_at_s) == ("2", "1", made.clock.now_s + LIFE_S)


async def test_an_outage_serves_to_the_end_and_not_beyond() -> None:
    made = Made()
    await made.read()
    made.store.failure = SecretUnavailable(REF.name, "down")
    made.clock.now_s += LIFE_S * 2 / 3 + 1
    assert await made.read() == ("1", "hit")
    await made.settled()
    assert await made.read() == ("1", "stale")
    # Announced from now on, as any key is that nobody renews.
    assert [control.renewed for control in made.observer.told] == [True, False]
    calls = made.store.calls
    for _ in range(50):
        await made.read()
        await made.settled()
    assert made.store.calls == calls
    made.clock.now_s = 1000.0 + LIFE_S - 2
    assert await made.read() == ("1", "stale")
    await made.settled()
    made.clock.now_s += 1.5
    with pytest.raises(SecretUnavailable) as error:
        await made.read()
    assert error.value.retry_after_s > 0
    made.store.failure = None
    made.clock.now_s += 400
    assert (await made.read())[0] == str(made.store.calls)
    assert made.observer.told[-1].renewed


@pytest.mark.parametrize("no", [SecretDenied(REF.name, "no"), SecretMissing(REF.name, "no")])
async def test_after_a_no_nothing_serves(no: StoreError) -> None:
    made = Made()
    await made.read()
    made.store.failure = no
    made.clock.now_s += LIFE_S * 2 / 3 + 1
    await made.read()
    await made.settled()
    calls = made.store.calls
    for _ in range(10):
        with pytest.raises(type(no)) as error:
            await made.read()
        assert error.value is not no
    assert made.store.calls == calls
    made.store.failure = None
    made.clock.now_s += 2.5
    assert (await made.read())[1] == "miss"


async def test_a_refresh_issues_another_and_tells_its_failure() -> None:
    made = Made()
    await made.read()
    assert await made.read(bypass=True) == ("2", "bypass")
    made.store.failure = SecretUnavailable(REF.name, "down")
    with pytest.raises(SecretUnavailable):
        await made.read(bypass=True)
    assert await made.read() == ("2", "stale")
    made.store.failure = RuntimeError("a canary that no error may repeat")
    with pytest.raises(SecretUnavailable, match=r"the store failed \(RuntimeError\)"):
        await made.read(bypass=True)
    assert made.observer.read[-1] == "unavailable"


async def test_what_has_ended_already_is_not_taken() -> None:
    made = Made()
    real, made.issuance._wall_s = made.clock, lambda: made.clock.now_s + LIFE_S
    with pytest.raises(StoreError, match="are the clocks right"):
        await made.read()
    assert real.now_s == 1000.0


async def test_a_store_that_issues_nothing_and_secrets_behind() -> None:
    class Behind:
        async def read(self, ref: SecretRef, **_: Any) -> str:
            return f"read {ref}"

        def read_now(self, ref: SecretRef, **_: Any) -> str:
            return f"now {ref}"

    clock = Clock()
    issuance = Issuance(cast("Any", Behind()), object(), clock, clock)
    with pytest.raises(SecretMissing, match="needs Vault"):
        await issuance.read(REF, ttl_s=0, max_stale_s=0)
    plain = SecretRef("secret/a")
    assert await issuance.read(plain, ttl_s=1, max_stale_s=1) == cast("Any", "read secret/a")
    assert issuance.read_now(plain, ttl_s=1) == cast("Any", "now secret/a")
    other = IssuedRef("sign/egress", mount="pki", common_name="reports")
    assert other != REF
    assert len({other, REF, IssuedRef("sign/egress", mount="pki", common_name="billing")}) == 2
