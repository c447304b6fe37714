"""One timer for all the deadlines of a connection, on a clock of ours."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, cast

import pytest

from ostiary.engines.fast.deadline import Deadline, Wait


class Handle:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self._when, self._call, self._cancelled = when, call, False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def fire(self) -> None:
        self._call()


class Loop:
    """A clock that moves when told, and the timers on it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.made = 0
        self._timers: list[tuple[float, int, Handle]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Handle:
        self.made += 1
        handle = Handle(when, call)
        heapq.heappush(self._timers, (when, self.made, handle))
        return handle

    def live(self) -> int:
        return sum(not handle.cancelled() for _, _, handle in self._timers)

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            when, _, handle = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            if not handle.cancelled():
                handle.fire()
        self.now = until


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def passed() -> list[Wait]:
    return []


@pytest.fixture
def deadline(loop: Loop, passed: list[Wait]) -> Deadline:
    return Deadline(cast("Any", loop), passed.append)


@pytest.mark.parametrize("wait", [Wait.REQUEST, Wait.HEAD, Wait.BODY, Wait.ANSWER, Wait.LINGER])
def test_it_passes_once_and_then_is_off(loop: Loop, deadline: Deadline, passed: list[Wait], wait: Wait) -> None:
    deadline.expect(wait, 10)
    loop.advance(9.9)
    assert not passed
    loop.advance(0.2)
    assert passed == [wait]
    assert deadline.waits_for is Wait.NOTHING
    loop.advance(1000)
    assert passed == [wait]
    assert loop.live() == 0


def test_zero_means_for_ever(loop: Loop, deadline: Deadline, passed: list[Wait]) -> None:
    deadline.expect(Wait.ANSWER, 0)
    deadline.begin_total(0)
    loop.advance(1e6)
    assert not passed
    assert loop.made == 0


def test_bytes_of_a_body_count_and_bytes_elsewhere_do_not(loop: Loop, deadline: Deadline, passed: list[Wait]) -> None:
    deadline.expect(Wait.BODY, 10)
    for _ in range(20):
        loop.advance(9)
        deadline.touch()
    assert not passed
    loop.advance(10.1)
    assert passed == [Wait.BODY]
    for wait in (Wait.HEAD, Wait.ANSWER, Wait.REQUEST, Wait.LINGER):
        passed.clear()
        deadline.expect(wait, 10)
        loop.advance(9)
        deadline.touch()
        loop.advance(1.1)
        assert passed == [wait]


def test_a_shorter_wait_comes_first_and_a_longer_one_is_not_cut_short(
    loop: Loop, deadline: Deadline, passed: list[Wait]
) -> None:
    deadline.expect(Wait.REQUEST, 300)
    loop.advance(1)
    deadline.expect(Wait.HEAD, 10)
    loop.advance(5)
    deadline.expect(Wait.ANSWER, 100)
    loop.advance(99)
    assert not passed
    loop.advance(1.1)
    assert passed == [Wait.ANSWER]


def test_the_total_runs_beside_and_is_not_moved_by_bytes(loop: Loop, deadline: Deadline, passed: list[Wait]) -> None:
    deadline.begin_total(30)
    deadline.expect(Wait.BODY, 10)
    for _ in range(5):
        loop.advance(5)
        deadline.touch()
    assert not passed
    loop.advance(4)
    deadline.touch()
    loop.advance(1.1)
    assert passed == [Wait.TOTAL]
    loop.advance(1000)
    assert passed == [Wait.TOTAL]


def test_the_total_ends_with_its_request(loop: Loop, deadline: Deadline, passed: list[Wait]) -> None:
    deadline.begin_total(30)
    deadline.expect(Wait.ANSWER, 100)
    loop.advance(20)
    deadline.begin_total(0)
    deadline.expect(Wait.REQUEST, 300)
    loop.advance(200)
    assert not passed
    loop.advance(101)
    assert passed == [Wait.REQUEST]


def test_nothing_is_waited_for_but_the_total_still_counts(loop: Loop, deadline: Deadline, passed: list[Wait]) -> None:
    deadline.begin_total(30)
    deadline.expect(Wait.NOTHING, 0)
    loop.advance(31)
    assert passed == [Wait.TOTAL]


def test_stop_ends_it(loop: Loop, deadline: Deadline, passed: list[Wait]) -> None:
    deadline.begin_total(5)
    deadline.expect(Wait.BODY, 5)
    deadline.stop()
    assert loop.live() == 0
    loop.advance(100)
    assert not passed
    deadline.expect(Wait.REQUEST, 5)
    loop.advance(6)
    assert passed == [Wait.REQUEST]


def test_what_is_told_may_set_the_next_one(loop: Loop) -> None:
    passed: list[Wait] = []

    def on(wait: Wait) -> None:
        passed.append(wait)
        if wait is Wait.BODY:
            watched.expect(Wait.LINGER, 2)

    watched = Deadline(cast("Any", loop), on)
    watched.expect(Wait.BODY, 5)
    loop.advance(8)
    assert passed == [Wait.BODY, Wait.LINGER]


def test_a_thousand_requests_cost_a_handful_of_timers(loop: Loop, deadline: Deadline) -> None:
    deadline.expect(Wait.REQUEST, 330)
    for _ in range(1000):
        deadline.expect(Wait.HEAD, 10)
        deadline.expect(Wait.NOTHING, 0)
        deadline.expect(Wait.ANSWER, 300)
        deadline.expect(Wait.BODY, 300)
        deadline.touch()
        deadline.expect(Wait.REQUEST, 330)
        loop.advance(0.01)
    assert loop.made < 10
    assert loop.live() <= 1
