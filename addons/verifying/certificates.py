"""Signing certificates of SNS: fetched over https from the one host where they lie, through the egress guard, and kept.

Everything is bounded: one fetch at a time for a certificate and a few in all, a deadline, a size, how many are kept and how
long. A failure is remembered for a moment, so that strangers who name certificates that are not there cost little; and as
they may keep all fetches busy, what is known goes on to serve for a while when it cannot be fetched anew.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import certifi
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from addons.clock import Clock
from addons.egress import Destination
from addons.refusal import Code, Refusal
from addons.signing.keys import MIN_RSA_BITS
from addons.verifying.claim import invalid

DEADLINE_S: Final = 5.0
MAX_BYTES: Final = 64 * 1024
KEPT: Final = 64
KEPT_S: Final = 24 * 3600.0
MOST_S: Final = 7 * 24 * 3600.0
"""How long one serves whose host cannot be asked; one that the host does not have any more serves no longer."""
FAILED_S: Final = 5.0
AT_ONCE: Final = 4
_AWAY: Final = (OSError, asyncio.IncompleteReadError)
"""The host cannot be asked; everything else is its answer."""
_STATUS: Final = re.compile(rb"HTTP/1\.[01] 200[ \r]")


@dataclass(frozen=True, slots=True)
class _Kept:
    certificate: x509.Certificate | None
    """None: it could not be had."""
    asked_s: float
    """Monotonic, as below."""
    taken_s: float


type Contexts = Callable[[], ssl.SSLContext]


class Certificates:
    """Keys of certificates by where they lie.

    Args:
        clock: for ages and dates.
        deadline_s: of one fetch, resolving apart.
    """

    def __init__(self, clock: Clock, *, deadline_s: float = DEADLINE_S) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._flights: dict[tuple[str, str], asyncio.Task[x509.Certificate]] = {}

    async def key_of(self, destination: Destination, path: str, context: Contexts) -> rsa.RSAPublicKey:
        """The public key of a certificate that is good today.

        Args:
            destination: vetted: where its host is dialled.
            path: of the certificate.
            context: makes what verifies the host.

        Raises:
            Refusal: `upstream_unreachable`; it cannot be had. `signature_invalid`; it is not usable.
        """
        name = (destination.authority.host, path)
        kept = self._kept.get(name)
        if kept is not None:
            age_s = self._clock.monotonic_s() - kept.asked_s
            if kept.certificate is None and age_s < FAILED_S:
                raise _unreachable()
            if kept.certificate is not None and age_s < (KEPT_S if kept.asked_s == kept.taken_s else FAILED_S):
                return self._late(kept)
        flight = self._flights.get(name)
        if flight is None:
            if len(self._flights) >= AT_ONCE:
                return self._late(kept)
            flight = self._flights[name] = asyncio.create_task(self._fetched(destination, path, context))
            flight.add_done_callback(lambda done: self._landed(name, done))
        try:
            # One that waits and leaves must not end it for the others.
            return self._key(await asyncio.shield(flight))
        except _AWAY:
            return self._late(kept)
        except (ValueError, asyncio.LimitOverrunError):
            raise _unreachable() from None

    def _landed(self, name: tuple[str, str], done: asyncio.Task[x509.Certificate]) -> None:
        self._flights.pop(name, None)
        now_s, known, failure = self._clock.monotonic_s(), self._kept.get(name), None
        if done.cancelled() or (failure := done.exception()) is not None:
            stays = known is not None and (done.cancelled() or isinstance(failure, _AWAY))
            self._kept[name] = (
                replace(known, asked_s=now_s) if known is not None and stays else _Kept(None, now_s, now_s)
            )
        else:
            self._kept[name] = _Kept(done.result(), now_s, now_s)
        self._kept.move_to_end(name)
        if len(self._kept) > KEPT:
            # Failures first: whoever names what is not there must not push out what is.
            broken = next((key for key, kept in self._kept.items() if kept.certificate is None and key != name), None)
            self._kept.pop(broken or next(iter(self._kept)))

    def _late(self, kept: _Kept | None) -> rsa.RSAPublicKey:
        """The key of what is kept, where it is not fetched anew now."""
        if kept is None or kept.certificate is None or self._clock.monotonic_s() - kept.taken_s >= MOST_S:
            raise _unreachable()
        return self._key(kept.certificate)

    def _key(self, certificate: x509.Certificate) -> rsa.RSAPublicKey:
        now = dt.datetime.fromtimestamp(self._clock.wall_s(), dt.UTC)
        key = certificate.public_key()
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise invalid("The certificate of the signature is not valid today.")
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_RSA_BITS:
            raise invalid("The certificate of the signature has no RSA key of 2048 bits or more.")
        return key

    async def _fetched(self, destination: Destination, path: str, context: Contexts) -> x509.Certificate:
        async with asyncio.timeout(self._deadline_s):
            tls = await asyncio.to_thread(context)
            return x509.load_pem_x509_certificate(await _got(destination, path, tls))


async def _got(destination: Destination, path: str, context: ssl.SSLContext) -> bytes:
    """The body of a 200, asked for once on a connection of its own; redirects are not followed."""
    host = destination.authority.host
    failed: OSError | None = None
    for address, port in destination.addresses[:2]:
        try:
            reader, writer = await asyncio.open_connection(
                address, port, ssl=context, server_hostname=host, limit=MAX_BYTES
            )
        except OSError as error:
            failed = error
            continue
        try:
            asked = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            writer.write(asked.encode("ascii"))
            head = await reader.readuntil(b"\r\n\r\n")
            if not _STATUS.match(head) or b"\r\ntransfer-encoding:" in head.lower():
                raise ValueError
            length = re.search(rb"\r\ncontent-length: *([0-9]{1,6})\r\n", head.lower())
            size = int(length[1]) if length is not None else 0
            if not 0 < size <= MAX_BYTES:
                raise ValueError
            return await reader.readexactly(size)
        finally:
            writer.transport.abort()
    raise failed or ConnectionRefusedError


def _unreachable() -> Refusal:
    return Refusal(Code.UPSTREAM_UNREACHABLE, "The certificate of the signature cannot be fetched right now.")


def roots(*files: Path | None) -> ssl.SSLContext:
    """What verifies the host of a certificate: the system's roots, certifi's, and these."""
    context = ssl.create_default_context()
    for file in (certifi.where(), *files):
        if file is not None:
            context.load_verify_locations(str(file))
    return context
