"""Callers that the load generator is not: tunnels that idle, streams of events, many at the same instant, HTTP/2.

They verify no certificate: what is measured is time, and the tests of the project hold the certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events

PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Way:
    """How the upstream is reached: through a forward proxy on `port`, or straight at `port`."""

    port: int
    upstream: int
    forward: bool

    @property
    def authority(self) -> str:
        return f"localhost:{self.upstream}"


@dataclass(slots=True)
class Line:
    """One TLS connection to the upstream, or to what stands in its place."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    authority: str

    def send(self, method: str, path: str, body: bytes = b"", headers: str = "") -> None:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {self.authority}\r\n{headers}{length}\r\n".encode() + body
        )

    async def head(self) -> tuple[int, bytes]:
        found = await self.reader.readuntil(b"\r\n\r\n")
        return int(found.split(b" ", 2)[1]), found.lower()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of one answer."""
        status, head = await self.head()
        if b"transfer-encoding: chunked" in head:
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
            return status, body
        length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        return status, await self.reader.readexactly(int(length or b"0"))

    async def get(self, path: str) -> tuple[int, bytes]:
        self.send("GET", path)
        return await self.answer()

    async def fetch(self, path: str) -> None:
        """GET that must succeed."""
        status, _ = await self.get(path)
        if status != 200:
            raise ConnectionError(f"{path} was answered {status}")

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(2):
                await self.writer.wait_closed()


def trusting(alpn: str = "http/1.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context


async def dial(way: Way, context: ssl.SSLContext) -> Line:
    """A connection with TLS up."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        if way.forward:
            writer.write(f"CONNECT {way.authority} HTTP/1.1\r\nHost: {way.authority}\r\n\r\n".encode())
            line = Line(reader, writer, way.authority)
            status, _ = await line.head()
            if status != 200:
                writer.close()
                raise ConnectionError(f"CONNECT was answered {status}")
        await writer.start_tls(context, server_hostname="localhost")
        return Line(reader, writer, way.authority)


async def together(way: Way, count: int, path: str) -> list[float]:
    """Opens tunnels, then sends one request on each at the same instant; seconds each took."""
    context = trusting()
    lines = [await dial(way, context) for _ in range(count)]

    async def one(line: Line) -> float:
        began = time.perf_counter()
        await line.fetch(path)
        return time.perf_counter() - began

    try:
        async with asyncio.timeout(PATIENCE_S):
            return list(await asyncio.gather(*(one(line) for line in lines)))
    finally:
        await asyncio.gather(*(line.close() for line in lines))


async def hold(way: Way, count: int) -> list[Line]:
    """Connections that have had one request and wait for the next."""
    context = trusting()
    lines: list[Line] = []
    try:
        for _ in range(count):
            line = await dial(way, context)
            lines.append(line)
            await line.fetch("/1k")
    except BaseException:
        await asyncio.gather(*(line.close() for line in lines))
        raise
    return lines


async def events(way: Way) -> list[float]:
    """Seconds each event of a stream was under way."""
    line = await dial(way, trusting())
    late: list[float] = []
    try:
        line.send("GET", "/sse")
        async with asyncio.timeout(PATIENCE_S):
            await line.head()
            while size := int(await line.reader.readuntil(b"\r\n"), 16):
                found = (await line.reader.readexactly(size + 2))[:-2]
                now = time.monotonic()
                # One chunk may carry many events where something on the way holds them back.
                late += [now - float(event.removeprefix(b"data: ")) for event in found.split(b"\n\n") if event]
    finally:
        await line.close()
    return late


async def http2(way: Way, seconds: float, streams: int = 16) -> list[float]:
    """Requests over one HTTP/2 connection, `streams` at a time; seconds each took."""
    line = await dial(way, trusting("h2"))
    session = line.writer.get_extra_info("ssl_object")
    if session.selected_alpn_protocol() != "h2":
        await line.close()
        raise ConnectionError("HTTP/2 was not agreed on")
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    conn.initiate_connection()
    conn.increment_flow_control_window(1 << 24)
    head = [(":method", "GET"), (":scheme", "https"), (":authority", way.authority), (":path", "/1k")]
    began: dict[int, float] = {}
    took: list[float] = []

    def begin() -> None:
        stream = conn.get_next_available_stream_id()
        conn.send_headers(stream, head, end_stream=True)
        began[stream] = time.perf_counter()

    for _ in range(streams):
        begin()
    end = time.perf_counter() + seconds
    try:
        async with asyncio.timeout(seconds + PATIENCE_S):
            while began:
                line.writer.write(conn.data_to_send())
                await line.writer.drain()
                data = await line.reader.read(262144)
                if not data:
                    raise ConnectionError("the connection ended")
                for event in conn.receive_data(data):
                    if (
                        isinstance(event, h2.events.ResponseReceived)
                        and event.headers
                        and event.headers[0][1] not in {"200", b"200"}
                    ):
                        raise ConnectionError("an answer other than 200")
                    if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                        raise ConnectionError(f"{event}")
                    if isinstance(event, h2.events.DataReceived):
                        conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        now = time.perf_counter()
                        took.append(now - began.pop(event.stream_id))
                        if now < end:
                            begin()
    finally:
        await line.close()
    return took
