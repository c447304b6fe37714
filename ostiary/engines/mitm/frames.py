"""Counts HTTP/2 frames before anything takes them apart, and says when a caller floods (G48).

A frame of nine bytes can cost a whole request (rapid reset, CVE-2023-44487), an answer (PING, SETTINGS), or nothing but
work (empty DATA, PRIORITY, CONTINUATION that does not end). Each kind has a budget for an interval; window updates have
one that grows with what was sent, since a reader gives one for each piece it has read. What both sides reset counts
alike: a caller can make us reset streams by frames that are wrong on purpose (CVE-2025-8671).
"""

from __future__ import annotations

from typing import Final

INTERVAL_S: Final = 10.0
MAX_FRAME_BYTES: Final = 1 << 17
"""What mitmproxy tells callers that a frame may hold."""
MAX_BLOCK_FRAMES: Final = 16
"""HEADERS with its CONTINUATION frames."""
MAX_HEADS: Final = 200
"""HEADERS frames of one read: twice the streams that may be open, for their trailers. What a read holds is taken apart at
once, so no answer has told the caller that it may open more."""
BYTES_PER_UPDATE: Final = 512
"""What must have been sent for a window update beyond the budget."""

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
_END_STREAM: Final = 1
_ACK: Final = 1
_END_HEADERS: Final = 4
_HEAD_BYTES: Final = 9

BUDGET: Final[dict[str, int]] = {
    "RST_STREAM": 200,
    "SETTINGS": 50,
    "PING": 1000,
    "PRIORITY": 200,
    "empty DATA": 200,
    "WINDOW_UPDATE": 2000,
    "unknown": 100,
}
"""Frames of a kind for each interval and connection."""
_PREFACE_BYTES: Final = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


class Flooded(Exception):
    """A caller sends more of something than any client needs."""


class FrameMeter:
    """Follows both directions of one connection.

    Args:
        block_bytes: cap of one header block, compressed.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._inbound = _Walker(skip=_PREFACE_BYTES)
        self._outbound = _Walker(skip=0)
        self._counts: dict[str, int] = dict.fromkeys(BUDGET, 0)
        self._since_s = 0.0
        self._sent_bytes = 0
        self._block: tuple[int, int] | None = None
        self.block_since_s: float | None = None
        """When the header block that has not ended began."""

    def received(self, data: bytes, now_s: float) -> None:
        """Counts what the caller sent.

        Raises:
            Flooded: it is not to be given to anything else.
        """
        if now_s - self._since_s >= INTERVAL_S:
            self._counts = dict.fromkeys(BUDGET, 0)
            self._since_s, self._sent_bytes = now_s, 0
        if self._counts["RST_STREAM"] > BUDGET["RST_STREAM"]:
            raise Flooded("too many streams were reset")
        heads = 0
        for kind, flags, length in self._inbound.frames(data):
            heads += kind == HEADERS
            if heads > MAX_HEADS:
                raise Flooded("more streams than can be open")
            if length > MAX_FRAME_BYTES:
                raise Flooded("a frame is too large")
            self._count(kind, flags, length, now_s)

    def sent(self, data: bytes) -> None:
        """Counts what was sent to the caller."""
        self._sent_bytes += len(data)
        for kind, _, _ in self._outbound.frames(data):
            if kind == RESET:
                # Not refused here: what the caller sends next is.
                self._counts["RST_STREAM"] += 1

    def _count(self, kind: int, flags: int, length: int, now_s: float) -> None:
        match kind:
            case 0:  # DATA
                if not length and not flags & _END_STREAM:
                    self._spend("empty DATA")
            case 1 | 9:  # HEADERS, CONTINUATION
                frames, size = (0, 0) if kind == HEADERS or self._block is None else self._block
                if frames == 0:
                    self.block_since_s = now_s
                frames, size = frames + 1, size + length
                if size > self._block_bytes or frames > MAX_BLOCK_FRAMES:
                    raise Flooded("a header block does not end")
                self._block = (frames, size)
                if flags & _END_HEADERS:
                    self._block = self.block_since_s = None
            case 2:  # PRIORITY
                self._spend("PRIORITY")
            case 3:  # RST_STREAM
                self._spend("RST_STREAM")
            case 4:  # SETTINGS
                if not flags & _ACK:
                    self._spend("SETTINGS")
            case 6:  # PING
                if not flags & _ACK:
                    self._spend("PING")
            case 7:  # GOAWAY
                pass
            case 8:  # WINDOW_UPDATE
                self._spend("WINDOW_UPDATE", beyond=self._sent_bytes // BYTES_PER_UPDATE)
            case _:
                self._spend("unknown")

    def _spend(self, what: str, beyond: int = 0) -> None:
        self._counts[what] += 1
        if self._counts[what] > BUDGET[what] + beyond:
            raise Flooded(f"too many {what} frames")


class _Walker:
    """Finds the heads of frames in a stream of bytes; keeps less than one head."""

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._held = b""

    def frames(self, data: bytes) -> list[tuple[int, int, int]]:
        """Type, flags and length of each frame whose head is complete."""
        found: list[tuple[int, int, int]] = []
        if self._skip >= len(data):
            self._skip -= len(data)
            return found
        data, at = (self._held + data, 0) if self._held else (data, self._skip)
        self._held, self._skip = b"", 0
        while len(data) - at >= _HEAD_BYTES:
            length = int.from_bytes(data[at : at + 3])
            found.append((data[at + 3], data[at + 4], length))
            at += _HEAD_BYTES + length
        if at > len(data):
            self._skip = at - len(data)
        else:
            self._held = data[at:]
        return found
