"""Scripted TLS upstreams that remember what reached them.

One thread a connection, HTTP/1.1 by hand and HTTP/2 through h2. A script is a function of the request and the wire;
`echo` is the default. A test that asserts "the upstream saw nothing" looks at `connections` and `raw`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events

RAW_CAP = 1 << 20


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body_bytes: int = 0
    body_sha256: str = ""
    body: bytes = b""
    http2: bool = False
    complete: bool = False
    trailers: list[tuple[str, str]] = field(default_factory=list)
    client: str | None = None
    """Common name of the client certificate of its connection."""
    connection: int = 0
    """The socket that it came on: its source port."""

    def get(self, name: str) -> str | None:
        """The one value of a header; fails if it stands twice."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) < 2, f"{name} stands {len(found)} times"
        return found[0] if found else None


class Wire:
    """What a script writes to."""

    def __init__(self, sock: ssl.SSLSocket | _PlainSocket) -> None:
        self.sock = sock
        self.closed = False

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(
        self,
        status: int = 200,
        body: bytes = b"",
        headers: tuple[tuple[str, str], ...] = (),
        *,
        head_only: bool = False,
    ) -> None:
        head = (
            f"HTTP/1.1 {status} X\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in headers)
            + f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.send(head.encode() + (b"" if head_only else body))

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def close(self) -> None:
        self.closed = True

    def reset(self) -> None:
        """Closes with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.closed = True


class _PlainSocket(socket.socket):
    def selected_alpn_protocol(self) -> None:
        return None


class Cleartext:
    """In the place of a TLS context: an upstream without TLS."""

    def wrap_socket(self, sock: socket.socket, server_side: bool) -> _PlainSocket:
        return _PlainSocket(fileno=sock.detach())


type Script = Callable[[Seen, Wire], None]


class StreamWire:
    """What a script of HTTP/2 writes to: one stream."""

    def __init__(self, sock: ssl.SSLSocket | _PlainSocket, conn: h2.connection.H2Connection, stream: int) -> None:
        self.sock = sock
        self.conn = conn
        self.stream = stream

    def head(self, status: int = 200, headers: tuple[tuple[str, str], ...] = (), *, ends: bool = False) -> None:
        self.conn.send_headers(self.stream, [(":status", str(status)), *headers], end_stream=ends)
        self._flush()

    def send(self, data: bytes, *, ends: bool = False) -> None:
        size = self.conn.max_outbound_frame_size
        for start in range(0, len(data), size):
            self.conn.send_data(self.stream, data[start : start + size])
            self._flush()
        if ends:
            self.conn.end_stream(self.stream)
            self._flush()

    def trailers(self, *fields: tuple[str, str]) -> None:
        self.conn.send_headers(self.stream, fields, end_stream=True)
        self._flush()

    def reset(self, code: int = h2.errors.ErrorCodes.INTERNAL_ERROR) -> None:
        self.conn.reset_stream(self.stream, code)
        self._flush()

    def go_away(self) -> None:
        self.conn.close_connection(last_stream_id=0)
        self._flush()

    def _flush(self) -> None:
        self.sock.sendall(self.conn.data_to_send())


type StreamScript = Callable[[Seen, StreamWire], None]


def _client_of(tls: ssl.SSLSocket | _PlainSocket) -> str | None:
    found = tls.getpeercert() if isinstance(tls, ssl.SSLSocket) else None
    subject: Any = (found or {}).get("subject", ())
    names = [str(value) for pairs in subject for name, value in pairs if name == "commonName"]
    return names[0] if names else None


def echo_body(seen: Seen) -> bytes:
    shown = {
        "method": seen.method,
        "target": seen.target,
        "headers": seen.headers,
        "body_bytes": seen.body_bytes,
        "body_sha256": seen.body_sha256,
    }
    return json.dumps(shown).encode()


def echo(seen: Seen, wire: Wire) -> None:
    """Answers with what arrived: head as JSON, body as size and digest. Only for tests of what is sent: it reflects the
    credential."""
    wire.answer(200, echo_body(seen), (("Content-Type", "application/json"),), head_only=seen.method == "HEAD")


def plain(body: bytes = b"hello", status: int = 200, *headers: tuple[str, str]) -> Script:
    """Answers the same thing always."""

    def script(seen: Seen, wire: Wire) -> None:
        wire.answer(status, body, headers, head_only=seen.method == "HEAD")

    return script


_hello: Script = plain()


@dataclass
class Upstream:
    """A TLS server on a free loopback port.

    `early` makes the script run before the request body has been read; over HTTP/2 the rest of it is refused.
    """

    context: ssl.SSLContext | Cleartext
    script: Script = _hello
    early: bool = False
    trailers: tuple[tuple[str, str], ...] = ()
    """Sent behind each answer over HTTP/2; over HTTP/1.1 a script writes its own."""
    http2_script: StreamScript | None = None
    """Answers over HTTP/2 in the place of the echo."""
    port: int = 0
    requests: list[Seen] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)
    connections: int = 0
    clients: list[str | None] = field(default_factory=list)
    """Common names of client certificates, one for each TLS handshake that was finished."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._peer = threading.local()
        self._live: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        # Closing alone leaves the port open for as long as a thread waits in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._live:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._live.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            tls = self.context.wrap_socket(sock, server_side=True)
        except (OSError, ValueError):
            sock.close()
            return
        try:
            self._peer.client, self._peer.port = _client_of(tls), tls.getpeername()[1]
            self.clients.append(self._peer.client)
            if tls.selected_alpn_protocol() == "h2":
                self._serve_http2(tls)
            else:
                self._serve_http1(tls)
        except (OSError, ConnectionError, ValueError, h2.exceptions.ProtocolError):
            pass
        finally:
            with self._lock:
                self._live.discard(sock)
            with contextlib.suppress(OSError):
                tls.close()

    def _note(self, data: bytes) -> bytes:
        if len(self.raw) < RAW_CAP:
            self.raw += data[: RAW_CAP - len(self.raw)]
        return data

    # --- HTTP/1.1 ---

    def _serve_http1(self, tls: ssl.SSLSocket | _PlainSocket) -> None:
        wire = Wire(tls)
        buffer = b""
        while not wire.closed:
            while b"\r\n\r\n" not in buffer:
                data = tls.recv(65536)
                if not data:
                    return
                buffer += self._note(data)
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ", 2)
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
            seen = Seen(method, target, headers, client=self._peer.client, connection=self._peer.port)
            self.requests.append(seen)
            if self.early:
                self.script(seen, wire)
            buffer = self._read_body(tls, seen, buffer)
            seen.complete = True
            if not self.early:
                self.script(seen, wire)

    def _read_body(self, tls: ssl.SSLSocket | _PlainSocket, seen: Seen, buffer: bytes) -> bytes:
        digest = hashlib.sha256()
        chunked = (seen.get("transfer-encoding") or "").lower() == "chunked"
        left = int(seen.get("content-length") or 0)

        def more() -> bytes:
            data = tls.recv(262144)
            if not data:
                raise ConnectionError("cut")
            return self._note(data)

        def take(data: bytes) -> None:
            digest.update(data)
            seen.body_bytes += len(data)
            if len(seen.body) < 65536:
                seen.body += data[:65536]
            seen.body_sha256 = digest.hexdigest()

        while chunked:
            while b"\r\n" not in buffer:
                buffer += more()
            line, _, buffer = buffer.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            while len(buffer) < size + 2:
                buffer += more()
            if size == 0:
                return self._read_trailers(seen, buffer, more)
            take(buffer[:size])
            buffer = buffer[size + 2 :]
        while left:
            if not buffer:
                buffer = more()
            take(buffer[:left])
            used = min(left, len(buffer))
            left, buffer = left - used, buffer[used:]
        seen.body_sha256 = digest.hexdigest()
        return buffer

    def _read_trailers(self, seen: Seen, buffer: bytes, more: Callable[[], bytes]) -> bytes:
        while True:
            while b"\r\n" not in buffer:
                buffer += more()
            line, _, buffer = buffer.partition(b"\r\n")
            if not line:
                return buffer
            name, _, value = line.decode("latin-1").partition(":")
            seen.trailers.append((name, value.strip()))

    # --- HTTP/2: the body is answered by `echo` or by a fixed text ---

    def _serve_http2(self, tls: ssl.SSLSocket | _PlainSocket) -> None:
        conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        conn.initiate_connection()
        tls.sendall(conn.data_to_send())
        streams: dict[int, tuple[Seen, hashlib._Hash]] = {}
        while data := tls.recv(65536):
            for event in conn.receive_data(self._note(data)):
                if isinstance(event, h2.events.RequestReceived) and event.headers is not None:
                    pairs = [(str(name), str(value)) for name, value in event.headers]
                    pseudo = dict(pairs)
                    seen = Seen(pseudo[":method"], pseudo[":path"], pairs, http2=True)
                    seen.client, seen.connection = self._peer.client, self._peer.port
                    self.requests.append(seen)
                    if self.early:
                        conn.send_headers(event.stream_id, [(":status", "200")])
                        conn.send_data(event.stream_id, b"early", end_stream=True)
                        conn.reset_stream(event.stream_id, h2.errors.ErrorCodes.NO_ERROR)
                        continue
                    streams[event.stream_id] = (seen, hashlib.sha256())
                elif isinstance(event, h2.events.DataReceived) and event.stream_id in streams:
                    seen, digest = streams[event.stream_id]
                    digest.update(event.data)
                    seen.body_bytes += len(event.data)
                    conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived) and event.headers is not None:
                    streams[event.stream_id][0].trailers = [(str(name), str(value)) for name, value in event.headers]
                elif isinstance(event, h2.events.StreamEnded):
                    seen, digest = streams.pop(event.stream_id)
                    seen.body_sha256 = digest.hexdigest()
                    seen.complete = True
                    if self.http2_script is not None:
                        self.http2_script(seen, StreamWire(tls, conn, event.stream_id))
                        continue
                    conn.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/json")])
                    conn.send_data(event.stream_id, echo_body(seen), end_stream=not self.trailers)
                    if self.trailers:
                        conn.send_headers(event.stream_id, self.trailers, end_stream=True)
            tls.sendall(conn.data_to_send())


@contextlib.contextmanager
def serving(upstream: Upstream) -> Iterator[Upstream]:
    try:
        yield upstream
    finally:
        upstream.stop()
