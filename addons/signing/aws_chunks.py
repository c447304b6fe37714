"""Bodies that S3 takes in signed chunks: each chunk's signature is replaced as it passes
(https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html and sigv4-streaming-trailers.html).

A chunk's signature stands before its data and covers it, so one chunk at a time is held, up to a cap. Signatures are of
one length, so the body keeps its own. What is not exactly in this form is refused: the upstream then has a body that is
not complete, and keeps nothing of it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final, NoReturn, final

from addons.head import RequestHead
from addons.refusal import Code, Refusal

CHUNKED: Final = b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
CHUNKED_TRAILER: Final = b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
_EMPTY: Final = hashlib.sha256(b"").hexdigest().encode("ascii")
_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,16});chunk-signature=[0-9a-f]{64}")
_TRAILER: Final = re.compile(rb"([A-Za-z0-9-]{1,128}):[ \t]*([\x20-\x7e]*?)[ \t]*")
_TRAILER_SIGNATURE: Final = re.compile(rb"x-amz-trailer-signature:[0-9a-f]{64}")
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")
MAX_LINE_BYTES: Final = 1024
MAX_TRAILERS: Final = 16


@final
class ChunkSigner:
    """Signs the chunks of one body.

    Args:
        key: of the day, region and service.
        stamp: the time that the head is signed for.
        place: the credential scope.
        seed: the signature of the head.
        head: what the caller sent: whether trailers follow, and how long the content is.
        chunk_bytes: the most that one chunk may have.

    Raises:
        Refusal: `bad_request`; the head does not say how long the content is.
    """

    __slots__ = (
        "_announced", "_chunk_bytes", "_done", "_held", "_key", "_last", "_left", "_line", "_place", "_previous", "_size",
        "_stamp", "_trailer", "_trailers",
    )  # fmt: skip

    def __init__(
        self, key: bytes, stamp: bytes, place: bytes, seed: bytes, head: RequestHead, chunk_bytes: int
    ) -> None:
        self._key, self._stamp, self._place, self._previous = key, stamp, place, seed
        self._chunk_bytes = chunk_bytes
        self._trailer = CHUNKED_TRAILER in head.values(b"x-amz-content-sha256")
        lengths = head.values(b"x-amz-decoded-content-length")
        if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
            raise _bad("X-Amz-Decoded-Content-Length does not say how long it is")
        self._announced = int(lengths[0])
        self._size = 0
        self._held = bytearray()
        self._line = b""
        """The size of the chunk under way, as written."""
        self._left = 0
        """Bytes of it that must be there, its line end included; 0: a line is next."""
        self._last = False
        """Whether the last chunk has been seen: its empty line, or trailers, follow."""
        self._trailers: list[bytes] = []
        self._done = False

    def feed(self, data: bytes) -> bytes:
        """What may leave of the body by now. Empty data is its end.

        Raises:
            Refusal: `bad_request`, `body_too_large`.
        """
        if not data:
            if not self._done:
                raise _bad("it ends in the middle of a chunk")
            return b""
        held = self._held
        held += data
        out: list[bytes] = []
        while held:
            if self._done:
                raise _bad("something follows its last chunk")
            if self._left:
                if len(held) < self._left:
                    break
                out.append(self._chunk(bytes(held[: self._left])))
                del held[: self._left]
                self._left = 0
                continue
            end = held.find(b"\r\n", 0, MAX_LINE_BYTES + 2)
            if end < 0:
                if len(held) > MAX_LINE_BYTES:
                    raise _bad("a line of it is too long")
                break
            line = bytes(held[:end])
            del held[: end + 2]
            out.append(self._trailing(line) if self._last else self._begin(line))
        return b"".join(out)

    def held_bytes(self) -> int:
        """What waits for the end of its chunk."""
        return len(self._held)

    def _begin(self, line: bytes) -> bytes:
        match = _LINE.fullmatch(line)
        if match is None:
            raise _bad("a chunk does not begin with its size and signature")
        size = int(match[1], 16)
        if size > self._chunk_bytes:
            raise Refusal(
                Code.BODY_TOO_LARGE,
                f"A signed chunk may have {self._chunk_bytes} bytes: each is held until it is whole.",
                close=True,
            )
        self._size += size
        if self._size > self._announced or (not size and self._size != self._announced):
            raise _bad("it is not as long as X-Amz-Decoded-Content-Length says")
        self._line = match[1]
        if size:
            self._left = size + 2
            return b""
        self._last = True
        return self._signed(b"")

    def _chunk(self, data: bytes) -> bytes:
        if not data.endswith(b"\r\n"):
            raise _bad("a chunk does not end where its size says")
        content = data[:-2]
        return self._signed(content) + data

    def _signed(self, content: bytes) -> bytes:
        """The line of a chunk, with our signature."""
        digest = hashlib.sha256(content).hexdigest().encode("ascii")
        text = b"\n".join((b"AWS4-HMAC-SHA256-PAYLOAD", self._stamp, self._place, self._previous, _EMPTY, digest))
        self._previous = hmac.digest(self._key, text, "sha256").hex().encode("ascii")
        return self._line + b";chunk-signature=" + self._previous + b"\r\n"

    def _trailing(self, line: bytes) -> bytes:
        """A line behind the last chunk."""
        if not self._trailer:
            if line:
                raise _bad("trailers follow that the head does not announce")
            self._done = True
            return b"\r\n"
        if not line:
            raise _bad("its trailers are not signed")
        if _TRAILER_SIGNATURE.fullmatch(line):
            return self._signed_trailers()
        match = _TRAILER.fullmatch(line)
        if match is None or len(self._trailers) >= MAX_TRAILERS:
            raise _bad("its trailers cannot be read")
        self._trailers.append(match[1].lower() + b":" + match[2] + b"\n")
        return line + b"\r\n"

    def _signed_trailers(self) -> bytes:
        digest = hashlib.sha256(b"".join(sorted(self._trailers))).hexdigest().encode("ascii")
        text = b"\n".join((b"AWS4-HMAC-SHA256-TRAILER", self._stamp, self._place, self._previous, digest))
        signature = hmac.digest(self._key, text, "sha256").hex().encode("ascii")
        # Behind it stands one empty line and nothing else.
        self._trailer = False
        return b"x-amz-trailer-signature:" + signature + b"\r\n"

    def __repr__(self) -> str:
        return "ChunkSigner(…)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("signing keys are not serialised")


def _bad(what: str) -> Refusal:
    return Refusal(Code.BAD_REQUEST, f"The body is not in signed chunks as S3 takes them: {what}.", close=True)
