"""A body that is held until it is whole, because a stage has to read it before anything may leave (`addons/bodies.py`).

Functions of a turn; the steps and their order stand in `turn.py`. Such a body leaves with the length it has then, however
it came, and is not sent a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from addons.bodies import HeldBody
from addons.refusal import Code, Refusal
from ostiary.engines.fast import ending
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.heads import expects_continue
from ostiary.engines.fast.turn import Turn

if TYPE_CHECKING:
    from ostiary.engines.fast.link import Link

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def invite(turn: Turn) -> None:
    """Says that the body is wanted, to a caller that waits for that."""
    caller = turn.caller
    if not caller.holds_bytes and expects_continue(turn.request):
        caller.write(CONTINUE)
        caller.flush()


def begin(turn: Turn, body: HeldBody, then: Callable[[Turn], None]) -> None:
    """Reads the body; goes on with `then` once the stages have built what leaves."""
    turn.gathered = body
    turn.request_chunked = False
    if not turn.receiving:
        _whole(turn, then)
        return
    turn.gathered_then = then
    turn.caller.deadline.begin_total(turn.times.total_s)
    turn.caller.deadline.expect(Wait.UPLOAD, turn.times.idle_s)
    invite(turn)
    turn.caller.feed()


def take(turn: Turn, body: HeldBody, payload: bytes, *, ends: bool) -> None:
    """A piece of the body is there."""
    if payload:
        try:
            body.add(payload)
        except Refusal as refusal:
            ending.refuse(turn, refusal)
            return
        turn.caller.backlog()
    if ends:
        turn.receiving = False
        then, turn.gathered_then = turn.gathered_then, None
        if then is None:
            raise Refusal(Code.INTERNAL, "A body ended that nobody waited for.")
        _whole(turn, then)


def _whole(turn: Turn, then: Callable[[Turn], None]) -> None:
    """The body is there: the stages read it, and build what leaves."""
    # A store has deadlines of its own; the time of the whole runs again once an upstream is reached.
    turn.caller.deadline.expect(Wait.NOTHING, 0)
    turn.caller.deadline.begin_total(0)
    turn.caller.hook("request", turn.flow, partial(_built, turn, then))


def _built(turn: Turn, then: Callable[[Turn], None]) -> None:
    if turn.over:
        return
    if turn.known().refused is not None:
        ending.refuse(turn, None)
    else:
        then(turn)


def send(turn: Turn, link: Link, body: bytes | None) -> None:
    """The body leaves behind its head, as the stages have left it; they have seen its end."""
    if body is None:
        raise Refusal(Code.INTERNAL, "A body was held and not handed on.")
    if body:
        link.write(body)
        turn.caller.backlog()
    turn.written = True
    if not turn.known().streaming:
        turn.caller.deadline.expect(Wait.ANSWER, turn.times.first_byte_s)
