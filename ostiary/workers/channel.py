"""Questions and answers over a socket pair between the supervisor and one worker. Either side may ask.

A frame is four bytes of length (big-endian) and that much JSON: `{"n": 7, "ask": "prepare", "with": {…}}`, its answer
`{"n": 7, "is": {…}}` or `{"n": 7, "failed": "<type>"}`; without `n` nobody waits for an answer. A peer that has gone, or
that sends what is no frame, ends the channel, and with it every question that is open: a channel is never mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

_log = logging.getLogger("ostiary.workers")

MAX_FRAME_BYTES: Final = 256 * 1024 * 1024
"""More than the texts of any policy, and the metrics of a process at their bounds."""
MAX_UNREAD_BYTES: Final = 4 * 1024 * 1024
"""What `tell` lets wait for a peer that does not read; past that it tells nothing."""
_LENGTH: Final = struct.Struct("!I")

type Body = Mapping[str, Any]
type Answer = Callable[[Body], Awaitable[Body | None]]


class ChannelClosed(Exception):
    """The other process has gone."""


class NotDone(Exception):
    """The other process failed to do what was asked; the message is the type of its exception."""


class Channel:
    """One end.

    Args:
        answers: what the other side may ask for. One answer that takes long keeps no other from being given.
    """

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = answers
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Body]] = {}
        self._last = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, end: socket.socket) -> None:
        """Takes over one end of a pair."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=end)

    async def run(self) -> None:
        """Answers until the other side has gone."""
        assert self._reader is not None  # noqa: S101 - opened by whoever runs it
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length > MAX_FRAME_BYTES:
                    _log.error("a frame of %d bytes came over the channel; it is closed", length)
                    break
                raw = await self._reader.readexactly(length)
                # A policy of thousands of routes takes a while to read: not on the event loop.
                await self._take(json.loads(raw) if length < 65536 else await asyncio.to_thread(json.loads, raw))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            _log.error("what came over the channel is no frame (%s); it is closed", type(error).__name__)
        finally:
            self.close()

    async def ask(self, what: str, deadline_s: float, **given: Any) -> Body:
        """Asks, and waits for the answer.

        Raises:
            ChannelClosed, NotDone: there is none.
            TimeoutError: not in time. What was asked may still be done.
        """
        self._last += 1
        number = self._last
        waiter = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline_s):
                await self._send({"n": number, "ask": what, "with": given})
                found: Body = await waiter
                return found
        finally:
            self._asked.pop(number, None)
            if waiter.done() and not waiter.cancelled():
                waiter.exception()

    def tell(self, what: str, **given: Any) -> bool:
        """Asks for what nobody waits for; False where the other side has gone or does not read."""
        writer = self._writer
        if writer is None or self._closed or writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            return False
        writer.write(_frame({"ask": what, "with": given}))
        return True

    async def flush(self) -> None:
        """Waits until the kernel has what was told."""
        if self._writer is not None and not self._closed:
            try:
                await self._writer.drain()
            except ConnectionError:
                self.close()

    def close(self) -> None:
        """Ends it; every open question fails."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        for waiter in self._asked.values():
            if not waiter.done():
                waiter.set_exception(ChannelClosed)

    async def _take(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            task = asyncio.get_running_loop().create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        waiter = self._asked.get(message["n"])
        if waiter is None or waiter.done():
            return
        if "failed" in message:
            waiter.set_exception(NotDone(str(message["failed"])))
        else:
            waiter.set_result(message["is"])

    async def _answer(self, message: dict[str, Any]) -> None:
        number = message.get("n")
        try:
            found: dict[str, Any] = {"is": await self._answers[message["ask"]](message["with"]) or {}}
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is told to who asked, by its type alone
            _log.error("%s failed: %s", message.get("ask"), type(error).__name__)
            found = {"failed": type(error).__name__}
        if number is not None:
            with contextlib.suppress(ChannelClosed):
                await self._send({"n": number, **found})

    async def _send(self, message: Body) -> None:
        if self._writer is None or self._closed:
            raise ChannelClosed
        frame = await asyncio.to_thread(_frame, message) if _is_long(message) else _frame(message)
        if self._closed:
            raise ChannelClosed
        self._writer.write(frame)
        try:
            await self._writer.drain()
        except ConnectionError:
            raise ChannelClosed from None


def _is_long(message: Body) -> bool:
    """Whether it carries a policy or metrics, which are spelt out off the event loop."""
    body = message.get("with") or message.get("is") or {}
    return "policy" in body or "metrics" in body


def _frame(message: Body) -> bytes:
    raw = json.dumps(message, ensure_ascii=False).encode()
    return _LENGTH.pack(len(raw)) + raw


def read_first(end: socket.socket) -> Body:
    """The first question, before there is an event loop. Blocks.

    Raises:
        ChannelClosed: there is none.
    """
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ChannelClosed
    message = json.loads(_exactly(end, length))
    found: Body = message["with"]
    return found


def _exactly(end: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        more = end.recv(min(count - len(found), 1 << 20))
        if not more:
            raise ChannelClosed
        found += more
    return bytes(found)
