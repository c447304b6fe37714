"""Binds the authority: CONNECT on the tunnel, SNI, Host and `:authority` on every request inside it."""

from __future__ import annotations

from mitmproxy import http, tls

from addons.authority import bind, connect_authority
from addons.refusal import Code, Refusal
from addons.stages.registry import Registry


class AuthorityStage:
    """Puts `Authority`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def http_connect(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        request = flow.request.data
        target = f"[{request.host}]:{request.port}" if ":" in request.host else f"{request.host}:{request.port}"
        exchange.put(connect_authority(target.encode("utf-8", "replace"), exchange.head))

    def tls_clienthello(self, hello: tls.ClientHelloData) -> None:
        tunnel = self._registry.connection(hello.context.client).tunnel
        if tunnel is not None:
            tunnel.sni_seen = True
            tunnel.sni = hello.client_hello.sni

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        tunnel = exchange.connection.tunnel
        if tunnel is None:
            raise Refusal(Code.ROUTE_DENIED, "Plain http:// requests are not forwarded yet; use https://.")
        if not tunnel.sni_seen:
            raise Refusal(Code.BAD_REQUEST, "Inside this tunnel the proxy expects TLS.", close=True)
        pseudo = flow.request.data.authority.decode("ascii", "replace") if exchange.head.http2 else None
        exchange.put(bind(tunnel, exchange.head, pseudo_authority=pseudo))
