"""Codings that swallow what is around them: bounded by what came over the wire, however deep they lie."""

from __future__ import annotations

import gzip
import itertools
import time
import zlib

import brotli
import pytest
import zstandard

from addons.reply.codings import FREE_BYTES, MEMBER_BYTES, Decoding, Undecodable

MEMBER = gzip.compress(b"", mtime=0)
FRAME = zstandard.compress(b"")
SKIPPED = b"\x50\x2a\x4d\x18\0\0\0\0"  # RFC 8878 section 3.1.2
MANY = 300_000


def grown(zeros: int) -> bytes:
    """A gzip member, the zeros that may stand behind it as padding, all of it in gzip once more."""
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    found = [packed.compress(gzip.compress(b"x", mtime=0))]
    found += [packed.compress(bytes(1 << 20)) for _ in range(zeros >> 20)]
    return b"".join((*found, packed.flush()))


def through(codings: tuple[str, ...], body: bytes, step: int = 65536) -> bytes:
    decoding = Decoding(codings)
    found = [piece for at in range(0, len(body), step) for piece in decoding.feed(body[at : at + step]) if piece]
    decoding.end()
    return b"".join(found)


@pytest.mark.parametrize(
    ("codings", "body"),
    [
        (("gzip", "gzip", "gzip"), gzip.compress(grown(1 << 30))),
        (("gzip", "gzip", "br"), brotli.compress(grown(1 << 30))),
        (("gzip", "gzip"), gzip.compress(MEMBER * MANY)),
        (("zstd", "zstd"), zstandard.compress(FRAME * MANY)),
        (("zstd", "gzip"), gzip.compress(FRAME + SKIPPED * MANY)),
    ],
)
def test_what_an_inner_coding_swallows_is_bounded(codings: tuple[str, ...], body: bytes) -> None:
    """Each was seconds of work on the event loop, for a piece of some kilobytes of which nothing comes out."""
    assert len(body) < 100_000
    began_s = time.monotonic()
    with pytest.raises(Undecodable):
        through(codings, body)
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("step", [1, 13, 8192, 1 << 20])
def test_many_members_are_one_body(coding: str, step: int) -> None:
    """Those of one coding alone never meet the bound that several have (RFC 1952 section 2.2, RFC 8878 section 3.1)."""
    count = 2 * FREE_BYTES // MEMBER_BYTES if step > 13 else 50
    one = gzip.compress(b"part", mtime=0) if coding == "gzip" else zstandard.compress(b"part")
    assert through((coding,), one * count, step) == b"part" * count


@pytest.mark.parametrize("codings", list(itertools.permutations(("gzip", "deflate", "br", "zstd"), 3)))
def test_three_of_them_in_any_order(codings: tuple[str, ...]) -> None:
    packs = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstandard.compress}
    body = text = bytes(range(256)) * 40
    for coding in codings:
        body = packs[coding](body)
    assert through(codings, body, 7) == text
    with pytest.raises(Undecodable):
        through(codings, body[:-1])
