"""Bodies that are kept as they leave, so that a request whose credential is rejected can be sent once more, byte for byte.

Bounded for each request and in all: what does not fit is not kept, and its request cannot be sent again. That costs such
a request nothing but the second try.
"""

from __future__ import annotations

from typing import Final

MAX_BODY_BYTES: Final = 64 * 1024
MAX_BYTES: Final = 16 * 1024 * 1024


class HeldBodies:
    """What one process keeps."""

    def __init__(self, most_bytes: int = MAX_BYTES) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0

    def begin(self) -> HeldBody:
        """The body of one request begins to leave."""
        return HeldBody(self)


class HeldBody:
    """One body. Gives its room back when it is released, or when the last reference to it goes."""

    __slots__ = ("_body", "_held", "whole")

    def __init__(self, held: HeldBodies) -> None:
        self._held = held
        # Not a list of pieces, which would take many times what is counted where they are small.
        self._body = bytearray()
        self.whole = True
        """Whether everything that has left is kept."""

    def add(self, piece: bytes) -> None:
        """These bytes leave."""
        if not self.whole:
            return
        size_bytes = len(self._body) + len(piece)
        if size_bytes > MAX_BODY_BYTES or self._held.held_bytes + len(piece) > self._held.most_bytes:
            self.release()
            return
        self._body += piece
        self._held.held_bytes += len(piece)

    def take(self) -> bytes:
        """What has left; kept no more."""
        body = bytes(self._body)
        self.release()
        return body

    def release(self) -> None:
        """It will not be asked for."""
        self._held.held_bytes -= len(self._body)
        self._body, self.whole = bytearray(), False

    def __del__(self) -> None:
        self.release()
