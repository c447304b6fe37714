"""The way of an answer back to its caller: its head judged, its body passed on, and what an upstream does wrong.

Functions of a turn; the steps and their order stand in `turn.py`. A link calls them as it reads.
"""

from __future__ import annotations

from functools import partial

from mitmproxy import http

from addons.head import Challenge, Fields, HeadersToSend
from addons.refusal import Code, Refusal
from addons.stages.scrub import clean_trailers
from addons.trailers import kept_reply_trailers
from ostiary.engines.fast import asking, ending
from ostiary.engines.fast.deadline import Wait
from ostiary.engines.fast.flows import pieces
from ostiary.engines.fast.growing import Growing
from ostiary.engines.fast.heads import answer_head, asks_for_trailers
from ostiary.engines.fast.turn import Turn
from ostiary.engines.framing import chunk, last_chunk
from ostiary.engines.needs import REJECTED, credential_rejected


def handshake_fields(turn: Turn) -> Fields:
    """The caller's fields, against which a 101 is judged."""
    exchange = turn.known()
    return exchange.head.fields if exchange.upgrade else ()


def answered(turn: Turn, response: http.Response, size: int | None, raw: bytes) -> None:
    """The head of the answer is there.

    Args:
        turn: whose answer it is.
        response: parsed.
        size: of its body: None where it is chunked, -1 where it ends with the connection.
        raw: the head as it came, its empty line included.
    """
    turn.again = None
    if response.data.status_code == REJECTED and credential_rejected(turn.known()):
        _rejected(turn, response, size, raw)
    else:
        _accepted(turn, response, size, raw)


def _rejected(turn: Turn, response: http.Response, size: int | None, raw: bytes) -> None:
    """The upstream does not take the credential: the stages may have another."""
    exchange = turn.known()
    exchange.rejected = True
    exchange.put(Challenge(response.data.headers.fields))
    # A body that the stages have built is not built a second time.
    exchange.replayable = turn.written and turn.gathered is None and (turn.held is None or turn.held.whole)
    turn.caller.deadline.expect(Wait.BODY, turn.times.idle_s)

    def looked() -> None:
        if turn.over:
            return
        if exchange.refused is not None:
            ending.refuse(turn, None)
        elif exchange.find(HeadersToSend) is not None:
            asking.send_again(turn)
        else:
            _accepted(turn, response, size, raw)

    turn.caller.hook("rejected", turn.flow, looked)


def _accepted(turn: Turn, response: http.Response, size: int | None, raw: bytes) -> None:
    """This is the answer that the caller gets."""
    if turn.held is not None:
        turn.let_go()
    turn.flow.response = response
    turn.caller.deadline.expect(Wait.BODY, turn.times.idle_s)
    data = response.data
    judged = partial(_judged, turn, size, raw, data, data.headers.fields, data.reason)
    turn.caller.hook("responseheaders", turn.flow, judged)


def _judged(turn: Turn, size: int | None, whole: bytes, came: http.ResponseData, fields: Fields, reason: bytes) -> None:
    """The stages have judged the head.

    Args:
        turn: whose answer it is.
        size: of the body, as for `answered`.
        whole: the head as it came, which is passed on where no stage has changed it.
        came: what it was parsed into; with its `fields` and its `reason` as they were then.
    """
    exchange, link, response = turn.exchange or turn.known(), turn.link, turn.flow.response
    if turn.over or link is None or response is None:
        return
    if exchange.refused is not None:
        ending.refuse(turn, None)
        return
    # Both: a head without fields has the one empty tuple, whatever became of its phrase.
    raw = whole if came.headers.fields is fields and came.reason is reason else None
    if exchange.reframed:
        size = None
        turn.growing = Growing(turn, partial(_gone_through, turn))
    chunked = size is None and turn.request.data.http_version != b"HTTP/1.0"
    turn.answer_chunked = chunked
    turn.framed = chunked or (size is not None and size >= 0)
    if not turn.framed:
        turn.keep = False
    turn.caller.write(answer_head(response, raw, keep=turn.keep, chunked=chunked))
    if exchange.switched:
        turn.caller.hook("response", turn.flow, partial(ending.switch, turn, link))
        return
    turn.answer_open = True
    if link.waiting:
        link.go_on()


def data(turn: Turn, payload: bytes) -> None:
    """Some of the body is there."""
    turn.caller.deadline.touch()
    response = turn.flow.response
    if response is None:
        return
    _pass(turn, response, payload)


def _pass(turn: Turn, response: http.Response, payload: bytes) -> None:
    if turn.growing is not None and callable(response.stream):
        found = response.stream(payload)
        turn.growing.take((found,) if isinstance(found, bytes) else found)
        return
    for piece in pieces(response.stream, payload):
        turn.caller.write(chunk(piece) if turn.answer_chunked else piece)
    if (turn.exchange or turn.known()).refused is not None:
        # A stage lets no more of it pass.
        ending.refuse(turn, None)


def _gone_through(turn: Turn) -> None:
    """All that has come of a body that grows has left."""
    growing, link = turn.growing, turn.link
    if turn.known().refused is not None:
        ending.refuse(turn, None)
    elif growing is not None and growing.trailers is not None:
        trailers, growing.trailers = growing.trailers, None
        if link is not None and link.waiting:
            link.surplus()
        _ended(turn, trailers)
    elif link is not None and link.waiting:
        link.go_on()


def ended(turn: Turn, trailers: Fields) -> None:
    """All of the body was there."""
    growing = turn.growing
    if growing is not None and growing.waits:
        growing.trailers = trailers
    else:
        _ended(turn, trailers)


def _ended(turn: Turn, trailers: Fields) -> None:
    response = turn.flow.response
    if response is not None:
        _pass(turn, response, b"")
        if turn.over:
            return
        if trailers:
            trailers = clean_trailers(turn.known(), kept_reply_trailers(trailers))
    turn.caller.hook("response", turn.flow, partial(_passed, turn, trailers))


def _passed(turn: Turn, trailers: Fields) -> None:
    exchange = turn.exchange or turn.known()
    if turn.over:
        return
    if exchange.refused is not None:
        ending.refuse(turn, None)
        return
    if turn.answer_chunked:
        wanted = trailers and asks_for_trailers(turn.request)
        turn.caller.write(last_chunk(trailers if wanted else ()))
    turn.answer_passed_on = True
    if turn.written or turn.receiving:
        ending.finish(turn)


def broke(turn: Turn, message: str, *, lost: bool = False) -> None:
    """The upstream ended the connection or talks nonsense.

    Args:
        turn: whose answer it was.
        message: for the caller, if an answer can still be given.
        lost: whether not a byte of an answer was there.
    """
    if turn.over:
        return
    link, again = turn.link, turn.again
    if lost and again is not None and link is not None:
        turn.again = None
        turn.link = None
        asking.repeat(turn, link, again)
        return
    exchange = turn.known()
    if exchange.streaming:
        turn.caller.engine.parts.boundary.settle(exchange, "truncated")
        ending.cut(turn)
    else:
        ending.refuse(turn, Refusal(Code.UPSTREAM_PROTOCOL, message))
