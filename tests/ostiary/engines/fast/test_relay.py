"""Bytes that pass unread: counted, each side's end passed on, and a bound for what is left to be written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons.parts import Deadlines
from addons.refusal import Code, Refusal
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.relay import LAST_BYTES_S, Relay
from tests.ostiary.engines.fast.wires import Loop, Wire


class Link:
    def __init__(self) -> None:
        self.transport = Wire()
        self.relay: Any = None
        self.turn: Any = object()
        self.done: list[str] = []

    @property
    def usable(self) -> bool:
        return not self.transport.closing

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def resume_reading(self) -> None:
        self.done.append("resume")


class Caller:
    def __init__(self) -> None:
        self.loop = Loop()
        self.transport = Wire()
        self.ends: list[tuple[str, Any]] = []
        self.waits: list[tuple[Wait, float]] = []
        self.total_s: float | None = None
        self.closed = 0
        boundary = SimpleNamespace(settle=self._settle, refuse=lambda _one, error: self.ends.append(("refused", error)))
        self.engine = SimpleNamespace(parts=SimpleNamespace(boundary=boundary))
        self.deadline = SimpleNamespace(expect=self._expect, touch=lambda: None, begin_total=self._total)

    def _settle(self, _one: object, outcome: str, *, code: Code | None = None) -> None:
        self.ends.append((outcome, code))

    def _expect(self, wait: Wait, limit_s: float) -> None:
        self.waits.append((wait, limit_s))

    def _total(self, total_s: float) -> None:
        self.total_s = total_s

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


TIMES = Deadlines(idle_s=7.0, total_s=9.0)


def made(*, frames: bool) -> tuple[Relay, Caller, Link, Any]:
    caller, link = Caller(), Link()
    exchange = SimpleNamespace(bytes_in=0, bytes_out=0, payload=None, redactions=0, find=lambda _: None)
    relay = Relay(cast("Any", caller), cast("Any", link), cast("Any", exchange), TIMES, frames=frames)
    return relay, caller, link, exchange


@pytest.mark.parametrize("frames", [True, False])
def test_bytes_pass_and_are_counted(frames: bool) -> None:
    relay, caller, link, exchange = made(frames=frames)
    assert (link.relay, link.turn) == (relay, None)
    relay.from_caller(b"abc")
    relay.from_upstream(b"defgh")
    assert (link.transport.sent, caller.transport.sent) == (b"abc", b"defgh")
    assert (exchange.bytes_in, exchange.bytes_out) == (3, 5)
    assert caller.waits == [(Wait.BODY, 7.0)]
    assert caller.total_s == (None if frames else 9.0), "a WebSocket may last"


def test_what_is_left_to_write_may_take_so_long() -> None:
    """A peer that never reads would keep the connection for ever."""
    relay, caller, link, _ = made(frames=True)
    link.transport.waiting_bytes = 10
    assert relay.caller_ended() is False
    assert (link.transport.done, link.done, link.relay, caller.closed) == (["close"], ["resume"], None, 1)
    (timer,) = caller.loop.live()
    assert timer.after_s == LAST_BYTES_S
    timer.call()
    assert link.transport.done == ["close", "abort"]


def test_nothing_is_left_to_write() -> None:
    relay, caller, link, _ = made(frames=True)
    assert relay.upstream_ended() is False
    assert (link.transport.done, caller.loop.timers, caller.closed) == (["close"], [], 1)
    assert caller.ends == [("ok", None)]


def test_the_sides_of_a_tunnel_end_each_by_itself() -> None:
    relay, caller, link, _ = made(frames=False)
    assert relay.caller_ended() is True
    assert (link.transport.done, caller.closed) == (["eof"], 0)
    relay.from_upstream(b"still")
    assert caller.transport.sent == b"still"
    assert relay.upstream_ended() is False
    assert (link.transport.done, caller.closed, caller.ends) == (["eof", "close"], 1, [("ok", None)])


def test_a_side_that_cannot_be_half_closed_ends_both() -> None:
    relay, caller, link, _ = made(frames=False)
    link.transport.writable_end = False
    assert relay.caller_ended() is False
    assert (link.transport.done, caller.closed) == (["close"], 1)


@pytest.mark.parametrize(
    ("frames", "from_caller", "ended", "outcome"),
    [
        (False, True, False, "client_gone"),
        (False, True, True, "ok"),
        (False, False, False, "ok"),
        (True, True, False, "ok"),
        (True, False, False, "ok"),
    ],
)
def test_a_connection_that_is_lost(frames: bool, from_caller: bool, ended: bool, outcome: str) -> None:
    relay, caller, _, _ = made(frames=frames)
    if ended:
        relay.caller_ended()
    relay.lost(from_caller=from_caller)
    assert caller.ends[0] == (outcome, None)
    assert caller.closed == 1


def test_silence() -> None:
    relay, caller, _, _ = made(frames=False)
    relay.expired()
    assert caller.ends[0] == ("truncated", Code.UPSTREAM_TIMEOUT)
    relay, caller, _, _ = made(frames=True)
    relay.expired()
    how, error = caller.ends[0]
    assert how == "refused"
    assert isinstance(error, Refusal)
    assert error.code is Code.UPSTREAM_TIMEOUT
    assert caller.closed == 1
