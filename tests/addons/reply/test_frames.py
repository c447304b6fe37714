"""Frames of an upstream without the credential, however they are cut."""

from __future__ import annotations

import base64
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.refusal import Code, Refusal
from addons.reply.frames import Frames
from addons.reply.scrub import Scrub, Scrubs
from vault.secret import Secret

KEY = "cnry-frames-0123456789abcdef"
FORMS = [KEY.encode(), base64.b64encode(KEY.encode()), KEY.encode().hex().encode()]


def scrub(mode: str = "scrub") -> Scrub:
    return Scrubs("block" if mode == "block" else "scrub").of("api", (Secret(KEY),), ())


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True) -> bytes:
    size = len(payload)
    length = (
        bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 1 << 16 else b"\x7f" + size.to_bytes(8)
    )
    return bytes([fin << 7 | opcode]) + length + payload


def parsed(data: bytes) -> list[tuple[int, bytes]]:
    """First byte and payload of each frame."""
    found = []
    while data:
        size, at = data[1], 2
        if size > 125:
            at += 2 if size == 126 else 8
            size = int.from_bytes(data[2:at])
        found.append((data[0], data[at : at + size]))
        assert len(found[-1][1]) == size
        data = data[at + size :]
    return found


def fed(data: bytes, cuts: list[int], frames: Frames) -> bytes:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(frames.feed(data[a:b]) for a, b in itertools.pairwise(edges))


PIECES = st.one_of(st.binary(max_size=200), st.sampled_from(FORMS), st.sampled_from([b"", b"cnry", KEY[:9].encode()]))
MESSAGES = st.lists(
    st.tuples(st.lists(PIECES, min_size=1, max_size=4), st.lists(st.integers(0, 600), max_size=4), st.booleans()),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(MESSAGES, st.lists(st.integers(0, 5000), max_size=12))
def test_any_fragments_cut_anywhere(messages: list[tuple[list[bytes], list[int], bool]], cuts: list[int]) -> None:
    """Frame by frame the same lengths; no form of the secret in any message; byte for byte where there was none."""
    sent, texts = b"", []
    for pieces, edges, pings in messages:
        text = b"".join(pieces)
        texts.append(text)
        bounds = [0, *sorted(edge % (len(text) + 1) for edge in edges), len(text)]
        parts = [text[a:b] for a, b in itertools.pairwise(bounds)]
        for number, part in enumerate(parts):
            sent += frame(part, 0 if number else 2, fin=number == len(parts) - 1)
            if pings:
                sent += frame(b"ping " + FORMS[0][:4], 9)
    frames = Frames(scrub())
    given_, got = parsed(sent), parsed(fed(sent, cuts, frames))
    assert [(first, len(payload)) for first, payload in got] == [(first, len(payload)) for first, payload in given_]
    messages_got: list[bytes] = []
    for first, payload in got:
        if first & 0x0F == 9:
            continue
        if first & 0x0F:
            messages_got.append(b"")
        messages_got[-1] += payload
    for text, clean in zip(texts, messages_got, strict=True):
        assert not any(form in clean for form in FORMS)
        if not scrub().matcher.finds(text):
            assert clean == text
    assert bool(frames.redactions) == any(scrub().matcher.finds(text) for text in texts)


def test_a_control_frame_shows_nothing_either() -> None:
    frames = Frames(scrub())
    got = parsed(frames.feed(frame(b"\x03\xe8" + FORMS[0], 8)))
    assert got == [(0x88, b"\x03\xe8" + b"*" * len(FORMS[0]))]
    assert frames.redactions == 1


@pytest.mark.parametrize("data", [frame(b"x" + FORMS[0]), frame(FORMS[1], 2), frame(FORMS[0], 9)])
def test_a_route_that_blocks(data: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        Frames(scrub("block")).feed(data)
    assert refused.value.code is Code.REPLY_BLOCKED


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1\x01x",  # RSV1: compressed
        b"\x91\x01x",
        b"\x81\x81mask\x00",  # masked
        b"\x83\x01x",  # reserved opcodes
        b"\x8b\x00",
        b"\x09\x00",  # a fragmented ping
        b"\x89\x7e\x00\x7e" + b"x" * 126,  # a long ping
        b"\x80\x01x",  # a continuation of nothing
        frame(b"x", fin=False) + frame(b"y"),  # a message inside another
        frame(b"x", fin=False) + frame(b"y", 3),  # reserved opcodes inside a message
        frame(b"x", fin=False) + frame(b"", 0xB),
        b"\x81\x7e\x00\x05hello",  # lengths that are not the shortest
        b"\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff",
        b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_what_is_no_frame_of_a_server(data: bytes) -> None:
    for step in (1, len(data)):
        frames = Frames(scrub())
        with pytest.raises(Refusal) as refused:
            for at in range(0, len(data), step):
                frames.feed(data[at : at + step])
        assert refused.value.code is Code.UPSTREAM_PROTOCOL


@pytest.mark.parametrize("frames_", [frame(b"p" * 125, 9), frame(b"", 0, fin=False)])
def test_what_waits_inside_a_message_is_bounded(frames_: bytes) -> None:
    """Behind the beginning of a secret an upstream sends pings, or empty fragments, for ever."""
    frames = Frames(scrub())
    passed = frames.feed(frame(KEY[:12].encode(), fin=False))
    with pytest.raises(Refusal) as refused:
        for _ in range(10_000):
            passed += frames.feed(frames_ * 10)
    assert refused.value.code is Code.UPSTREAM_PROTOCOL
    assert len(passed) < 20


def test_the_bound_is_not_met_by_fragments_of_one_byte() -> None:
    """Not even where all of them are those of a secret: they wait, and leave with fill."""
    key = "cnry-frames-" + "0123456789abcdef" * 256
    frames = Frames(Scrubs("scrub").of("api", (Secret(key),), ()))
    sent = b"".join(frame(digit.encode(), 0 if at else 1, fin=False) for at, digit in enumerate(key.encode().hex()))
    sent += frame(b"", 0)
    got = parsed(b"".join(frames.feed(sent[at : at + 3]) for at in range(0, len(sent), 3)))
    assert len(got) == 2 * len(key) + 1
    assert b"".join(payload for _, payload in got).count(b"*") >= 2 * len(key) - 3
    assert frames.redactions == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\x8a\x00" * (1 << 18),
        b"\x81\x01x" * (1 << 18),
        frame(b"x", fin=False) + b"\x00\x01x" * (1 << 18),
        frame(b"x", fin=False) + b"\x00\x00" * (1 << 18),
    ],
)
def test_many_small_frames_in_one_read(data: bytes) -> None:
    """The time of each does not grow with what is behind it: a quarter of a million take a second, where they took minutes."""
    frames = Frames(scrub())
    began_s = time.monotonic()
    assert frames.feed(data) == data
    assert time.monotonic() - began_s < 30


def test_a_frame_leaves_before_it_is_whole() -> None:
    frames = Frames(scrub())
    assert frames.feed(b"\x82\x7f" + (1 << 40).to_bytes(8)) == b"\x82\x7f" + (1 << 40).to_bytes(8)
    assert len(frames.feed(b"x" * 100_000)) == 100_000
