"""Binds the authority: CONNECT on the tunnel, SNI, Host and `:authority` on every request inside it; target and Host of a
plain `http://` request.
"""

from __future__ import annotations

from mitmproxy import http, tls

from addons.authority import bind, connect_authority, plain_authority
from addons.refusal import Code, Refusal
from addons.stages.registry import Registry


class AuthorityStage:
    """Puts `Authority`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def http_connect(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        exchange.put(connect_authority(_written(flow.request.data).encode("utf-8", "replace"), exchange.head))

    def tls_clienthello(self, hello: tls.ClientHelloData) -> None:
        tunnel = self._registry.connection(hello.context.client).tunnel
        if tunnel is not None:
            tunnel.sni_seen = True
            tunnel.sni = hello.client_hello.sni

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        tunnel = exchange.connection.tunnel
        if tunnel is None:
            request = flow.request.data
            exchange.put(plain_authority(request.scheme, _written(request), exchange.head))
            return
        if not tunnel.sni_seen:
            raise Refusal(Code.BAD_REQUEST, "Inside this tunnel the proxy expects TLS.", close=True)
        pseudo = flow.request.data.authority.decode("ascii", "replace") if exchange.head.http2 else None
        exchange.put(bind(tunnel, exchange.head, pseudo_authority=pseudo))


def _written(request: http.RequestData) -> str:
    """`host:port` of the request target, which the engine has taken apart and the edge has judged."""
    return f"[{request.host}]:{request.port}" if ":" in request.host else f"{request.host}:{request.port}"
