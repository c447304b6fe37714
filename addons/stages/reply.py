"""Streams both ways and meters what passes; cleans the answer's fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus

from mitmproxy import http

from addons.bodies import HeldBody
from addons.boundary import Boundary
from addons.exchange import Authority, Exchange
from addons.parts import Parts
from addons.refusal import Refusal
from addons.reply import kept_reply_fields
from addons.reply.scrub import BodyScrub
from addons.reverse import CalledAs, for_caller
from addons.skew import Clocks
from addons.stages.registry import Registry
from addons.websocket import UPGRADE_FIELDS


def request_meter(exchange: Exchange) -> Callable[[bytes], bytes | tuple[bytes, ...]]:
    """Counts and hashes a request body as it passes, and rewrites it where a signer has to."""
    if exchange.rewrite is not None:
        return _rewriting(exchange, exchange.rewrite)

    def pass_on(chunk: bytes) -> bytes:
        exchange.bytes_in += len(chunk)
        if exchange.payload is not None:
            exchange.payload.update(chunk)
        return chunk

    return pass_on


def _rewriting(exchange: Exchange, rewrite: Callable[[bytes], bytes]) -> Callable[[bytes], bytes | tuple[bytes, ...]]:
    def pass_on(chunk: bytes) -> bytes | tuple[bytes, ...]:
        made = rewrite(chunk)
        exchange.bytes_in += len(made)
        if exchange.payload is not None:
            exchange.payload.update(made)
        # No piece at all: an empty one would be the last of a chunked body.
        return made or ()

    return pass_on


def response_meter(exchange: Exchange) -> Callable[[bytes], bytes]:
    """Counts an answer's body as it passes."""

    def pass_on(chunk: bytes) -> bytes:
        exchange.bytes_out += len(chunk)
        return chunk

    return pass_on


def scrubbing_meter(exchange: Exchange, body: BodyScrub, boundary: Boundary) -> Callable[[bytes], Iterable[bytes]]:
    """Counts what reaches the caller of a body that is searched for the credential. Where no more of it may pass, the
    exchange is refused and nothing follows; the engine cuts it. A coded body comes piece by piece, as it is asked for.
    """
    before, decodes = exchange.redactions, body.decodes

    def pass_on(chunk: bytes) -> Iterable[bytes]:
        if exchange.refused is not None:
            return ()
        try:
            found = body.feed(chunk)
        except Refusal as refusal:
            exchange.redactions = before + body.redactions
            boundary.refuse(exchange, refusal)
            return ()
        if decodes:
            return decoded(found)
        if redactions := body.redactions:
            exchange.redactions = before + redactions
        for piece in found:
            exchange.bytes_out += len(piece)
        return found

    def decoded(found: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for piece in found:
                exchange.redactions = before + body.redactions
                exchange.bytes_out += len(piece)
                yield piece
        except Refusal as refusal:
            exchange.redactions = before + body.redactions
            boundary.refuse(exchange, refusal)
        exchange.redactions = before + body.redactions

    return pass_on


class ReplyStage:
    """Turns streaming on for granted requests and for every answer."""

    def __init__(self, parts: Parts, registry: Registry) -> None:
        self._parts = parts
        self._registry = registry
        self._clocks = Clocks(parts.clock.wall_s, parts.metrics.clock_ahead)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        self._parts.metrics.stage_overhead("request", self._parts.clock.monotonic_s() - exchange.started_s)
        if exchange.find(HeldBody) is None:
            # A body that is held does not stream: it leaves whole.
            flow.request.stream = request_meter(exchange)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        response = flow.response
        if exchange.refused is not None or response is None:
            return
        data, authority = response.data, exchange.ask(Authority)
        headers = data.headers
        exchange.first_byte_s = now_s = self._parts.clock.monotonic_s()
        exchange.status = data.status_code
        self._clocks.look(authority.host, headers.fields, now_s)
        kept = kept_reply_fields(headers.fields)
        if exchange.connection.listener.reverse is not None:
            kept = for_caller(kept, authority, exchange.ask(CalledAs))
        if kept is not headers.fields:
            headers.fields = kept
        if exchange.upgrade and data.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            # The engine has judged it. The fields of the upstream's hop ended here.
            exchange.switched = True
            kept = tuple(field for field in kept if field[0].lower() != b"upgrade")
            headers.fields = (*kept, *UPGRADE_FIELDS)
        scrub = exchange.find(BodyScrub)
        if scrub is None or exchange.switched:
            response.stream = response_meter(exchange)
        else:
            response.stream = scrubbing_meter(exchange, scrub, self._parts.boundary)
        exchange.streaming = True
