"""TLS in memory, so that a test decides which of its bytes leave together."""

from __future__ import annotations

import contextlib
import ssl

from tests.harness.client import Raw


class MemoryTls:
    """The caller's end of TLS over a connection to the proxy. Nothing leaves but by `flight`."""

    def __init__(
        self,
        raw: Raw,
        name: str = "api.test",
        alpn: tuple[str, ...] = ("http/1.1",),
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.raw = raw
        self._into, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(list(alpn))
        self.tls = context.wrap_bio(self._into, self._out, server_hostname=name, session=session)

    def hello(self) -> bytes:
        """The ClientHello."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.flight()

    def finish(self) -> bytes:
        """Reads until the handshake is done; the last flight, which is still to be sent."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                if data := self.flight():
                    self.raw.send(data)
                self._receive()
            else:
                return self.flight()

    def flight(self) -> bytes:
        """What is to be sent."""
        return self._out.read()

    def encrypt(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.flight()

    def read(self) -> bytes:
        """Some bytes; empty at the end."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                if not self._receive():
                    return b""
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def read_until(self, end: bytes) -> bytes:
        found = b""
        while end not in found:
            data = self.read()
            if not data:
                raise ConnectionError(f"closed with {found[:200]!r}")
            found += data
        return found

    def _receive(self) -> bool:
        data, self.raw.buffer = self.raw.buffer or self.raw.sock.recv(65536), b""
        if data:
            self._into.write(data)
        else:
            self._into.write_eof()
        return bool(data)
