"""Checks of upstreams: name, egress rules, connection, certificate. Nothing is asked and no credential is sent: the
handshake is made as the engine makes it, by the same contexts, and closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from addons.clock import SystemClock
from addons.egress import EgressRules, Forbidden, SystemResolver, destination, networks
from addons.exchange import Authority
from addons.refusal import Code, Refusal
from ostiary.doctor.finding import Finding, Setup, counted
from ostiary.settings.model import Settings
from ostiary.store_addresses import FIRST_DEADLINE_S, StoreAddresses
from policies.model import Route

_lib: Any = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001 - pyOpenSSL tells the reason nowhere else
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001 - as above


class _NotProven(Exception):
    """The upstream did not prove its name; the message is OpenSSL's reason."""


AT_ONCE = 8
MAX_UPSTREAMS = 200


async def _rules(settings: Settings) -> EgressRules:
    stores = StoreAddresses(settings)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_DEADLINE_S):
            await stores.look_up()
    known = stores.forbidden
    binds = [one.bind for one in settings.listen]
    if settings.admin is not None:
        binds += [bind for bind in (settings.admin.bind, settings.admin.probes) if bind is not None]
    own: set[tuple[str | None, int]] = {
        (None if bind.host in {"0.0.0.0", "::"} else bind.host, bind.port)  # noqa: S104 - compared, not bound
        for bind in binds
        if bind.path is None and bind.port
    }
    closed: Forbidden = replace(known, sockets=known.sockets | own)
    return EgressRules(networks(settings.egress.allow), settings.egress.resolve, closed)


async def upstreams(setup: Setup) -> list[Finding]:
    """Every exact host of every route can be dialled and proves its name."""
    settings, policy = setup.loaded
    rules = await _rules(settings)
    wanted: dict[tuple[Authority, str], Route] = {}
    for route in policy.routes.values():
        for host in route.hosts:
            if not host.wildcard:
                roots = f"{route.ca_file} {route.tls} {sorted(route.egress.resolve.items()) if route.egress else ''}"
                # By its listener alone, and then as that says; by the proxy a caller chooses, and https:// is meant.
                cleartext = not route.forward and route.upstream is not None and route.upstream.cleartext
                wanted.setdefault((Authority(host.text, route.port, cleartext=cleartext), roots), route)
    gate = asyncio.Semaphore(AT_ONCE)
    chosen = list(wanted.items())[:MAX_UPSTREAMS]

    async def one(authority: Authority, route: Route) -> Finding | None:
        async with gate:
            return await _one(setup, rules, authority, route)

    found = await asyncio.gather(*(one(authority, route) for (authority, _), route in chosen))
    bad = [finding for finding in found if finding is not None]
    return bad or [Finding("upstream.tls", "ok", f"{counted(len(chosen), 'upstream')} asked, each proves its name")]


async def _one(setup: Setup, rules: EgressRules, authority: Authority, route: Route) -> Finding | None:
    settings, _ = setup.loaded
    at = f"route {route.name} ({route.place}): {authority}"
    allow = rules.allow + (networks(route.egress.allow) if route.egress is not None else ())
    try:
        found = await destination(
            authority,
            rules,
            route.egress,
            allow,
            SystemResolver(SystemClock()),
            {},
            deadline_s=setup.deadline_s,
        )
    except Refusal as refusal:
        if refusal.code is Code.EGRESS_DENIED:
            mend = f"list the network of {authority.host} under egress.allow, if it is meant to be dialled"
            return Finding("upstream.egress", "fail", f"{at}: {refusal.message}", mend)
        mend = f"is {authority.host} spelt right, and known to this machine's resolver? (else egress.resolve)"
        return Finding("upstream.dns", "fail", f"{at}: {refusal.message}", mend)
    address = found.addresses[0]
    try:
        if authority.cleartext:
            await asyncio.to_thread(_reach, address, setup.deadline_s)
        else:
            await asyncio.to_thread(_handshake, settings, route, authority.host, address, setup.deadline_s)
    except _NotProven as error:
        mend = _for_certificate(error, authority.host, route, route.ca_file or settings.egress.ca_file)
        return Finding("upstream.tls", "fail", f"{at}: its certificate is not accepted: {error}", mend)
    except OSError as error:
        mend = f"is {address[0]}:{address[1]} running, and let through from here?"
        return Finding("upstream.tcp", "fail", f"{at}: no connection ({type(error).__name__})", mend)
    return None


def _for_certificate(error: _NotProven, host: str, route: Route, roots: Path | None) -> str:
    """What to do about a certificate that was refused."""
    if "expired" in str(error) or "not yet valid" in str(error):
        return f"renew the certificate of {host}, or set this machine's clock"
    if "mismatch" in str(error):
        return f"write under match.host of route {route.name} a name that stands in the certificate, or give {host} one that names it"
    if roots is not None:
        return f"put the CA of {host} into {roots}"
    return f"if a CA of yours has signed it: egress: {{ca_file: CA.pem}}, or tls: {{ca_file: CA.pem}} in route {route.name}"


def _reason(session: SSL.Connection, error: SSL.Error) -> str:
    """Why the certificate was refused, in OpenSSL's words; else what else went wrong in the handshake."""
    number = _lib.SSL_get_verify_result(session._ssl)  # noqa: SLF001 - as above
    if number != 0:
        return str(_ffi.string(_lib.X509_verify_cert_error_string(number)).decode("ascii", "replace"))
    return str(error.args[0][0][2]) if error.args and error.args[0] else "no TLS"


def _wants_certificate(route: Route, session: SSL.Connection) -> bool:
    """Whether the upstream has proven its name, and ended the handshake because this one shows it no certificate."""
    shows = route.tls is not None and route.tls.client_cert is not None
    verified = _lib.SSL_get_verify_result(session._ssl) == 0  # noqa: SLF001 - as above
    return shows and verified and session.get_peer_certificate() is not None


def _reach(address: tuple[str, int], deadline_s: float) -> None:
    """Connects. Raises OSError."""
    socket.create_connection(address, timeout=deadline_s).close()


def _handshake(settings: Settings, route: Route, host: str, address: tuple[str, int], deadline_s: float) -> None:
    """Connects and proves the name.

    Raises:
        OSError, _NotProven: it cannot.
    """
    from ostiary.engines.mitm.tls import UpstreamContexts, demand_pin, verify_name

    ends_s = time.monotonic() + deadline_s
    with socket.create_connection(address, timeout=deadline_s) as plain:
        plain.setblocking(False)
        session = SSL.Connection(UpstreamContexts(settings.egress.ca_file).of(route.ca_file), plain)
        verify_name(session, host)
        if route.tls is not None and route.tls.pins:
            demand_pin(session, route.tls.pins)
        session.set_alpn_protos([b"http/1.1"])
        session.set_connect_state()
        waits: tuple[list[socket.socket], list[socket.socket]]
        while True:
            try:
                session.do_handshake()
            except SSL.WantReadError:
                waits = ([plain], [])
            except SSL.WantWriteError:
                waits = ([], [plain])
            except SSL.SysCallError:
                raise ConnectionResetError from None
            except SSL.Error as error:
                if _wants_certificate(route, session):
                    return
                raise _NotProven(_reason(session, error)) from None
            else:
                return
            left_s = ends_s - time.monotonic()
            if left_s <= 0 or not any(select.select(*waits, [], left_s)):
                raise TimeoutError
