"""Bodies that are held until they are whole: for what has to read one before the head may leave (signing over a body,
putting a credential into one).

Rules:
- A stage that needs the body puts a `HeldBody` in `requestheaders` and does its work in `request`. The engine reads the
  body into it, runs `request` once it is whole, and only then reaches for an upstream. What leaves is `HeadersToSend`
  with its `body`: the stage builds both, so nothing on the flow shows a credential.
- A body over its cap is refused (`body_too_large`): at once where the head announces its size, else as it comes. What
  this process holds already has a say too: bodies count into `limits.buffers`, above which no more is taken.
- A held body leaves framed by Content-Length, whatever framed it on its way here; its trailers end here, since nothing
  in HTTP/1.1 would carry them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, final

from addons.buffers import Buffers
from addons.edge import content_length
from addons.exchange import Connection, Exchange
from addons.head import Fields, HeadersToSend, RequestHead
from addons.refusal import Code, Refusal

DEFAULT_CAP_BYTES: Final = 8 * 1024 * 1024
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"trailer"})


@final
class HeldBody:
    """The body of one request, as far as it has come.

    Args:
        cap_bytes: of `limits.buffered_body`.
        buffers: what the process holds altogether, where it is counted.
    """

    __slots__ = ("_body", "_buffers", "_cap_bytes", "size")

    def __init__(self, cap_bytes: int, buffers: Buffers | None = None) -> None:
        self._cap_bytes = cap_bytes
        self._buffers = buffers
        self._body = bytearray()
        self.size = 0
        """Bytes that are counted."""

    def announced(self, head: RequestHead) -> None:
        """Judges the size that the head gives, before any of the body is read.

        Raises:
            Refusal: `body_too_large`.
        """
        size = content_length(head.fields)
        if size is not None and size > self._cap_bytes:
            raise self._too_large()

    def add(self, piece: bytes) -> None:
        """Takes what has come.

        Raises:
            Refusal: `body_too_large`, or `overloaded` where the process holds too much already. Nothing is kept then.
        """
        self.size += len(piece)
        if self.size > self._cap_bytes:
            self._drop()
            raise self._too_large()
        if self._buffers is not None and self._buffers.full:
            self._drop()
            raise Refusal(Code.OVERLOADED, "The proxy holds too much right now.", retry_after_s=1.0, close=True)
        # Not a list of pieces: of a body that comes two bytes at a time it would take many times what is counted.
        self._body += piece

    def whole(self) -> bytes:
        """All of it, once it has ended. It is not kept here any longer, but counted until what leaves is ready."""
        body, self._body = bytes(self._body), bytearray()
        return body

    def _drop(self) -> None:
        self._body, self.size = bytearray(), 0

    def _too_large(self) -> Refusal:
        return Refusal(
            Code.BODY_TOO_LARGE,
            f"This route has to read the whole body before it may leave, and takes at most {self._cap_bytes} bytes.",
            close=True,
        )

    def __repr__(self) -> str:
        return f"HeldBody({self.size} bytes)"


class Rewriter(Protocol):
    """Makes what leaves of a body of what comes, and holds a part of it meanwhile."""

    def feed(self, data: bytes) -> bytes:
        """What may leave by now; empty data is the end. Raises `Refusal`."""

    def held_bytes(self) -> int:
        """What is held now."""


class _Counted:
    """What a rewriter holds, for as long as its exchange goes on."""

    def __init__(self, exchange: Exchange, rewriter: Rewriter) -> None:
        self._exchange = exchange
        self._rewriter = rewriter

    def held_bytes(self) -> int:
        return 0 if self._exchange.settled else self._rewriter.held_bytes()


def rewriting(exchange: Exchange, rewriter: Rewriter, buffers: Buffers | None) -> Callable[[bytes], bytes]:
    """What rewrites a body as it passes, counted into what the process holds.

    Args:
        exchange: whose body it is.
        rewriter: does it.
        buffers: what the process holds altogether; above its limit no more is taken (`overloaded`).
    """
    if buffers is None:
        return rewriter.feed
    counted = _Counted(exchange, rewriter)

    def rewrite(data: bytes) -> bytes:
        if buffers.full:
            raise Refusal(Code.OVERLOADED, "The proxy holds too much right now.", retry_after_s=1.0, close=True)
        made = rewriter.feed(data)
        if rewriter.held_bytes():
            buffers.watch(counted)
        return made

    return rewrite


def held_bytes(connection: Connection) -> int:
    """What is held of the bodies of one connection's requests: as far as they have come, while a secret is read, and until an
    upstream is reached.
    """
    found = 0
    for exchange in connection.exchanges:
        body, ready = exchange.find(HeldBody), exchange.find(HeadersToSend)
        if body is not None:
            found += body.size
        if ready is not None and ready.body is not None:
            found += len(ready.body)
    return found


def framed(fields: Fields, size: int, *, http2: bool) -> Fields:
    """Fields that frame a body of this size by Content-Length.

    Args:
        fields: of the request; what framed it before is taken out.
        size: of the body in bytes. Where it is 0 and no field framed a body, none does now: a GET stays as it was.
        http2: whether names are lower-case.
    """
    kept = tuple([field for field in fields if field[0].lower() not in _FRAMING])
    if not size and len(kept) == len(fields):
        return fields
    return (*kept, (b"content-length" if http2 else b"Content-Length", str(size).encode()))
