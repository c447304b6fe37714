"""Frames of an upstream without the credential, however they are cut."""

from __future__ import annotations

import base64
import itertools

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


def test_a_frame_leaves_before_it_is_whole() -> None:
    frames = Frames(scrub())
    assert frames.feed(b"\x82\x7f" + (1 << 40).to_bytes(8)) == b"\x82\x7f" + (1 << 40).to_bytes(8)
    assert len(frames.feed(b"x" * 100_000)) == 100_000
