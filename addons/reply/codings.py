"""Takes content codings off an answer's body as it comes (RFC 9110 section 8.4.1, RFC 7932, RFC 8878): gzip, deflate, br, zstd.

Rules:
- Bounded: what one piece of a body may become is known before the next is asked for, and a body that grows out of all
  proportion is given up (`Undecodable`).
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
_ZSTD_SLICE_BYTES: Final = 256
"""A block of four bytes can stand for 128 KiB."""
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""What RFC 8878 section 3.1.1.1.2 recommends to accept at most."""
_NAMES: Final = {b"gzip": "gzip", b"x-gzip": "gzip", b"deflate": "deflate", b"br": "br", b"zstd": "zstd"}


class Undecodable(ValueError):
    """The body is not what its coding says, is cut off, or grows too much."""


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...

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
        while data:
            if self._ended:
                data = data.lstrip(b"\x00")  # padding behind the last member
                if not data:
                    return
                if not self._gzip:
                    raise Undecodable
                self._inflate = zlib.decompressobj(wbits=31)
            self._ended, self.open = False, True
            yield from self._member(data)
            data = self._inflate.unused_data
            if self._inflate.eof:
                self._ended, self.open = True, False

    def _member(self, data: bytes) -> Iterator[bytes]:
        inflate = self._inflate
        if inflate is None:
            return
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
    """One coding, and how much it has made of how little."""

    def __init__(self, decoder: _Decoder) -> None:
        self.decoder = decoder
        self._taken_bytes = 0
        self._given_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._taken_bytes += len(data)
        for found in self.decoder.feed(data):
            self._given_bytes += len(found)
            if self._given_bytes > FREE_BYTES + MAX_RATIO * self._taken_bytes:
                raise Undecodable("the body grows too much")
            yield found


class Decoding:
    """One body on its way out of its codings.

    Args:
        codings: of `CODINGS`, in the order they were put on.
    """

    def __init__(self, codings: Sequence[str]) -> None:
        self._layers = [_Layer(_decoder(name)) for name in reversed(codings)]

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What this piece becomes.

        Raises:
            Undecodable: it is no such coding, or has become too much.
        """
        try:
            yield from self._through(0, data)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            raise Undecodable("the body is not what its coding says") from None

    def _through(self, depth: int, data: bytes) -> Iterator[bytes]:
        if depth == len(self._layers):
            yield data
            return
        for found in self._layers[depth].feed(data):
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
