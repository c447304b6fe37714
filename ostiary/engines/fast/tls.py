"""TLS by the standard library: towards callers with leaves of our CA, towards upstreams verified, always;
sessions with them are resumed (`sessions.py`).

The rules are those of `ostiary/tls_rules.py`, the same for both engines. Contexts are cached: one a host towards
callers, one a set of roots towards upstreams. A caller's context is replaced with its leaf, and each hour: `ssl` cannot
change the key of its session tickets, and a key that never changes takes forward secrecy from every resumed session.
"""

from __future__ import annotations

import os
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

import certifi
from cryptography.hazmat.primitives import serialization

from addons.client_certificate import ClientCertificate
from ostiary.ca import Leaf, LeafStore
from ostiary.engines.contexts import Contexts
from ostiary.engines.fast.pins import PinnedRecords, PinningContext
from ostiary.engines.fast.records import Records
from ostiary.engines.fast.sessions import ResumingContext
from ostiary.engines.mitm.dialling import TlsTerms
from ostiary.tls_rules import ALPN_HTTP1, ALPN_HTTP2, CIPHERS

CACHED_CONTEXTS: Final = 1024
CONTEXT_LIFE_S: Final = 3600.0
NO_TERMS: Final = TlsTerms()


def hardened(context: ssl.SSLContext) -> ssl.SSLContext:
    """The rules that hold in both directions."""
    context.sslobject_class = Records
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS.decode())
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


class CallerContexts:
    """Server-side contexts, one for each intercepted host and order of protocols.

    Args:
        leaves: certificates by host.
        now_s: monotonic seconds.
    """

    def __init__(self, leaves: LeafStore, now_s: Callable[[], float]) -> None:
        self._leaves = leaves
        self._now_s = now_s
        self._contexts: OrderedDict[tuple[str, bool], tuple[int, float, ssl.SSLContext]] = OrderedDict()
        self._names: WeakKeyDictionary[ssl.SSLObject, str | None] = WeakKeyDictionary()

    def of(self, host: str, *, http2_first: bool = False) -> ssl.SSLContext:
        leaf = self._leaves.leaf(host)
        serial, now_s = leaf.cert.serial_number, self._now_s()
        key = (host, http2_first)
        known = self._contexts.get(key)
        if known is not None and known[0] == serial and now_s - known[1] < CONTEXT_LIFE_S:
            self._contexts.move_to_end(key)
            return known[2]
        context = hardened(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        _load(context, leaf)
        # HTTP/1.1 first: a caller that offers both is served by this engine, one that offers only HTTP/2 by mitmproxy's.
        # HTTP/2 first where mitmproxy's serves the tunnel in any case.
        offers = (ALPN_HTTP2, ALPN_HTTP1) if http2_first else (ALPN_HTTP1, ALPN_HTTP2)
        context.set_alpn_protocols([offer.decode() for offer in offers])
        # Each ticket costs a tenth of a handshake, and each resumed connection is given one again.
        context.num_tickets = 1
        context.sni_callback = self._named
        self._contexts[key] = (serial, now_s, context)
        self._contexts.move_to_end(key)
        if len(self._contexts) > CACHED_CONTEXTS:
            self._contexts.popitem(last=False)
        return context

    def _named(self, session: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self._names[session] = name

    def server_name(self, session: ssl.SSLObject) -> str | None:
        """What the caller's ClientHello named (RFC 6066 section 3), or None."""
        return self._names.pop(session, None)


def _load(context: ssl.SSLContext, leaf: Leaf) -> None:
    pem = leaf.cert.public_bytes(serialization.Encoding.PEM) + leaf.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    load_pem(context, pem)


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Loads a chain and its key by way of memory: `ssl` reads only files, and a key on a disk would outlive the
    process.
    """
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    finally:
        os.close(descriptor)


def _no_password() -> str:
    """OpenSSL would ask the terminal for one."""
    return ""


def load_client(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    """Loads what is shown to an upstream by way of memory, and of nothing else: where the system has no memory files, by
    two pipes, since a temporary file could outlive the process.

    Raises:
        ssl.SSLError, OSError: it cannot be loaded.
    """
    if hasattr(os, "memfd_create"):
        load_pem(context, certificate.chain_pem() + certificate.key_pem())
    else:
        load_by_pipes(context, certificate)


def load_by_pipes(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    """As `load_client`. OpenSSL reads each part once from its beginning to its end, and each fits into a pipe's buffer.

    Raises:
        ssl.SSLError, OSError: it cannot be loaded; BlockingIOError where a part does not fit.
    """
    reads: list[int] = []
    try:
        for part in (certificate.chain_pem(), certificate.key_pem()):
            read, write = os.pipe()
            reads.append(read)
            try:
                os.set_blocking(write, False)
                if os.write(write, part) != len(part):
                    raise BlockingIOError("a pipe does not hold the certificate")
            finally:
                os.close(write)
        context.load_cert_chain(f"/dev/fd/{reads[0]}", f"/dev/fd/{reads[1]}", password=_no_password)
    finally:
        for read in reads:
            os.close(read)


class UpstreamContexts:
    """Client-side contexts: the system's roots, certifi's, those of the process and of the route.

    Raises:
        OSError: a root file cannot be read; at start this is a fault, later the connection fails.
    """

    def __init__(self, extra: Path | None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._extra = extra
        self._contexts = Contexts[ssl.SSLContext](now_s)
        self.sweep = self._contexts.sweep

    def of(
        self, route_ca_file: Path | None, terms: TlsTerms | None = None, certificate: ClientCertificate | None = None
    ) -> ssl.SSLContext:
        """The context for these roots and this certificate, which `terms` names."""
        terms = NO_TERMS if terms is None else terms
        key = (route_ca_file, terms)
        known = self._contexts.get(key)
        if known is not None:
            return known
        # This protocol verifies the chain and the name, and offers no way to forget either.
        context = hardened(PinningContext.of(terms.pins) if terms.pins else ResumingContext(ssl.PROTOCOL_TLS_CLIENT))
        if terms.pins:
            context.sslobject_class = PinnedRecords
        context.hostname_checks_common_name = False
        context.set_default_verify_paths()
        for roots in (certifi.where(), self._extra, route_ca_file):
            if roots is not None:
                context.load_verify_locations(str(roots))
        context.set_alpn_protocols([ALPN_HTTP1.decode()])
        if certificate is not None:
            load_client(context, certificate)
        self._contexts.put(key, context)
        return context
