"""How a turn ends: both bodies passed, our own answer, a cut, or the caller gone.

Functions of a turn; the steps and their order stand in `turn.py`. Each but `crashed` and `expired`, which go on to
`refuse`, leaves the turn `over`, its link given back or closed, and the caller told what to do next.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mitmproxy import flow as mitm_flow

from addons.boundary import place_of
from addons.refusal import Answer, Code, Refusal
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.heads import own_answer
from ostiary.engines.fast.turn import Turn

if TYPE_CHECKING:
    from ostiary.engines.fast.link import Link

_log = logging.getLogger("ostiary.engine")


def end(turn: Turn) -> None:
    """The turn takes no further step, and holds no connection."""
    turn.over = True
    turn.again = None
    if turn.held is not None:
        turn.let_go()
    turn.flow.live = False
    if turn.dialling is not None:
        turn.dialling.cancel()
        turn.dialling = None
    if turn.link is not None:
        turn.link.close()
        turn.link = None


def finish(turn: Turn) -> None:
    """Request and answer have passed, or the answer alone: then the caller need not send the rest."""
    link, caller = turn.link, turn.caller
    received = not turn.receiving
    if link is not None:
        if received and link.release():
            caller.engine.pool.give(link, caller.loop.time())
        else:
            link.close()
        turn.link = None
    end(turn)
    if received:
        caller.next(keep=turn.keep)
    else:
        caller.linger()


def switch(turn: Turn, link: Link) -> None:
    """A WebSocket has been agreed on."""
    exchange = turn.known()
    if turn.over:
        return
    if exchange.refused is not None:
        refuse(turn, None)
        return
    turn.link = None
    end(turn)
    turn.caller.join(link, exchange, turn.times, frames=True)
    if link.waiting:
        link.go_on()


def answer(turn: Turn, given: Answer) -> None:
    """Gives our own answer now, whatever the caller has still to send and the upstream to say."""
    caller = turn.caller
    pending = turn.receiving
    closes = any(name == "Connection" for name, _ in given.headers)
    keep = turn.keep and not pending and not closes
    end(turn)
    to_head = turn.request.data.method == b"HEAD"
    caller.write(own_answer(given, close=not keep and not closes, body=not to_head))
    if pending:
        caller.linger()
    else:
        caller.next(keep=keep)


def refuse(turn: Turn, error: BaseException | None) -> None:
    """Ends a turn by a refusal: an answer where none has begun, else a cut.

    Args:
        turn: to be ended; one that is over stays as it is.
        error: the reason; None where the exchange has been refused already.
    """
    if turn.over:
        return
    exchange, caller = turn.exchange, turn.caller
    if exchange is None:
        if error is not None:
            _log.error("a request was cut before it was begun: %s", type(error).__name__)
        end(turn)
        caller.close()
        return
    if error is not None:
        caller.engine.parts.boundary.refuse(exchange, error)
    if exchange.streaming or exchange.refused is None:
        cut(turn)
    else:
        answer(turn, exchange.refused)


def cut(turn: Turn) -> None:
    """Ends an exchange whose answer has begun: no second answer can be given."""
    _tell(turn, "cut")
    end(turn)
    turn.caller.cut(framed=turn.framed)


def expired(turn: Turn, wait: Wait) -> None:
    """A deadline has passed."""
    if wait is Wait.UPLOAD or (turn.gathered is not None and turn.receiving):
        refuse(turn, Refusal(Code.REQUEST_TIMEOUT, "The body did not arrive in time.", close=True))
        return
    what = {Wait.ANSWER: "did not begin to answer", Wait.TOTAL: "did not finish"}.get(wait, "fell silent")
    refuse(turn, Refusal(Code.UPSTREAM_TIMEOUT, f"The upstream {what} in time."))


def crashed(turn: Turn, error: BaseException) -> None:
    """Something failed that should not: the request is refused or cut."""
    if not turn.over:
        _log.error("a request failed: %s at %s", type(error).__name__, place_of(error))
        refuse(turn, error)


def caller_gone(turn: Turn) -> None:
    """The caller's connection has ended."""
    if turn.over:
        return
    exchange = turn.exchange or turn.caller.engine.registry.find(turn.flow)
    if exchange is not None:
        turn.caller.engine.parts.boundary.settle(exchange, "client_gone")
    _tell(turn, "the caller has gone")
    end(turn)


def _tell(turn: Turn, text: str) -> None:
    turn.flow.error = mitm_flow.Error(text)
    turn.caller.hook("error", turn.flow, _nothing)


def _nothing() -> None:
    """Nothing follows."""
