"""Binds the authority: CONNECT on the tunnel, SNI, Host and `:authority` on every request inside it; target and Host of a
plain `http://` request. On a reverse listener Host must be its own; the authority is then its route's to say.
"""

from __future__ import annotations

from mitmproxy import http, tls

from addons.authority import bind, connect_authority, plain_authority
from addons.refusal import Code, Refusal
from addons.reverse import called_as
from addons.stages.registry import Registry


class AuthorityStage:
    """Puts `Authority`; on a reverse listener `CalledAs`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def http_connect(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        if exchange.connection.listener.reverse is not None:
            raise Refusal(Code.BAD_REQUEST, "A reverse listener opens no tunnels.", close=True)
        exchange.put(connect_authority(_written(flow.request.data).encode("utf-8", "replace"), exchange.head))

    def tls_clienthello(self, hello: tls.ClientHelloData) -> None:
        tunnel = self._registry.connection(hello.context.client).tunnel
        if tunnel is not None:
            tunnel.sni_seen = True
            tunnel.sni = hello.client_hello.sni

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        exchange = self._registry.exchange(flow)
        tunnel = exchange.connection.tunnel
        pseudo = flow.request.data.authority.decode("ascii", "replace") if exchange.head.http2 else None
        if tunnel is None:
            request = flow.request.data
            reverse = exchange.connection.listener.reverse
            if reverse is not None:
                exchange.put(called_as(reverse, exchange.head, pseudo_authority=pseudo))
                return
            exchange.put(plain_authority(request.scheme, _written(request), exchange.head))
            return
        if not tunnel.sni_seen:
            raise Refusal(Code.BAD_REQUEST, "Inside this tunnel the proxy expects TLS.", close=True)
        exchange.put(bind(tunnel, exchange.head, pseudo_authority=pseudo))


def _written(request: http.RequestData) -> str:
    """`host:port` of the request target, which the engine has taken apart and the edge has judged."""
    return f"[{request.host}]:{request.port}" if ":" in request.host else f"{request.host}:{request.port}"
