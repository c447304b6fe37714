"""Dials vetted addresses and proves the upstream by TLS, inside one deadline."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, cast

from addons.refusal import Code, Refusal
from ostiary.engines.fast.link import Link
from ostiary.engines.fast.pins import NotPinned, PinnedRecords
from ostiary.engines.fast.sessions import Resumable, offer
from ostiary.engines.mitm.dialling import NOT_PINNED, Bound

if TYPE_CHECKING:
    from ostiary.engines.fast.engine import FastEngine


class _Unattached(asyncio.Protocol):
    """Holds a TCP connection until TLS or a link takes it over. uvloop reads it at once, whatever it is told while the
    connection is made: what comes this early is kept, and not read on.
    """

    def __init__(self) -> None:
        self.said = b""
        """What the upstream has said already."""
        self.ended = False
        """Whether it has said its last."""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.said += data
        if self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self.ended = True
        return True  # it may still be written to

    def let_go(self) -> None:
        """Another protocol has the connection: the two no longer hold each other."""
        self._transport = None

    def drop(self) -> None:
        """Nobody will take it: who dialled was cancelled meanwhile, perhaps in the moment when it was made."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


async def connect(host: str, port: int) -> asyncio.Transport:
    """One TCP connection. Raises OSError."""
    first = _Unattached()
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: first, host, port)
    except BaseException:
        first.drop()
        raise
    return transport


async def dial(engine: FastEngine, bound: Bound, *, tls: bool = True) -> Link:
    """Connects to the first vetted address that answers.

    Args:
        engine: counts it.
        bound: where to, and whose name TLS must prove.
        tls: false for a tunnel that is passed on unopened.

    Raises:
        Refusal: `overloaded`, `upstream_unreachable`, `upstream_timeout` or `upstream_tls`.
    """
    engine.take_socket()
    link = Link(engine, bound, blind=not tls)
    authority = bound.destination.authority
    tls = tls and not authority.cleartext
    terms = bound.pool_key.tls
    # A resumed handshake shows no chain in which a pin could be looked for.
    resumes = tls and (terms is None or not terms.pins)
    resumable = engine.sessions.take(bound.pool_key, asyncio.get_running_loop().time()) if resumes else None
    offer(resumable)
    try:
        async with asyncio.timeout(bound.connect_timeout_s or None):
            transport = below = await _reach(bound)
            try:
                if tls:
                    transport = await _secure(engine, bound, transport, link, resumable)
                else:
                    early = _early(transport)
                    transport.set_protocol(link)
                    early.let_go()
                    link.catch_up(early.said, ended=early.ended)
                    transport.resume_reading()
            except BaseException:
                transport.abort()
                if resumable is not None:
                    engine.sessions.forget(bound.pool_key)
                raise
        link.attach(transport, below)
    except TimeoutError:
        engine.release_socket()
        raise Refusal(Code.UPSTREAM_TIMEOUT, f"{authority} did not accept a connection in time.") from None
    except BaseException:
        engine.release_socket()
        raise
    return link


def _early(transport: asyncio.Transport) -> _Unattached:
    return cast("_Unattached", transport.get_protocol())


async def _reach(bound: Bound) -> asyncio.Transport:
    for host, port in bound.destination.addresses:
        try:
            return await connect(host, port)
        except OSError:
            continue
    raise Refusal(Code.UPSTREAM_UNREACHABLE, f"{bound.destination.authority} accepts no connection.")


async def _secure(
    engine: FastEngine, bound: Bound, transport: asyncio.Transport, link: Link, resumable: Resumable | None
) -> asyncio.Transport:
    """TLS with the upstream, verified against the bound authority, never against what the caller sent."""
    early = _early(transport)
    early.let_go()
    if early.said:
        raise Refusal(Code.UPSTREAM_TLS, "The upstream spoke before TLS began.")
    loop = asyncio.get_running_loop()
    try:
        terms = bound.pool_key.tls
        context = engine.upstream_contexts.of(bound.pool_key.ca_file, terms, bound.certificate)
        secured = await loop.start_tls(
            transport,
            link,
            context,
            server_hostname=bound.destination.authority.host,
            ssl_handshake_timeout=bound.connect_timeout_s or None,
            ssl_shutdown_timeout=1.0,
        )
    except TimeoutError:
        raise
    except ConnectionAbortedError:
        raise TimeoutError from None  # so uvloop tells of its own deadline
    except NotPinned:
        raise Refusal(Code.UPSTREAM_TLS, NOT_PINNED) from None
    except (ssl.SSLError, OSError, ValueError) as error:
        raise Refusal(
            Code.UPSTREAM_TLS, f"The upstream's certificate or TLS is not acceptable: {_reason(error)}."
        ) from None
    # The end of a connection whose handshake is not done reaches no protocol: uvloop gives back one without a session.
    session: ssl.SSLObject | None = secured.get_extra_info("ssl_object") if secured is not None else None
    if secured is None or session is None or not link.alive:
        raise Refusal(Code.UPSTREAM_TLS, "The upstream broke off the TLS handshake.")
    if terms is not None and terms.pins and not (isinstance(session, PinnedRecords) and session.proven):
        raise Refusal(Code.UPSTREAM_TLS, NOT_PINNED)
    link.proven_s = resumable.proven_s if resumable is not None and session.session_reused else loop.time()
    return secured


def _reason(error: Exception) -> str:
    """OpenSSL's reason in a few words; its texts hold neither secrets nor addresses."""
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or "handshake failed"
    return "".join(char for char in str(reason) if char.isprintable())[:120].rstrip(".")
