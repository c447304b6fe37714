"""The wire of a caller: one write a flush, three ends, and nothing that outlives them."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any, cast

import pytest

from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.downstream import Downstream
from ostiary.engines.fast.phase import CLOSE_S, FOLLOWS, Phase, WrongPhase
from tests.ostiary.engines.fast.wires import Loop, Wire


class Told(Downstream):
    def __init__(self, loop: Loop) -> None:
        super().__init__(cast("Any", loop))
        self.waits: list[Wait] = []

    def passed(self, wait: Wait) -> None:
        self.waits.append(wait)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def one(loop: Loop, wire: Wire) -> Told:
    made = Told(loop)
    made.attach(cast("Any", wire))
    return made


def test_what_is_written_leaves_at_the_flush(one: Told, wire: Wire) -> None:
    one.write(b"head ")
    one.write(b"body")
    assert wire.sent == b""
    one.flush()
    one.flush()
    assert wire.sent == b"head body"


def test_close_lets_what_was_written_leave_and_no_longer_than_that(one: Told, loop: Loop, wire: Wire) -> None:
    """An answer that ends its connection, and a caller that does not read it."""
    one.write(b"answer")
    one.deadline.expect(Wait.BODY, 60)
    one.close()
    assert (wire.sent, wire.done, one.phase) == (b"answer", ["close"], Phase.CLOSED)
    (timer,) = loop.live()
    assert timer.after_s == CLOSE_S
    one.close()  # again: nothing
    assert (wire.done, loop.live()) == (["close"], [timer])
    timer.call()
    assert wire.done == ["close", "abort"]


def test_the_timer_of_a_close_ends_with_the_connection(one: Told, loop: Loop) -> None:
    one.close()
    one.part()
    assert loop.live() == []


@pytest.mark.parametrize(("how", "sent"), [("drop", b""), ("hang_up", b"")])
def test_the_hard_ends(one: Told, loop: Loop, wire: Wire, how: str, sent: bytes) -> None:
    one.deadline.expect(Wait.BODY, 60)
    one.write(b"more")
    getattr(one, how)()
    assert (wire.sent, wire.done, one.phase, loop.live()) == (sent, ["abort"], Phase.CLOSED, [])
    one.flush()
    assert wire.sent == sent, "a closed wire takes no more"


def test_the_socket_is_paused_not_its_tls(one: Told, wire: Wire) -> None:
    tls = Wire()
    one.transport = cast("Any", tls)
    one.pause_reading()
    assert (one.paused, wire.done, tls.done) == (True, ["pause"], [])
    one.resume_reading()
    assert (one.paused, wire.done, tls.done) == (False, ["pause", "resume"], [])
    one.pause_reading()
    one.close()  # the end that the caller's TLS says is still to be read
    assert (wire.done, tls.done) == (["pause", "resume", "pause", "resume"], ["close"])


def test_once_lost_nothing_holds_it(loop: Loop) -> None:
    gc.disable()
    try:
        one, wire = Told(loop), Wire()
        one.attach(cast("Any", wire))
        one.deadline.expect(Wait.BODY, 60)
        one.write(b"answer")
        one.close()
        one.part()
        gone, gone_wire = weakref.ref(one), weakref.ref(wire)
        loop.timers.clear()  # as a loop forgets what was cancelled
        del one, wire
        assert gone() is None
        assert gone_wire() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("now", "then"), list(itertools.product(Phase, Phase)))
def test_phases_follow_the_table(loop: Loop, now: Phase, then: Phase) -> None:
    one = Told(loop)
    one.phase = now
    if then in FOLLOWS[now]:
        one.enter(then)
        assert one.phase is then
    else:
        with pytest.raises(WrongPhase):
            one.enter(then)
        assert one.phase is now


def test_every_phase_may_end_and_the_end_is_the_end() -> None:
    assert set(FOLLOWS) == set(Phase)
    assert all(Phase.CLOSED in following for following in FOLLOWS.values())
    assert FOLLOWS[Phase.CLOSED] == {Phase.CLOSED}
