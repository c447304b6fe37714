"""Keeps a credential out of the frames of a WebSocket (G43): what an upstream sends, frame by frame (RFC 6455 section 5).

Rules:
- Each message is searched as one text, however it is fragmented, and what is found becomes fill of the same length: so
  frames keep their headers, and one may leave before its payload is whole.
- What is no frame of a server, or is compressed, cannot be searched: it ends the connection.
- Nothing is held but the header of a frame, a control frame (at most 125 bytes) and the hold-back of the search. Frames
  leave in their order, so a control frame between fragments waits for what is held back of the fragment before it.
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
_CONTINUATION: Final = 0x0
_DATA: Final = frozenset({0x1, 0x2})
_CONTROL: Final = frozenset({0x8, 0x9, 0xA})
_MAX_CONTROL_BYTES: Final = 125
_LENGTHS: Final = {126: (2, 126), 127: (8, 1 << 16)}
"""Size of a longer length, and the least it may say: the shortest form is the only one."""


@final
class Frames:
    """The frames of one upstream on their way to the caller."""

    __slots__ = ("_block", "_control", "_final", "_head", "_left", "_matcher", "_message", "_waiting", "redactions")

    def __init__(self, scrub: Scrub) -> None:
        self._matcher = scrub.matcher
        self._block = scrub.block
        self._head = b""
        """Of a frame whose header is not whole yet."""
        self._left = 0
        """Bytes of the payload that are still to come."""
        self._final = False
        self._control: bytes | None = None
        """Header and payload of a control frame, so far."""
        self._message: Redactor | None = None
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
        leaving: list[bytes] = []
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                self._payload(piece, leaving)
            else:
                data = self._header(data, leaving)
        return b"".join(leaving)

    def _header(self, data: bytes, leaving: list[bytes]) -> bytes:
        """Reads a header; what is behind it."""
        data = self._head + data
        if len(data) < 2:
            self._head = data
            return b""
        first, second = data[0], data[1]
        opcode, length, size = first & 0x0F, second & 0x7F, 2
        if first & _RESERVED or second & _MASKED:
            raise _malformed()
        if opcode in _CONTROL:
            if not first & _FIN or length > _MAX_CONTROL_BYTES:
                raise _malformed()
        elif opcode in _DATA if self._message is not None else opcode not in _DATA:
            raise _malformed()
        if (longer := _LENGTHS.get(length)) is not None:
            size += longer[0]
            if len(data) < size:
                self._head = data
                return b""
            length = int.from_bytes(data[2:size])
            if length < longer[1] or length >> 63:
                raise _malformed()
        self._head, head = b"", data[:size]
        self._left = length
        if opcode in _CONTROL:
            self._control = head
        else:
            self._final = bool(first & _FIN)
            if self._message is None:
                self._message = Redactor(self._matcher)
            self._waiting.append(head)
            if length:
                self._waiting.append(length)
                self._leave(b"", leaving)
        if not length:
            self._payload(b"", leaving)
        return data[size:]

    def _payload(self, piece: bytes, leaving: list[bytes]) -> None:
        if self._control is not None:
            self._control += piece
            if not self._left:
                whole, self._control = self._control, None
                clean, count = self._matcher.redact(whole[2:])
                self._count(count)
                self._waiting.append(whole[:2] + clean)
                self._leave(b"", leaving)
            return
        message = self._message
        if message is None:
            raise _malformed()
        before = message.count
        passes = message.feed(piece) if piece else b""
        self._count(message.count - before)
        if not self._left and self._final:
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
