"""Asks a token endpoint: one request, one answer, over a connection of its own.

Rules:
- A secret is about to leave, so the endpoint passes the egress guard as an upstream does: resolved once, vetted, pinned;
  TLS always, verified against the name of the URL. No proxy of the environment is obeyed, no redirect followed, nothing
  is sent twice.
- A client certificate is loaded for its own endpoint alone, and shown on connections that nothing else uses.
- An answer has a cap. What is read of it stays in the room: no error tells any of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, Protocol, final

import h11

from addons.client_certificate import ClientCertificate
from addons.egress import EgressRules, Network, Resolver, Vetted, destination
from addons.exchange import Authority
from addons.refusal import Code, Refusal
from policies.derive import Endpoint
from policies.model import EgressSpec

MAX_ANSWER_BYTES: Final = 256 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_INTERIM: Final = 8
"""Interim answers (1xx) that are read past."""
MAX_ADDRESSES: Final = 3
"""Vetted addresses that are tried."""
CONNECT_S: Final = 5.0
_READ_BYTES: Final = 64 * 1024
_BREAKS_OFF: Final = "breaks off TLS: it may want a client certificate, or know no version of ours, or speak no TLS"
"""In TLS 1.2 one alert stands for all of these (RFC 5246 section 7.4.6)."""
_REJECTED: Final = frozenset({
    "TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_ACCESS_DENIED", "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "TLSV1_ALERT_DECRYPT_ERROR",
})  # fmt: skip
"""OpenSSL's names of the alerts by which a server says no to the certificate of a client (RFC 8446 section 6.2)."""


class Contexts(Protocol):
    """TLS contexts that verify."""

    def __call__(self, ca_file: Path | None, roots: str, certificate: ClientCertificate | None, /) -> ssl.SSLContext:
        """The context for extra roots, as they were when `roots`, their digest, was taken, that shows this certificate.

        Raises:
            OSError: the roots cannot be read, or the certificate cannot be loaded.
        """


@dataclass(frozen=True, slots=True)
class Way:
    """How a route's endpoints are reached: exceptions of process and route, fixed targets, extra roots."""

    allow: tuple[Network, ...] = ()
    egress: EgressSpec | None = None
    ca_file: Path | None = None
    roots: str = ""
    """SHA-256 of `ca_file` as it was when the policy was loaded."""
    vetted: Vetted = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[object, ...]:
        """Two ways with the same key are one."""
        resolve: Mapping[str, tuple[str, int]] = self.egress.resolve if self.egress is not None else {}
        return (self.allow, tuple(sorted(resolve.items())), self.ca_file, self.roots)


@final
class Ask:
    """A request for a token, with the secret in it. Without a repr.

    Args:
        endpoint: where to.
        body: as it is sent, by POST.
        fields: beside those that frame it.
        target: where it is not the endpoint's own.
        certificate: shown to the endpoint.
    """

    __slots__ = ("body", "certificate", "endpoint", "fields", "target")

    def __init__(
        self,
        endpoint: Endpoint,
        body: bytes,
        fields: tuple[tuple[bytes, bytes], ...] = (),
        target: str | None = None,
        certificate: ClientCertificate | None = None,
    ) -> None:
        self.certificate = certificate
        self.endpoint = endpoint
        self.body = body
        self.fields = fields
        self.target = endpoint.target if target is None else target

    def __repr__(self) -> str:
        return "Ask(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("requests that hold a credential are not serialised")


@final
class Reply:
    """What an endpoint answered. Without a repr: a token is in it."""

    __slots__ = ("body", "retry_after_s", "status")

    def __init__(self, status: int, body: bytes, retry_after_s: float | None = None) -> None:
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"Reply({self.status}, …)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("answers that hold a token are not serialised")


class Asker:
    """Sends requests for tokens.

    Args:
        resolver: names to addresses.
        rules: egress rules of the process.
        contexts: for TLS.
    """

    def __init__(self, resolver: Resolver, rules: EgressRules, contexts: Contexts) -> None:
        self._resolver = resolver
        self._rules = rules
        self._contexts = contexts

    async def ask(self, ask: Ask, way: Way) -> Reply:
        """One request. Who calls keeps the total deadline.

        Raises:
            Refusal: `egress_denied`, `secret_unavailable` where the endpoint cannot be reached or does not answer,
                `secret_denied` where it refuses the client certificate, `secret_malformed` where what it answers cannot be
                read.
        """
        host = ask.endpoint.host
        authority = Authority(host, ask.endpoint.port)
        try:
            found = await destination(
                authority,
                self._rules,
                way.egress,
                way.allow,
                self._resolver,
                way.vetted,
                deadline_s=CONNECT_S,
            )
        except Refusal as refusal:
            if refusal.code is Code.EGRESS_DENIED:
                raise Refusal(
                    Code.EGRESS_DENIED,
                    f"The token endpoint {host} is at an address that may not be dialled; egress.allow must list it.",
                ) from None
            raise _down(host, "cannot be resolved") from None
        try:
            context = self._contexts(way.ca_file, way.roots, ask.certificate)
        except OSError:
            # Its text may name what was read.
            raise _down(host, "has roots that cannot be read, or a client certificate that cannot be loaded") from None
        reader, writer = await self._connect(found.addresses, host, context)
        try:
            return await _exchange(ask, authority, reader, writer)
        except (OSError, EOFError) as error:
            # In TLS 1.3 the client is done before the server has looked at its certificate: its no comes here.
            if _refuses(error):
                raise _denied(host) from None
            raise _down(host, "did not answer") from None
        finally:
            # Nothing is waited for: what was to be read has been read.
            writer.transport.abort()

    async def _connect(
        self, addresses: tuple[tuple[str, int], ...], host: str, context: ssl.SSLContext
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        what = "cannot be reached"
        for address, port in addresses[:MAX_ADDRESSES]:
            try:
                async with asyncio.timeout(CONNECT_S):
                    return await asyncio.open_connection(
                        address, port, ssl=context, server_hostname=host, limit=_READ_BYTES
                    )
            except ssl.SSLError as error:
                if _refuses(error):
                    raise _denied(host) from None
                proves = not isinstance(error, ssl.SSLCertVerificationError)
                what = _BREAKS_OFF if proves else "does not prove its name by TLS"
            except (OSError, TimeoutError):
                continue
        raise _down(host, what)


def _down(host: str, what: str, retry_after_s: float | None = None) -> Refusal:
    return Refusal(Code.SECRET_UNAVAILABLE, f"The token endpoint {host} {what}.", retry_after_s=retry_after_s or 1.0)


def _refuses(error: BaseException) -> bool:
    """Whether the endpoint has said no to our certificate, or to none."""
    return isinstance(error, ssl.SSLError) and error.reason in _REJECTED


def _denied(host: str) -> Refusal:
    return Refusal(
        Code.SECRET_DENIED,
        f"The token endpoint {host} refuses by TLS: it wants a client certificate, or a different one.",
    )


def _unreadable(host: str, what: str) -> Refusal:
    return Refusal(Code.SECRET_MALFORMED, f"The token endpoint {host} answers {what}.")


async def _exchange(
    ask: Ask, authority: Authority, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Reply:
    host = authority.host
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    fields = [
        (b"Host", authority.host_header),
        (b"User-Agent", b"ostiary"),
        (b"Accept-Encoding", b"identity"),
        (b"Content-Length", str(len(ask.body)).encode("ascii")),
        (b"Connection", b"close"),
        *ask.fields,
    ]
    try:
        head = wire.send(h11.Request(method=b"POST", target=ask.target.encode("ascii"), headers=fields))
        body = wire.send(h11.Data(data=ask.body))
        wire.send(h11.EndOfMessage())
    except (h11.LocalProtocolError, UnicodeEncodeError):
        # Its text would show what was to be sent.
        raise Refusal(Code.SECRET_MALFORMED, "A secret does not fit into the request for a token.") from None
    writer.write((head or b"") + (body or b""))
    await writer.drain()
    try:
        return await _answer(wire, host, reader)
    except h11.RemoteProtocolError:
        raise _unreadable(host, "what is no HTTP") from None


async def _answer(wire: h11.Connection, host: str, reader: asyncio.StreamReader) -> Reply:
    status, retry_after_s, interim, body = 0, None, 0, bytearray()
    while True:
        event = wire.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(_READ_BYTES)
            try:
                wire.receive_data(data)
                if not data:
                    return _ended(wire.next_event(), host, status, body, retry_after_s)
            except h11.RemoteProtocolError:
                if data:
                    raise
                raise _down(host, "broke off") from None
        elif isinstance(event, h11.InformationalResponse):
            interim += 1
            if interim > MAX_INTERIM or event.status_code == 101:
                raise _unreadable(host, "what is no answer")
        elif isinstance(event, h11.Response):
            status = event.status_code
            values = {bytes(name).lower(): bytes(value) for name, value in event.headers}
            if values.get(b"content-encoding", b"identity").lower() != b"identity":
                raise _unreadable(host, "in a coding that was not asked for")
            retry_after_s = _seconds(values.get(b"retry-after"))
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_ANSWER_BYTES:
                raise _unreadable(host, f"more than {MAX_ANSWER_BYTES // 1024} KiB")
        elif isinstance(event, h11.EndOfMessage):
            return Reply(status, bytes(body), retry_after_s)
        else:
            raise _down(host, "broke off")


def _ended(event: object, host: str, status: int, body: bytearray, retry_after_s: float | None) -> Reply:
    """The end of the connection, which may be that of the answer too (RFC 9112 section 6.3)."""
    if isinstance(event, h11.EndOfMessage):
        return Reply(status, bytes(body), retry_after_s)
    raise _down(host, "broke off")


def _seconds(value: bytes | None) -> float | None:
    """`Retry-After` in seconds; the other form, a date, is not believed."""
    return float(value) if value is not None and value.isdigit() and len(value) < 6 else None
