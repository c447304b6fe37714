"""TLS towards callers (with leaves of our CA) and towards upstreams (verified, always).

An upstream is verified against the bound authority, never against what the caller put into its ClientHello. Contexts
are cached: one a host towards callers, one a set of roots towards upstreams.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import certifi
from mitmproxy import connection, tls
from OpenSSL import SSL, crypto

from addons.client_certificate import ClientCertificate, pinned
from ostiary.ca import LeafStore
from ostiary.engines.contexts import Contexts
from ostiary.engines.mitm.dialling import TlsTerms
from ostiary.tls_rules import ALPN_HTTP1, ALPN_HTTP2, CIPHERS, MIN_VERSION

if TYPE_CHECKING:
    from ostiary.engines.mitm.engine import MitmEngine

_log = logging.getLogger("ostiary.tls")
_CACHED_CONTEXTS: Final = 1024
_NO_TERMS: Final = TlsTerms()
_lib: Any = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001 - pyOpenSSL exposes host verification nowhere else
_HOSTFLAGS: Final = _lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | getattr(_lib, "X509_CHECK_FLAG_NEVER_CHECK_SUBJECT", 0)


def _select_http2_first(_connection: SSL.Connection, offers: list[bytes]) -> Any:
    """HTTP/2 where the caller offers it, else HTTP/1.1; a caller that offers neither gets no protocol."""
    return _first(offers, ALPN_HTTP2, ALPN_HTTP1)


def _select_http1_first(_connection: SSL.Connection, offers: list[bytes]) -> Any:
    """HTTP/1.1 where the caller offers it; one that offers HTTP/2 alone still gets it."""
    return _first(offers, ALPN_HTTP1, ALPN_HTTP2)


def _first(offers: list[bytes], *wanted: bytes) -> Any:
    return next((one for one in wanted if one in offers), SSL.NO_OVERLAPPING_PROTOCOLS)


def _context(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(MIN_VERSION)
    context.set_cipher_list(CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    return context


class CallerContexts:
    """Server-side contexts, one for each intercepted host and order of protocols, renewed with the leaf."""

    def __init__(self, leaves: LeafStore) -> None:
        self._leaves = leaves
        self._contexts: OrderedDict[tuple[str, bool], tuple[int, SSL.Context]] = OrderedDict()

    def of(self, host: str, *, http2_first: bool = True) -> SSL.Context:
        leaf = self._leaves.leaf(host)
        serial = leaf.cert.serial_number
        key = (host, http2_first)
        known = self._contexts.get(key)
        if known is not None and known[0] == serial:
            self._contexts.move_to_end(key)
            return known[1]
        context = _context(SSL.TLS_SERVER_METHOD)
        context.use_certificate(leaf.cert)
        context.use_privatekey(leaf.key)
        context.set_alpn_select_callback(_select_http2_first if http2_first else _select_http1_first)
        context.set_session_id(host.encode()[:32])
        self._contexts[key] = (serial, context)
        if len(self._contexts) > _CACHED_CONTEXTS:
            self._contexts.popitem(last=False)
        return context


class UpstreamContexts:
    """Client-side contexts: the system's roots, certifi's, those of the process and of the route.

    Raises:
        SSL.Error: a root file cannot be read; at start this is a fault, later the connection fails.
    """

    def __init__(self, extra: Path | None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._extra = extra
        self._contexts = Contexts[SSL.Context](now_s)
        self.sweep = self._contexts.sweep

    def of(
        self, route_ca_file: Path | None, terms: TlsTerms | None = None, certificate: ClientCertificate | None = None
    ) -> SSL.Context:
        """The context for these roots and this certificate, which `terms` names."""
        terms = _NO_TERMS if terms is None else terms
        # Pins are asked for by each connection.
        key = (route_ca_file, replace(terms, pins=frozenset()))
        known = self._contexts.get(key)
        if known is not None:
            return known
        context = _context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_PEER)
        context.set_default_verify_paths()
        for roots in (certifi.where(), self._extra, route_ca_file):
            if roots is not None:
                context.load_verify_locations(str(roots))
        if certificate is not None:
            leaf, *above = certificate.chain
            context.use_certificate(leaf)
            for cert in above:
                context.add_extra_chain_cert(cert)
            context.use_privatekey(certificate.key)
            context.check_privatekey()
        self._contexts.put(key, context)
        return context


def demand_pin(session: SSL.Connection, pins: frozenset[bytes]) -> None:
    """Makes the handshake fail unless a certificate of the verified chain has a pinned key. It fails before a client
    certificate is shown: OpenSSL tells of each certificate of a good chain, the upstream's own last.
    """
    found = False

    def judge(_session: SSL.Connection, cert: crypto.X509, _error: int, depth: int, good: int) -> bool:
        nonlocal found
        if not good:
            return False
        found = found or pinned((cert.to_cryptography(),), pins)
        return found or depth > 0

    session.set_verify(SSL.VERIFY_PEER, judge)


def verify_name(session: SSL.Connection, host: str) -> None:
    """Makes the handshake prove this very host (RFC 9525), and sends it as SNI unless it is an address (RFC 6066
    section 3).
    """
    parameters = _lib.SSL_get0_param(session._ssl)  # noqa: SLF001 - as above
    _lib.X509_VERIFY_PARAM_set_hostflags(parameters, _HOSTFLAGS)
    try:
        packed = ipaddress.ip_address(host).packed
    except ValueError:
        name = host.encode("ascii")
        session.set_tlsext_host_name(name)
        done = _lib.X509_VERIFY_PARAM_set1_host(parameters, name, len(name))
    else:
        done = _lib.X509_VERIFY_PARAM_set1_ip(parameters, packed, len(packed))
    if done != 1:
        raise RuntimeError("the upstream's name cannot be verified")


class TlsStage:
    """Gives mitmproxy's TLS layers their sessions. Where it gives none, the layer closes the connection."""

    def __init__(self, engine: MitmEngine, leaves: LeafStore, upstreams: UpstreamContexts) -> None:
        self._engine = engine
        self._callers = CallerContexts(leaves)
        self._upstreams = upstreams

    def tls_start_client(self, start: tls.TlsData) -> None:
        tunnel = self._engine.registry.connection(start.context.client).tunnel
        if tunnel is None:
            raise RuntimeError("TLS outside a tunnel")
        # The leaf is for the authority of CONNECT, whatever the ClientHello says: another SNI gets a certificate that
        # does not fit and, if it goes on, 421.
        http2 = self._engine.parts.in_force.policy.http2(tunnel.authority.host, tunnel.authority.port)
        start.ssl_conn = SSL.Connection(self._callers.of(tunnel.authority.host, http2_first=http2 != "never"))
        start.ssl_conn.set_accept_state()

    def tls_start_server(self, start: tls.TlsData) -> None:
        server = start.conn
        handler = self._engine.handler_of(start.context.client)
        bound = handler.bound(server)
        if bound is None:
            raise RuntimeError("TLS to an upstream that nothing has vetted")
        host = bound.destination.authority.host
        server.sni = host
        terms = bound.pool_key.tls
        session = SSL.Connection(self._upstreams.of(bound.pool_key.ca_file, terms, bound.certificate))
        verify_name(session, host)
        if terms is not None and terms.pins:
            demand_pin(session, terms.pins)
        http2 = bound.pool_key.offers_http2(caller_speaks_it=start.context.client.alpn == ALPN_HTTP2)
        offers = (ALPN_HTTP2, ALPN_HTTP1) if http2 else (ALPN_HTTP1,)
        server.alpn_offers = offers
        session.set_alpn_protos(list(offers))
        session.set_connect_state()
        start.ssl_conn = session

    def tls_failed_client(self, failed: tls.TlsData) -> None:
        client = failed.conn
        if isinstance(client, connection.Client):
            facts = self._engine.registry.connection(client)
            tunnel = facts.tunnel
            _log.warning(
                "TLS with the caller failed on listener %s for %s: does the client trust Ostiary's CA? (ostiary env prints the settings)",
                facts.listener.name,
                tunnel.authority if tunnel else "no authority",
            )
