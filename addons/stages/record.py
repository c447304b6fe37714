"""Settles exchanges: the audit record closes when the answer has passed, failed, or the caller has gone."""

from __future__ import annotations

from mitmproxy import connection, http

from addons.parts import Parts
from addons.stages.registry import Registry
from policies import Passage


class RecordStage:
    """Closes what was opened."""

    def __init__(self, parts: Parts, registry: Registry) -> None:
        self._parts = parts
        self._registry = registry

    def http_connected(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        if exchange.find(Passage) is not None:
            self._parts.boundary.tunnel_opened(exchange)  # settled when it ends
        else:
            self._parts.boundary.settle(exchange, "ok")

    def response(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        if not exchange.switched:
            self._parts.boundary.settle(exchange, "ok")

    def error(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.find(flow)
        if exchange is None:
            return
        # An upstream that is abandoned because the caller has gone looks broken too: the caller is asked first.
        gone = not flow.client_conn.connected
        self._parts.boundary.settle(
            exchange, "client_gone" if gone else "truncated" if exchange.streaming else "upstream_error"
        )

    def client_disconnected(self, client: connection.Client) -> None:
        gone = self._registry.disconnected(client)
        if gone is not None:
            for exchange in tuple(gone.exchanges):
                self._parts.boundary.settle(exchange, "client_gone")
