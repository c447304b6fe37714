"""Keeps a credential out of the frames of a WebSocket (G43): what an upstream sends, frame by frame (RFC 6455 section 5).

Rules:
- Each message is searched as one text, however it is fragmented, and what is found becomes fill of the same length: so
  frames keep their headers, and one may leave before its payload is whole.
- What is no frame of a server, or is compressed, cannot be searched: it ends the connection.
- Nothing is held but the header of a frame, a control frame (at most 125 bytes) and the hold-back of the search. Frames
  leave in their order, so what comes between fragments waits for what is held back of the fragment before it: up to a
  number of frames, since an upstream could send them without end.
- One read of many small frames costs hardly more than one of a large: it is searched at once.
"""

from __future__ import annotations

from collections import deque
from typing import Final, final

from addons.refusal import Code, Refusal
from addons.reply.matcher import Redactor
from addons.reply.scrub import Scrub

_FIN: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_CONTINUED: Final = frozenset({0x0})
_DATA: Final = frozenset({0x1, 0x2})
_CONTROL: Final = frozenset({0x8, 0x9, 0xA})
_MAX_CONTROL_BYTES: Final = 125
_LENGTHS: Final = {126: (2, 126), 127: (8, 1 << 16)}
"""Size of a longer length, and the least it may say: the shortest form is the only one."""
MOST_WAITING: Final = 1024
"""Headers and control frames behind a held-back part of a message, beyond those of its own bytes."""


@final
class Frames:
    """The frames of one upstream on their way to the caller."""

    __slots__ = ("_block", "_final", "_head", "_left", "_matcher", "_message", "_pieces", "_waiting", "redactions")

    def __init__(self, scrub: Scrub) -> None:
        self._matcher = scrub.matcher
        self._block = scrub.block
        self._head = b""
        """Of a frame whose header is not whole yet; a control frame until all of it is there."""
        self._left = 0
        """Bytes of the payload that are still to come."""
        self._final = False
        self._message: Redactor | None = None
        self._pieces: list[bytes] = []
        """Of the message, not searched yet: those of one `feed` are searched at once, however many frames they came in."""
        self._waiting: deque[bytes | int] = deque()
        """What leaves once what is held back before it has left: headers, and how many bytes of payload."""
        self.redactions = 0
        """Places filled so far."""

    def feed(self, data: bytes) -> bytes:
        """What may leave, now that this has come.

        Raises:
            Refusal: `reply_blocked`, where the route blocks and a credential stands there; `upstream_protocol`, where it is
                no frame that can be searched. Nothing more may leave.
        """
        if self._head:
            data, self._head = self._head + data, b""
        leaving: list[bytes] = []
        clean = not self._matcher.may_find(data)
        at, size = 0, len(data)
        while at < size:
            if not self._left:
                at = self._frame(data, at, leaving, clean=clean)
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            self._pieces.append(piece)
            if not self._left and self._final:
                self._search(leaving, ends=True)
        if self._message is not None:
            self._search(leaving, ends=False)
        if len(self._waiting) > MOST_WAITING + 2 * self._matcher.longest:
            raise Refusal(Code.UPSTREAM_PROTOCOL, "The upstream sends frames without end inside a message.")
        return b"".join(leaving)

    def _frame(self, data: bytes, at: int, leaving: list[bytes], *, clean: bool) -> int:
        """Reads a header, and what is behind it of a frame that may leave by itself; where the next bytes stand.

        Args:
            data: what has come.
            at: where the header begins.
            leaving: what may leave so far.
            clean: whether no spelling stands in any payload of `data`.
        """
        known = len(data) - at
        if known < 2:
            self._head = data[at:]
            return len(data)
        first, length, size = data[at], data[at + 1], 2
        opcode = first & 0x0F
        if first & _RESERVED or length & _MASKED:
            raise _malformed()
        control = opcode in _CONTROL
        if control:
            if not first & _FIN or length > _MAX_CONTROL_BYTES:
                raise _malformed()
        elif opcode not in (_DATA if self._message is None else _CONTINUED):
            raise _malformed()
        if (longer := _LENGTHS.get(length)) is not None:
            size += longer[0]
            if known < size:
                self._head = data[at:]
                return len(data)
            length = int.from_bytes(data[at + 2 : at + size])
            if length < longer[1] or length >> 63:
                raise _malformed()
        whole = known >= size + length
        if control and not whole:
            self._head = data[at:]
            return len(data)
        end = at + size + length
        if whole and (control or (self._message is None and first & _FIN)):
            # It leaves by itself, behind what waits.
            frame = data[at:end]
            if not clean:
                payload, found = self._matcher.redact(frame[size:])
                self._count(found)
                frame = frame[:size] + payload if found else frame
            if self._waiting:
                self._waiting.append(frame)
            else:
                leaving.append(frame)
            return end
        if self._message is None:
            self._message = Redactor(self._matcher)
        self._waiting.append(data[at : at + size])
        self._left, self._final = length, bool(first & _FIN)
        if length:
            self._waiting.append(length)
        elif self._final:
            self._search(leaving, ends=True)
        return at + size

    def _search(self, leaving: list[bytes], *, ends: bool) -> None:
        """Searches what has come of the message, and gives on what may leave of it."""
        message, pieces = self._message, self._pieces
        if message is None:
            raise _malformed()
        before = message.count
        passes = message.feed(b"".join(pieces)) if pieces else b""
        self._pieces = []
        self._count(message.count - before)
        if ends:
            passes += message.end()
            self._message = None
        self._leave(passes, leaving)

    def _count(self, found: int) -> None:
        self.redactions += found
        if found and self._block:
            raise Refusal(Code.REPLY_BLOCKED, "A frame of the upstream shows a credential.")

    def _leave(self, payload: bytes, leaving: list[bytes]) -> None:
        """Gives the payload to the frames it belongs to, in their order."""
        waiting, at = self._waiting, 0
        while waiting:
            first = waiting[0]
            if isinstance(first, bytes):
                leaving.append(first)
            else:
                taken = payload[at : at + first]
                at += len(taken)
                leaving.append(taken)
                if len(taken) < first:
                    waiting[0] = first - len(taken)
                    return
            waiting.popleft()

    def __repr__(self) -> str:
        return "Frames(…)"


def _malformed() -> Refusal:
    return Refusal(Code.UPSTREAM_PROTOCOL, "The upstream sent what is no frame of a WebSocket, or a compressed one.")
