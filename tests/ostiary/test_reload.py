"""One code path for every reload: one at a time, all or nothing, ended whatever becomes of whoever asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from addons.parts import Parts, PolicyInForce
from ostiary.admin import Rejected, Reloaded
from ostiary.reload import Reloader
from policies import load_sources
from policies.faults import Place
from policies.sources import Source

POLICY = "workloads: {w: {proofs: {any: true}}}\nroutes: {r: {match: {host: HOST.test}, allow: w}}\n"


class Told:
    """Stands for the audit and the metrics."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.counted: list[str] = []
        self.reopened = 0

    def note(self, event: str, fields: dict[str, Any]) -> None:
        self.notes.append((event, fields))

    async def reopen(self) -> None:
        self.reopened += 1

    def policy_loaded(self, version: str) -> None:
        self.counted.append(version)

    def policy_reload(self, result: str) -> None:
        self.counted.append(result)


class Case:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "policy.yaml"
        self.write("a")
        self.told = Told()
        sources = (Source("*.yaml", folder, Place("ostiary.yaml", 6, 11)),)
        self.in_force = PolicyInForce(load_sources(sources))
        parts: Any = type("P", (), {"audit": self.told, "metrics": self.told, "in_force": self.in_force})()
        self.reloader = Reloader(sources, {}, cast("Parts", parts))

    def write(self, host: str) -> None:
        self.file.write_text(POLICY.replace("HOST", host))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


async def test_a_change(case: Case) -> None:
    before = case.in_force.policy
    case.write("b")
    found = await case.reloader.reload("ci")
    after = case.in_force.policy
    assert found == Reloaded(after.version, 1, changed=True)
    assert after is not before
    assert case.told.notes == [("policy.loaded", {"version": after.version, "by": "ci"})]
    assert case.told.counted == [after.version, "ok"]
    assert case.told.reopened == 1
    assert await case.reloader.reload("ci") == Reloaded(after.version, 1, changed=False)


async def test_p1_faults_change_nothing(case: Case) -> None:
    before = case.in_force.policy
    case.file.write_text("routes: {r: {match: {host: a.test}, alow: w}}\nworkload: {}\n")
    found = await case.reloader.reload("ci")
    assert isinstance(found, Rejected)
    assert found.version == before.version
    assert len(found.faults) > 1
    assert all(":1:" in str(fault) or ":2:" in str(fault) for fault in found.faults)
    assert case.in_force.policy is before
    ((event, fields),) = case.told.notes
    assert event == "policy.rejected"
    assert fields == {"version": before.version, "reason": str(found.faults[0]), "by": "ci"}
    assert case.told.counted == ["rejected"]


@pytest.mark.parametrize("what", ["gone", "unreadable", "crash"])
async def test_p1_whatever_else_is_wrong_changes_nothing(
    case: Case, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = case.in_force.policy
    if what == "gone":
        case.file.unlink()
    elif what == "unreadable":
        case.file.write_bytes(b"\xff\xfe\x00")
    else:
        monkeypatch.setattr("ostiary.reload.load_sources", lambda *_, **__: 1 // 0)
    assert isinstance(await case.reloader.reload("ci"), Rejected)
    assert case.in_force.policy is before
    assert [event for event, _ in case.told.notes] == ["policy.rejected"]
    # And the next one works.
    monkeypatch.undo()
    case.write("b")
    assert isinstance(await case.reloader.reload("ci"), Reloaded)


def slowly(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[], int], threading.Event]:
    """Makes loading wait; tells how many loads were under way together at most."""
    go, lock = threading.Event(), threading.Lock()
    running = most = 0

    def load(*given: Any, **named: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert go.wait(10)
        with lock:
            running -= 1
        return load_sources(*given, **named)

    monkeypatch.setattr("ostiary.reload.load_sources", load)
    return lambda: most, go


async def test_p3_reloads_never_interleave(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    most, go = slowly(monkeypatch)
    asked = [asyncio.ensure_future(case.reloader.reload(f"t{number}")) for number in range(5)]
    case.reloader.signalled()
    await asyncio.sleep(0.05)
    go.set()
    assert all(isinstance(found, Reloaded) for found in await asyncio.gather(*asked))
    async with asyncio.timeout(5):
        while len(case.told.notes) < 6:
            await asyncio.sleep(0.01)
    assert most() == 1
    assert [fields["by"] for _, fields in case.told.notes] == ["SIGHUP", "t0", "t1", "t2", "t3", "t4"]


async def test_whoever_asked_may_go_away(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    _, go = slowly(monkeypatch)
    case.write("b")
    asked = asyncio.ensure_future(case.reloader.reload("ci"))
    await asyncio.sleep(0.05)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    go.set()
    async with asyncio.timeout(5):
        while not case.told.notes:
            await asyncio.sleep(0.01)
    assert case.told.notes[0][1]["by"] == "ci"
    assert case.in_force.policy.version == case.told.notes[0][1]["version"]


async def test_a_flood_of_signals_is_one_more_reload(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    _, go = slowly(monkeypatch)
    case.reloader.signalled()
    await asyncio.sleep(0.05)
    # The first is reading: what was written since may escape it, so one more follows, and only one.
    for _ in range(100):
        case.reloader.signalled()
    go.set()
    await asyncio.sleep(0.3)
    assert [fields["by"] for _, fields in case.told.notes] == ["SIGHUP", "SIGHUP"]
    case.reloader.signalled()
    async with asyncio.timeout(5):
        while len(case.told.notes) < 3:
            await asyncio.sleep(0.01)
