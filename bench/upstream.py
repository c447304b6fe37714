"""A small upstream for what a file server cannot do: events in time, uploads that are counted, WebSockets, resets.

One asyncio server, with TLS or behind the nginx of the benchmark. `/1k` answers 1,024 bytes, `/up` the size of what
came, `/sse` ten events that carry the time they were sent, `/ws` echoes after 101, `/slow` drips, `/reset` breaks off.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator

EVENTS = 10
EVENT_PAUSE_S = 0.03
_KIB = b"x" * 1024


async def _body(reader: asyncio.StreamReader, head: bytes) -> int:
    """Reads a body with a length; how many bytes it had."""
    length = next(
        (int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
    )
    left = length
    while left:
        data = await reader.read(min(left, 262144))
        if not data:
            raise ConnectionError("the body was cut")
        left -= len(data)
    return length


async def _events(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(EVENTS):
        event = f"data: {time.monotonic():.6f}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        await asyncio.sleep(EVENT_PAUSE_S)
    writer.write(b"0\r\n\r\n")


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 102400\r\n\r\n")
    for _ in range(100):
        writer.write(_KIB)
        await writer.drain()
        await asyncio.sleep(0.02)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        target = head.split(b" ", 2)[1]
        size = await _body(reader, head)
        if target == b"/sse":
            await _events(writer)
        elif target == b"/slow":
            await _drip(writer)
        elif target == b"/ws":
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
            writer.write(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
            while head := await reader.readexactly(6):
                # Short frames of a caller, with a mask of zeros; what comes back has none.
                length = head[1] & 0x7F
                writer.write(head[:1] + bytes([length]) + await reader.readexactly(length))
                await writer.drain()
            return
        elif target == b"/reset":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n" + _KIB)
            await writer.drain()
            plain: socket.socket = writer.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        else:
            answer = _KIB if target == b"/1k" else b"%d" % size
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        await writer.drain()


async def _connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        await _serve(reader, writer)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(context: ssl.SSLContext | None, port: int = 0) -> AsyncIterator[int]:
    """Serves as long as the block runs; gives the port."""
    server = await asyncio.start_server(_connection, "127.0.0.1", port, ssl=context, backlog=512)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def _for_ever(port: int) -> None:
    async with serving(None, port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    import sys

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_for_ever(int(sys.argv[1])))
