"""A client that can do everything wrong on purpose: raw bytes to the proxy, any SNI, any ALPN, raw bytes inside the
tunnel."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

REFUSALS: deque[bytes] = deque(maxlen=2000)
"""Refusals that clients were given, heads and bodies, for the scan for canaries at the end of each test."""


@dataclass
class Answer:
    """A parsed HTTP/1 answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def code(self) -> str | None:
        """The refusal's code, after checking that every place says the same."""
        code = self.get("X-Ostiary-Error")
        if code is not None and self.body:
            shown = json.loads(self.body)
            assert shown["code"] == code
            assert shown["request_id"] == self.get("X-Request-Id")
            assert f'details="{code}"' in (self.get("Proxy-Status") or "")
            assert (self.get("Content-Type") or "").startswith("application/json")
        return code

    def json(self) -> Any:
        return json.loads(self.body)


class Raw:
    """One connection to the proxy."""

    def __init__(self, address: str, timeout: float = 15.0) -> None:
        if address.startswith("unix:"):
            self.sock: socket.socket = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            self.sock = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout)
        self.buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        self.buffer += data
        return bool(data)

    def read_until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            if not self._more():
                raise ConnectionError(f"closed with {self.buffer[:200]!r}")
        found, _, self.buffer = self.buffer.partition(end)
        return found + end

    def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self._more():
                raise ConnectionError(f"closed after {len(self.buffer)} of {count}")
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def closed(self) -> bool:
        """Whether the proxy closes without another byte."""
        return not self.buffer and not self._more()

    def head(self) -> Answer:
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:] if line)]
        return Answer(int(lines[0].split()[1]), headers, b"")

    def answer(self, *, method: str = "GET") -> Answer:
        """Reads one answer."""
        found = self._answer(method)
        if found.get("X-Ostiary-Error") is not None:
            REFUSALS.append(repr(found.headers).encode() + found.body)
        return found

    def _answer(self, method: str) -> Answer:
        found = self.head()
        while 100 <= found.status < 200:
            found = self.head()
        if method == "HEAD" or found.status in {204, 304} or (method == "CONNECT" and found.status == 200):
            return found
        if (found.get("Transfer-Encoding") or "").lower() == "chunked":
            while size := int(self.read_until(b"\r\n").strip(), 16):
                found.body += self.read_exactly(size)
                self.read_exactly(2)
            self.read_exactly(2)
        elif (length := found.get("Content-Length")) is not None:
            found.body = self.read_exactly(int(length))
        else:
            while self._more():
                pass
            found.body, self.buffer = self.buffer, b""
        return found

    def connect(self, authority: str, *headers: str, host: str | None = None) -> Answer:
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority if host is None else host}", *headers]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        return self.answer(method="CONNECT")

    def tls(self, ca: Path | None, sni: str | None, alpn: tuple[str, ...] = ("http/1.1",)) -> None:
        """TLS inside the tunnel; verified strictly where a CA is given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        if ca is None:
            context.verify_mode = ssl.CERT_NONE
        else:
            context.load_verify_locations(ca)
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.check_hostname = sni is not None
        if alpn:
            context.set_alpn_protocols(list(alpn))
        self.sock = context.wrap_socket(self.sock, server_hostname=sni)

    def request(self, raw: str | bytes, *, method: str = "GET") -> Answer:
        self.send(raw.encode() if isinstance(raw, str) else raw)
        return self.answer(method=method)


@contextlib.contextmanager
def tunnel(
    address: str,
    ca: Path | None,
    authority: str = "api.test:443",
    *headers: str,
    sni: str | None = "",
    alpn: tuple[str, ...] = ("http/1.1",),
) -> Iterator[Raw]:
    """A tunnel with TLS inside, ready for requests."""
    with Raw(address) as raw:
        answer = raw.connect(authority, *headers)
        assert answer.status == 200, (answer.status, answer.code)
        raw.tls(ca, authority.rpartition(":")[0] if sni == "" else sni, alpn)
        yield raw


def get(
    address: str,
    ca: Path,
    path: str = "/v1",
    *headers: str,
    authority: str = "api.test:443",
    method: str = "GET",
    body: bytes = b"",
    proof: str | None = None,
) -> Answer:
    """One request through a tunnel of its own."""
    proofs = (proof,) if proof else ()
    with tunnel(address, ca, authority, *proofs) as raw:
        host = authority.removesuffix(":443")
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        raw.send(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        return raw.answer(method=method)
