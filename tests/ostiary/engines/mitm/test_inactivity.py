"""A connection is closed when it was silent for longer than anything on it may be, and not before."""

from __future__ import annotations

import asyncio
import time

import pytest

from addons.parts import Deadlines
from ostiary.engines.mitm.inactivity import InactivityWatch
from ostiary.engines.needs import ENDLESS_S, SLACK_S, longest_silence_s


class Watched:
    """A watch over a silence that may be as long as `allowed_s` says."""

    def __init__(self, allowed_s: float) -> None:
        self.allowed_s = allowed_s
        self.asked = 0
        self.cut = asyncio.Event()
        self.watch = InactivityWatch(self._allowed, self._silent)

    def _allowed(self) -> float:
        self.asked += 1
        return self.allowed_s

    async def _silent(self) -> None:
        self.cut.set()


async def test_silence_ends_it() -> None:
    one = Watched(0.05)
    await asyncio.wait_for(one.watch.watch(), 10)
    assert one.cut.is_set()


async def test_a_request_that_came_meanwhile_may_be_silent_for_longer() -> None:
    one = Watched(0.05)
    task = asyncio.create_task(one.watch.watch())
    await asyncio.sleep(0)
    one.allowed_s = 3600.0
    while one.asked < 2:  # it woke up, found more allowed, and sleeps on
        await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not one.cut.is_set()


async def test_it_goes_on_watching_after_such_a_request() -> None:
    one = Watched(0.0)
    one.allowed_s = 0.05
    task = asyncio.create_task(one.watch.watch())
    for _ in range(3):
        one.watch.register_activity()
        await asyncio.sleep(0.01)
        assert not task.done()
    await asyncio.wait_for(task, 10)
    assert one.cut.is_set()


async def test_a_step_of_the_wall_clock_closes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Watched(3600.0)
    task = asyncio.create_task(one.watch.watch())
    await asyncio.sleep(0)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    one.watch.register_activity()
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()


async def test_a_hook_that_runs_holds_it_up() -> None:
    one = Watched(0.05)
    with one.watch.disarm():
        task = asyncio.create_task(one.watch.watch())
        await asyncio.sleep(0.2)
        assert not one.cut.is_set()
    await asyncio.wait_for(task, 10)
    assert one.cut.is_set()


def test_how_long_silence_may_be() -> None:
    assert longest_silence_s(Deadlines(first_byte_s=90.0, idle_s=1.0)) == 90.0 + SLACK_S
    assert longest_silence_s(Deadlines(first_byte_s=1.0, idle_s=90.0)) == 90.0 + SLACK_S
    for endless in (Deadlines(first_byte_s=0.0), Deadlines(idle_s=0.0)):
        assert longest_silence_s(endless) == ENDLESS_S
