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

    __slots__ = ("_held", "_pieces", "_size_bytes", "whole")

    def __init__(self, held: HeldBodies) -> None:
        self._held = held
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self.whole = True
        """Whether everything that has left is kept."""

    def add(self, piece: bytes) -> None:
        """These bytes leave."""
        if not self.whole:
            return
        size_bytes = self._size_bytes + len(piece)
        if size_bytes > MAX_BODY_BYTES or self._held.held_bytes + len(piece) > self._held.most_bytes:
            self.release()
            return
        self._pieces.append(piece)
        self._size_bytes = size_bytes
        self._held.held_bytes += len(piece)

    def take(self) -> tuple[bytes, ...]:
        """What has left; kept no more."""
        pieces = tuple(self._pieces)
        self.release()
        return pieces

    def release(self) -> None:
        """It will not be asked for."""
        self._held.held_bytes -= self._size_bytes
        self._size_bytes, self.whole = 0, False
        self._pieces.clear()

    def __del__(self) -> None:
        self.release()
