"""Takes content codings off an answer's body as it comes (RFC 9110 section 8.4.1, RFC 7932, RFC 8878): gzip, deflate, br, zstd.

Rules:
- Bounded: what one piece of a body may become is known before the next is asked for, and a body that grows out of all
  proportion is given up (`Undecodable`). Each of several codings is held to what came over the wire, not to what the one
  around it made: they would multiply, and what the inner one swallows is work that nobody is asked for in between.
- Strict: a body that ends in the middle of its coding is given up too. Its caller can no longer see that it was cut.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import brotli
import zstandard

from addons.head import Fields

CODINGS: Final = ("gzip", "deflate", "br", "zstd")
MAX_CODINGS: Final = 3
"""On one body. More are no answer of an API."""
STEP_BYTES: Final = 256 * 1024
"""What a decoder gives at a time, roughly."""
MAX_RATIO: Final = 200
FREE_BYTES: Final = 8 * 1024 * 1024
"""A body may grow to this size whatever its ratio."""
MEMBER_BYTES: Final = 2048
"""What a gzip member, or a frame of zstd, counts for beside its content: it is work even where it is empty."""
_ZLIB_SLICE_BYTES: Final = 8 * 1024
"""`zlib` copies what is behind a member at its end."""
_ZSTD_SLICE_BYTES: Final = 256
"""A block of four bytes can stand for 128 KiB."""
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""What RFC 8878 section 3.1.1.1.2 recommends to accept at most."""
_NAMES: Final = {b"gzip": "gzip", b"x-gzip": "gzip", b"deflate": "deflate", b"br": "br", b"zstd": "zstd"}


class Undecodable(ValueError):
    """The body is not what its coding says, is cut off, or grows too much."""


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """What it becomes; an empty piece where a member or a frame begins."""
        ...

    @property
    def open(self) -> bool:
        """Whether the coding has begun and not ended."""
        ...


class _Zlib:
    """gzip and deflate. Several gzip members are one body (RFC 1952 section 2.2)."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._inflate = zlib.decompressobj(wbits=31) if gzip else None
        self.open = False
        self._ended = False
        self._first = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            self._first += data
            if len(self._first) < 2:
                self.open = self.open or bool(data)
                return
            # "deflate" is the zlib format; some servers send it without its frame.
            wrapped = self._first[0] & 0x0F == 8 and int.from_bytes(self._first[:2]) % 31 == 0
            self._inflate = zlib.decompressobj(wbits=15 if wrapped else -15)
            data, self._first = self._first, b""
        for at in range(0, len(data), _ZLIB_SLICE_BYTES):
            yield from self._slice(data[at : at + _ZLIB_SLICE_BYTES])

    def _slice(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._ended:
                data = data.lstrip(b"\x00")  # padding behind the last member
                if not data:
                    return
                if not self._gzip:
                    raise Undecodable
                self._inflate = zlib.decompressobj(wbits=31)
                yield b""
            inflate = self._inflate
            if inflate is None:
                return
            self._ended, self.open = False, True
            yield from self._member(inflate, data)
            data = inflate.unused_data
            if inflate.eof:
                self._ended, self.open = True, False

    @staticmethod
    def _member(inflate: zlib._Decompress, data: bytes) -> Iterator[bytes]:
        while True:
            found = inflate.decompress(data, STEP_BYTES)
            if found:
                yield found
            data = inflate.unconsumed_tail
            if inflate.eof or (not data and len(found) < STEP_BYTES):
                return


class _Brotli:
    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()
        self.open = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not data:
            return
        if self._decoder.is_finished():
            raise Undecodable
        self.open = True
        while True:
            found = self._decoder.process(data, output_buffer_limit=STEP_BYTES)
            data = b""
            if found:
                yield found
            if self._decoder.is_finished():
                self.open = False
                return
            if self._decoder.can_accept_more_data():
                return


class _Zstd:
    def __init__(self) -> None:
        self._source = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame = self._source.decompressobj()
        self.open = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), _ZSTD_SLICE_BYTES):
            rest = data[at : at + _ZSTD_SLICE_BYTES]
            while rest:
                if self._frame.eof:
                    self._frame = self._source.decompressobj()
                    yield b""
                found = self._frame.decompress(rest)
                self.open = not self._frame.eof
                if found:
                    yield found
                rest = self._frame.unused_data if self._frame.eof else b""


def _decoder(name: str) -> _Decoder:
    match name:
        case "br":
            return _Brotli()
        case "zstd":
            return _Zstd()
        case _:
            return _Zlib(gzip=name == "gzip")


class _Layer:
    """One coding, and how much it has made."""

    __slots__ = ("decoder", "given_bytes")

    def __init__(self, decoder: _Decoder) -> None:
        self.decoder = decoder
        self.given_bytes = 0


class Decoding:
    """One body on its way out of its codings.

    Args:
        codings: of `CODINGS`, in the order they were put on.
    """

    def __init__(self, codings: Sequence[str]) -> None:
        self._layers = [_Layer(_decoder(name)) for name in reversed(codings)]
        self._most_bytes = FREE_BYTES
        """What one coding may have made of all that has come."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What this piece becomes; no piece of it is empty.

        Raises:
            Undecodable: it is no such coding, or has become too much.
        """
        self._most_bytes += MAX_RATIO * len(data)
        try:
            yield from self._through(0, data)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            raise Undecodable("the body is not what its coding says") from None

    def _through(self, depth: int, data: bytes) -> Iterator[bytes]:
        if depth == len(self._layers):
            yield data
            return
        layer = self._layers[depth]
        for found in layer.decoder.feed(data):
            layer.given_bytes += len(found) or MEMBER_BYTES
            if layer.given_bytes > self._most_bytes:
                raise Undecodable("the body grows too much")
            if found:
                yield from self._through(depth + 1, found)

    def end(self) -> None:
        """The body has ended.

        Raises:
            Undecodable: in the middle of a coding.
        """
        if any(layer.decoder.open for layer in self._layers):
            raise Undecodable("the body is cut off")


def codings_of(fields: Fields) -> tuple[str, ...] | None:
    """The codings of a body by its head, in the order they were put on; None where one is unknown or there are too many."""
    found: list[str] = []
    for name, value in fields:
        if len(name) == len(b"content-encoding") and name.lower() == b"content-encoding":
            for token in value.lower().split(b","):
                coding = token.strip(b" \t")
                if coding in {b"", b"identity"}:
                    continue
                known = _NAMES.get(coding)
                if known is None or len(found) == MAX_CODINGS:
                    return None
                found.append(known)
    return tuple(found)


def narrowed(value: bytes) -> bytes:
    """An `Accept-Encoding` without what could not be decoded here (RFC 9110 section 12.5.3). `*` would let any coding in; where
    nothing is left, `identity` is.
    """
    kept: list[bytes] = []
    for item in value.split(b","):
        coding = item.partition(b";")[0].strip(b" \t").lower()
        if coding in _NAMES or coding == b"identity":
            kept.append(item.strip(b" \t"))
    return b", ".join(kept) or b"identity"
