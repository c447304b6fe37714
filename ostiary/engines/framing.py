"""Message bodies on the wire: where a body ends, and how one is written (RFC 9112 sections 6 and 7).

Readers are given bytes as they come and give back what of them is body and, once the body has ended, what was behind
it. They are strict: a chunk line that two parsers could read in two ways is refused, never repaired. Nothing here knows
sockets, flows or policies.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from addons.head import Fields
from addons.trailers import MAX_TRAILER_BYTES, lines

MAX_CHUNK_LINE_BYTES: Final = 4096
LAST_CHUNK: Final = b"0\r\n\r\n"

# chunk-size [ chunk-ext ] of section 7.1; sixteen hexadecimal digits are more than any body has.
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")


class Malformed(ValueError):
    """The bytes frame no body."""


class BodyReader(Protocol):
    """Finds the end of one body."""

    trailers: Fields
    until_close: bool
    """Whether the end of the connection is the end of the body."""

    def read(self, data: bytes) -> tuple[bytes, bytes | None]:
        """What of `data` is body, and what is behind its end (None: it goes on).

        Raises:
            Malformed: the bytes can be read in two ways, or in none.
        """
        ...


class Sized:
    """A body of Content-Length."""

    __slots__ = ("_left",)
    trailers: Fields = ()
    until_close = False

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, data: bytes) -> tuple[bytes, bytes | None]:
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data, None
        self._left = 0
        if len(data) == left:
            return data, b""
        return data[:left], data[left:]


class UntilClose:
    """An answer that ends with its connection."""

    __slots__ = ()
    trailers: Fields = ()
    until_close = True

    def read(self, data: bytes) -> tuple[bytes, bytes | None]:
        return data, None


class Chunked:
    """A body of chunks. What has been taken apart is given on at once, the rest of a chunk line is kept."""

    __slots__ = ("_fields", "_held", "_left", "_trailer_bytes", "_trailing", "trailers")
    until_close = False

    def __init__(self) -> None:
        self._held = b""
        self._left = 0
        """Bytes of the chunk under way, its line end included; 0: a chunk line is next."""
        self._trailing = False
        self._trailer_bytes = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self.trailers: Fields = ()

    def read(self, data: bytes) -> tuple[bytes, bytes | None]:
        if self._held:
            data, self._held = self._held + data, b""
        found: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                found.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            if self._left:
                at = self._line_end(data, at)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._hold(data[at:])
                break
            line = self._line(data, at, end)
            at = end + 1
            if self._trailing:
                if self._trailer(line):
                    return b"".join(found), data[at:]
                continue
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise Malformed("a chunk line is malformed")
            length = int(match[1], 16)
            self._left = length + 2 if length else 0
            self._trailing = not length
        return found[0] if len(found) == 1 else b"".join(found), None

    def _line_end(self, data: bytes, at: int) -> int:
        """The CR LF behind the data of a chunk, byte by byte where it is split."""
        expected = b"\r\n"[2 - self._left :]
        given = data[at : at + self._left]
        if not expected.startswith(given):
            raise Malformed("a chunk does not end where its size says")
        self._left -= len(given)
        return at + len(given)

    def _line(self, data: bytes, at: int, end: int) -> bytes:
        if end - at > MAX_CHUNK_LINE_BYTES or data[end - 1 : end] != b"\r" or end - 1 < at:
            raise Malformed("a line of the chunked coding does not end in CR LF, or is too long")
        return data[at : end - 1]

    def _hold(self, rest: bytes) -> None:
        if len(rest) > MAX_CHUNK_LINE_BYTES:
            raise Malformed("a line of the chunked coding is too long")
        self._held = rest

    def _trailer(self, line: bytes) -> bool:
        """Takes a line of the trailer section; true where it was the last."""
        if not line:
            self.trailers = tuple(self._fields)
            return True
        self._trailer_bytes += len(line)
        match = _FIELD.fullmatch(line)
        if match is None or self._trailer_bytes > MAX_TRAILER_BYTES:
            raise Malformed("the trailer section is malformed or too long")
        self._fields.append((match[1], match[2]))
        return False


def reader_of(size: int | None) -> BodyReader | None:
    """The reader for a body.

    Args:
        size: bytes; None where it is chunked, -1 where it ends with the connection, 0 where there is none.
    """
    if size == 0:
        return None
    if size is None:
        return Chunked()
    return UntilClose() if size < 0 else Sized(size)


def chunk(data: bytes) -> bytes:
    """One chunk; `data` is not empty (an empty one would end the body)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: Fields) -> bytes:
    """The end of a chunked body."""
    return b"0\r\n" + lines(trailers) if trailers else LAST_CHUNK
