"""One request of a caller and its answer: what is known of it, and the steps it takes.

    step        does                                                  hook at its end        module
    begin       the stages judge the head                             `requestheaders`       asking
    gather      the body, where a stage has to read all of it first   `request`              gathering
    reach       takes a pooled connection, or dials a new one                                asking
    send        sends the head that the stages built                                         asking
    receive     the body streams behind it                            `request`              asking
    answered    a 401: the stages may have another credential         `rejected`             answering
                the stages judge the head of the answer               `responseheaders`
    data        its body streams                                      `response`             answering
    finish      the connections are given back, the caller goes on                           ending
    refuse      our own answer, or a cut where one has begun          `error` (of a cut)     ending

Request and answer pass at the same time, so each has a state of its own. A turn that is `over` takes no step.

    request     `receiving`  bytes of the body are to come      `sent`  the head is on its way      `written`  all of it is
    answer      `answer_open`  its head has been sent on, its body may pass      `answer_passed_on`  all of it has

Rules:
- A head reaches an upstream only as the `HeadersToSend` that the stages built. A flow whose stages did not finish has
  none, so nothing can be sent for it, whatever a hook did.
- Before the answer has begun, whatever fails becomes an answer of ours. After it has begun, the caller's connection is
  cut, so that a part is never taken for the whole.
- A request is sent a second time only where its pooled connection turned out to be closed, not a byte of an answer was
  there, it has no body, and its method may be repeated (RFC 9110 section 9.2.2); or where its credential was rejected
  (401) and the stages have built a head with another one: then once, on another connection, with the very bytes of the
  body that left the first time. Of the first answer nothing has been passed on, and its connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import http

from addons.bodies import HeldBody as WholeBody
from addons.exchange import Exchange
from addons.refusal import Code, Refusal
from ostiary.engines.fast.flows import new_flow
from ostiary.engines.fast.heads import keeps
from ostiary.engines.framing import reader_of
from ostiary.engines.held import HeldBody

if TYPE_CHECKING:
    from ostiary.engines.fast.caller import Caller
    from ostiary.engines.fast.growing import Growing
    from ostiary.engines.fast.link import Link


class Turn:
    """One request.

    Args:
        caller: whose it is.
        request: its head, which the edge has accepted.
        size: of its body in bytes; None where it is chunked.
    """

    __slots__ = (
        "again",
        "answer_chunked",
        "answer_open",
        "answer_passed_on",
        "caller",
        "dialling",
        "exchange",
        "flow",
        "framed",
        "gathered",
        "gathered_then",
        "growing",
        "held",
        "keep",
        "link",
        "over",
        "reader",
        "receiving",
        "request",
        "request_chunked",
        "sent",
        "times",
        "written",
    )

    def __init__(self, caller: Caller, request: http.Request, size: int | None) -> None:
        self.caller = caller
        self.request = request
        self.flow = new_flow(caller.client, caller.no_server, request)
        self.exchange: Exchange | None = None
        self.link: Link | None = None
        self.over = False
        self.keep = keeps(request)
        """Whether the caller's connection stays open."""
        self.times = caller.engine.parts.deadlines
        # The request.
        self.reader = None if size == 0 else reader_of(size)
        self.request_chunked = size is None
        self.receiving = size != 0
        """Whether bytes of its body are still to come."""
        self.sent = False
        self.written = False
        """Whether its last byte is on its way."""
        self.again: bytes | None = None
        """Its head, for as long as it may have to be sent once more."""
        self.dialling: asyncio.Task[None] | None = None
        self.held: HeldBody | None = None
        """Its body as it leaves, for as long as it may have to be sent once more."""
        self.gathered: WholeBody | None = None
        """Its body, where that is held until it is whole."""
        self.gathered_then: Callable[[Turn], None] | None = None
        # The answer.
        self.answer_open = False
        """Whether its body may pass: its head has been judged and sent."""
        self.growing: Growing | None = None
        """Its body, where the stages decode it."""
        self.answer_chunked = False
        self.answer_passed_on = False
        self.framed = True
        """Whether the caller can tell a part of it from the whole."""

    @property
    def takes_bytes(self) -> bool:
        """Whether bytes of the caller's are wanted now."""
        return self.receiving and (self.sent or self.gathered is not None) and not self.over

    def let_go(self) -> None:
        """The body will not be sent again."""
        if self.held is not None:
            self.held.release()
            self.held = None

    def known(self) -> Exchange:
        """The exchange, once the first stage has begun it."""
        if self.exchange is None:
            raise Refusal(Code.INTERNAL, "A request was answered before it was begun.")
        return self.exchange
