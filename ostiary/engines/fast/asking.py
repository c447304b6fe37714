"""The way of a request to its upstream: judged, a connection reached, head sent, body passed on, sent again at most once.

Functions of a turn; the steps and their order stand in `turn.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from addons.bodies import HeldBody
from addons.credentials import Openings
from addons.head import HeadersToSend
from addons.refusal import Code, Refusal
from ostiary.engines.fast import ending, gathering
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.failures import FAILURES, cancelled
from ostiary.engines.fast.flows import pieces
from ostiary.engines.fast.heads import request_head
from ostiary.engines.fast.turn import Turn
from ostiary.engines.framing import Malformed, chunk, last_chunk
from ostiary.engines.needs import request_trailers, times_of

if TYPE_CHECKING:
    from ostiary.engines.fast.link import Link
    from ostiary.engines.mitm.dialling import Bound

_REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})


def begin(turn: Turn) -> None:
    """Asks the stages."""
    turn.caller.hook("requestheaders", turn.flow, partial(_judged, turn))


def _judged(turn: Turn) -> None:
    if turn.over:
        return
    caller = turn.caller
    engine = caller.engine
    exchange = turn.exchange = engine.registry.find(turn.flow)
    if exchange is None:
        # The very first stage failed: there is nothing to record on, and nothing may pass.
        ending.end(turn)
        caller.close()
        return
    if exchange.refused is not None:
        ending.answer(turn, exchange.refused)
        return
    turn.times = times_of(exchange, engine.parts.deadlines)
    body = exchange.find(HeldBody)
    if body is not None:
        gathering.begin(turn, body, _go)
    else:
        _go(turn)


def _go(turn: Turn) -> None:
    """To an upstream: a pooled connection, or a new one."""
    engine, exchange = turn.caller.engine, turn.exchange or turn.known()
    bound = engine.bounds.of(exchange, turn.times)
    link = engine.pool.take(bound.pool_key) if not exchange.upgrade else None
    if link is not None:
        _send(turn, link)
    else:
        turn.dialling = turn.caller.loop.create_task(_reach(turn, bound, _send))


async def _reach(turn: Turn, bound: Bound, then: Callable[[Turn, Link], None]) -> None:
    """Dials, then goes on with the connection."""
    try:
        link = await turn.caller.engine.dial(bound)
    except FAILURES as error:  # whatever a dial meets, the request that waits for it must be told
        if cancelled():
            return  # the caller has gone; that is recorded
        turn.dialling = None
        ending.refuse(turn, error)
        turn.caller.flush()
        return
    turn.dialling = None
    if turn.over:
        link.close()
        return
    turn.caller.guarded(partial(then, turn, link))


def _send(turn: Turn, link: Link) -> None:
    (head, body), caller = _head(turn, link), turn.caller
    if link.served and not turn.receiving and not body and turn.request.data.method in _REPEATABLE:
        turn.again = head
    if turn.times.total_s:
        caller.deadline.begin_total(turn.times.total_s)
    _put(turn, link, head)
    if turn.gathered is not None:
        gathering.send(turn, link, body)
        return
    if not turn.receiving:
        _ended(turn)
        return
    if turn.known().find(Openings) is not None:
        turn.held = caller.engine.held.begin()
    caller.deadline.expect(Wait.BODY, turn.times.idle_s)
    gathering.invite(turn)
    caller.feed()


def _head(turn: Turn, link: Link) -> tuple[bytes, bytes | None]:
    """The head that the stages have built, taken off the exchange, and the body where it was gathered."""
    exchange = turn.exchange or turn.known()
    ready = exchange.forget(HeadersToSend)
    if ready is None or exchange.refused is not None or exchange.settled:
        link.close()
        raise Refusal(Code.INTERNAL, "A request reached the wire without its head being built.")
    exchange.dialled_s = turn.caller.engine.parts.clock.monotonic_s()
    return request_head(exchange.head.method, ready), ready.body


def _pass(turn: Turn, link: Link, data: bytes) -> None:
    """A part of the body leaves."""
    if turn.held is not None:
        turn.held.add(data)
    link.write(data)


def _put(turn: Turn, link: Link, head: bytes) -> None:
    turn.link = link
    turn.flow.server_conn = link.server
    link.begin(turn, head)
    turn.sent = True


def receive(turn: Turn, data: bytes) -> bytes:
    """Passes on what belongs to the request's body; gives back what is behind it."""
    link, reader, body = turn.link, turn.reader, turn.gathered
    if reader is None or (link is None and body is None):
        return data
    try:
        payload, rest = reader.read(data)
    except Malformed:
        ending.refuse(turn, Refusal(Code.BAD_REQUEST, "The body's framing is malformed.", close=True))
        return b""
    turn.caller.deadline.touch()
    if body is not None:
        gathering.take(turn, body, payload, ends=rest is not None)
        return rest or b""
    if link is None:
        return data
    try:
        if payload:
            _upload(turn, link, payload)
        if rest is None:
            return b""
        _upload(turn, link, b"")
    except Refusal as refusal:
        # It cannot be signed as it passes: the upstream can tell the part it has from the whole.
        ending.refuse(turn, refusal)
        return b""
    turn.receiving = False
    _ended(turn)
    return rest


def _upload(turn: Turn, link: Link, payload: bytes) -> None:
    """What the stages make of a piece of the body leaves."""
    for piece in pieces(turn.request.stream, payload):
        _pass(turn, link, chunk(piece) if turn.request_chunked else piece)


def _ended(turn: Turn) -> None:
    turn.caller.hook("request", turn.flow, partial(_passed, turn))


def _passed(turn: Turn) -> None:
    exchange = turn.exchange or turn.known()
    if turn.over:
        return
    if exchange.refused is not None:
        ending.refuse(turn, None)
        return
    if turn.request_chunked and turn.link is not None:
        _pass(turn, turn.link, last_chunk(request_trailers(exchange, turn.reader.trailers if turn.reader else ())))
    turn.written = True
    if turn.answer_passed_on:
        ending.finish(turn)
    elif not exchange.streaming:
        turn.caller.deadline.expect(Wait.ANSWER, turn.times.first_byte_s)


def repeat(turn: Turn, stale: Link, head: bytes) -> None:
    """Sends the request once more, on a new connection: the pooled one had been closed by its upstream."""
    turn.sent = False
    turn.known().retries += 1

    def again(turn: Turn, link: Link) -> None:
        _put(turn, link, head)
        turn.caller.deadline.expect(Wait.ANSWER, turn.times.first_byte_s)

    turn.dialling = turn.caller.loop.create_task(_reach(turn, stale.bound, again))


def send_again(turn: Turn) -> None:
    """Sends the request once more, on a connection that is not the one whose answer is given up: the stages have built
    another head.
    """
    exchange, rejected = turn.known(), turn.link
    turn.link, turn.sent = None, False
    if rejected is not None:
        # With what has come of its answer: nothing of it can reach this request any more.
        rejected.close()

    def again(turn: Turn, link: Link) -> None:
        _put(turn, link, _head(turn, link)[0])
        if turn.held is not None:
            link.write(turn.held.take())
            turn.held = None
            turn.caller.backlog()
        turn.caller.deadline.expect(Wait.ANSWER, turn.times.first_byte_s)

    engine = turn.caller.engine
    turn.dialling = turn.caller.loop.create_task(_reach(turn, engine.bounds.of(exchange, turn.times), again))
