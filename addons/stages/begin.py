"""Begins an exchange for every CONNECT and every request: the first stage."""

from __future__ import annotations

from mitmproxy import http

from addons.edge import judge_http2
from addons.exchange import Exchange
from addons.head import RequestHead
from addons.parts import Parts
from addons.refusal import Code, Refusal
from addons.stages.registry import Registry
from addons.uuid7 import uuid7
from addons.websocket import judge_handshake, wants_websocket


class BeginStage:
    """Copies the head as the caller sent it and fixes the policy the exchange is judged by."""

    def __init__(self, parts: Parts, registry: Registry) -> None:
        self._parts = parts
        self._registry = registry

    def http_connect(self, flow: http.HTTPFlow) -> None:
        self._begin(flow, connect=True)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._begin(flow, connect=False)
        if flow.error is not None:
            raise Refusal(Code.BAD_REQUEST, "The request is malformed.", close=True)
        if wants_websocket(exchange.head.fields):
            judge_handshake(exchange.head)
            exchange.upgrade = True
        if exchange.head.http2:
            request = flow.request.data
            judge_http2(request.method, request.path, exchange.head.fields, self._parts.heads)

    def _begin(self, flow: http.HTTPFlow, *, connect: bool) -> Exchange:
        request = flow.request.data
        head = RequestHead(
            request.method.decode("ascii", "backslashreplace"),
            request.path,
            request.headers.fields,
            request.http_version == b"HTTP/2.0",
        )
        exchange = Exchange(
            uuid7(),
            self._registry.connection(flow.client_conn),
            self._parts.in_force.policy,
            head,
            self._parts.clock.monotonic_s(),
            connect=connect,
        )
        self._registry.begin(flow, exchange)
        buffers = self._parts.buffers
        if buffers is not None and buffers.full:
            # Before anything is proven, resolved or read: what is under way needs the memory more.
            raise Refusal(Code.OVERLOADED, "The proxy holds too much for slow readers right now.", retry_after_s=1.0)
        return exchange
