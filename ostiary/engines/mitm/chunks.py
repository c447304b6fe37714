"""Chunked bodies, read strictly and in bounded memory (RFC 9112 section 7.1), in both directions.

Size lines, extensions and trailers are capped, so that a body that never ends cannot hide in them. Trailers are kept
apart: merged into a head they would be fields that no stage has judged (section 7.1.2).
"""

from __future__ import annotations

import re
from typing import Final

import h11
from h11._receivebuffer import ReceiveBuffer

from addons.head import Fields
from addons.trailers import MAX_TRAILER_BYTES

MAX_LINE_BYTES: Final = 1024
"""Of a size with its extensions."""
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)\r\n")


class StrictChunks:
    """Takes a chunked body apart. Called with the buffer until it has nothing more to give, as h11's readers are."""

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the open chunk that are still to come."""
        self._inside = False
        self._trailer_bytes = -1
        """Read of the trailer section; -1 before it."""
        self._fields: list[tuple[bytes, bytes]] = []

    @property
    def trailers(self) -> Fields:
        return tuple(self._fields)

    def __call__(self, buffer: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._trailer_bytes >= 0:
            return self._trailers(buffer)
        if self._inside and not self._left:
            end = buffer.maybe_extract_at_most(2) if len(buffer) >= 2 else None
            if end is None:
                return None
            if bytes(end) != b"\r\n":
                raise h11.LocalProtocolError("a chunk is longer than it says")
            self._inside = False
        if not self._inside:
            line = _line(buffer, MAX_LINE_BYTES)
            if line is None:
                return None
            size = _SIZE.fullmatch(line)
            if size is None:
                raise h11.LocalProtocolError("a chunk has no size")
            self._left = int(size[1], 16)
            if not self._left:
                self._trailer_bytes = 0
                return self._trailers(buffer)
            self._inside = True
        data = buffer.maybe_extract_at_most(self._left)
        if data is None:
            return None
        self._left -= len(data)
        return h11.Data(data=bytes(data))

    def _trailers(self, buffer: ReceiveBuffer) -> h11.EndOfMessage | None:
        while (line := _line(buffer, MAX_TRAILER_BYTES)) is not None:
            if line == b"\r\n":
                return h11.EndOfMessage()
            self._trailer_bytes += len(line)
            field = _TRAILER.fullmatch(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES or field is None:
                raise h11.LocalProtocolError("the trailers are malformed or too large")
            self._fields.append((field[1], field[2].rstrip(b" \t")))
        return None

    def read_eof(self) -> h11.EndOfMessage:
        raise h11.RemoteProtocolError("the body was cut off")


def _line(buffer: ReceiveBuffer, limit: int) -> bytes | None:
    """The next line; None while it is not whole."""
    line = buffer.maybe_extract_next_line()
    if line is None:
        held = bytes(buffer) if len(buffer) <= limit else None
        if held is None or b"\n" in held:
            raise h11.LocalProtocolError("a line of a chunked body is too long or ends in a bare LF")
        return None
    if len(line) > limit:
        raise h11.LocalProtocolError("a line of a chunked body is too long")
    return bytes(line)
