"""Bodies on the wire: every shape of RFC 9112 sections 6 and 7, however the bytes are cut, and beside another decoder."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addons.head import Fields
from addons.trailers import MAX_TRAILER_BYTES
from ostiary.engines.framing import (
    MAX_CHUNK_LINE_BYTES,
    BodyReader,
    Chunked,
    Malformed,
    Sized,
    UntilClose,
    chunk,
    last_chunk,
    reader_of,
)

type Read = tuple[bytes, bytes | None, Fields]


def read(reader: BodyReader, pieces: Iterable[bytes]) -> Read:
    """Payload, what is behind the end (None: the body goes on), trailers. As its users do, asks no further behind the end."""
    payload, rest = b"", None
    for piece in pieces:
        if rest is not None:
            rest += piece
            continue
        found, rest = reader.read(piece)
        payload += found
    return payload, rest, reader.trailers


def cut(raw: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(raw) + 1) for place in places}), len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(edges) if start != end]


def every_byte(raw: bytes) -> list[bytes]:
    return [raw[at : at + 1] for at in range(len(raw))]


GOOD: list[tuple[str, bytes, bytes, bytes, Fields]] = [
    ("nothing", b"0\r\n\r\n", b"", b"", ()),
    ("one chunk", b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"", ()),
    ("two chunks and the next request", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\nGET /", b"abc", b"GET /", ()),
    ("digits of both cases", b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, b"", ()),
    ("leading zeros", b"0005\r\nhello\r\n000\r\n\r\n", b"hello", b"", ()),
    ("sixteen digits", b"0000000000000001\r\nx\r\n0\r\n\r\n", b"x", b"", ()),
    ("an extension", b"1;a\r\nx\r\n0;b=c\r\n\r\n", b"x", b"", ()),
    ("an extension with a quoted value", b'1;a="b;c d"\r\nx\r\n0\r\n\r\n', b"x", b"", ()),
    ("extensions with spaces", b"1; a = b ;c\r\nx\r\n0\r\n\r\n", b"x", b"", ()),
    ("line ends as data", b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", b"", ()),
    ("what looks like the end as data", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n", b"", ()),
    ("a trailer", b"0\r\nX-Sum: 1\r\n\r\n", b"", b"", ((b"X-Sum", b"1"),)),
    (
        "two trailers, one empty",
        b"1\r\nx\r\n0\r\nA:\r\nB: \tb c\t \r\n\r\nZ",
        b"x",
        b"Z",
        ((b"A", b""), (b"B", b"b c")),
    ),
    ("obs-text in a trailer", b"0\r\nA: \xe9\r\n\r\n", b"", b"", ((b"A", b"\xe9"),)),
]
"""What it is, the bytes, payload, rest, trailers."""


@pytest.mark.parametrize(("raw", "payload", "rest", "trailers"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])  # fmt: skip
def test_chunked_bodies_whole_and_byte_by_byte(raw: bytes, payload: bytes, rest: bytes, trailers: Fields) -> None:
    expected = (payload, rest, trailers)
    assert read(Chunked(), [raw]) == expected
    assert read(Chunked(), every_byte(raw)) == expected
    for at in range(1, len(raw)):
        assert read(Chunked(), [raw[:at], raw[at:]]) == expected


BAD: list[tuple[str, bytes]] = [
    ("no size", b"\r\nx\r\n0\r\n\r\n"),
    ("no hexadecimal digit", b"g\r\nx\r\n"),
    ("a prefix", b"0x5\r\nhello\r\n"),
    ("a sign", b"+5\r\nhello\r\n"),
    ("a minus", b"-1\r\nhello\r\n"),
    ("an underscore", b"1_0\r\n" + b"x" * 16 + b"\r\n"),
    ("a space before the size", b" 5\r\nhello\r\n"),
    ("a space behind the size", b"5 \r\nhello\r\n"),
    ("a tab behind the size", b"5\t\r\nhello\r\n"),
    ("a space before the extension", b"5 ;a\r\nhello\r\n"),
    ("full-width digits", "\uff15\r\nhello\r\n".encode()),
    ("seventeen digits", b"00000000000000001\r\nx\r\n"),
    ("a size that overflows 64 bits", b"10000000000000005\r\nhello\r\n"),
    ("a bare LF behind the size", b"5\nhello\r\n0\r\n\r\n"),
    ("a bare CR behind the size", b"5\rhello\r\n0\r\n\r\n"),
    ("a CR inside the extension", b"5;a\rb\r\nhello\r\n"),
    ("a bare LF inside the extension", b"5;a\nb\r\nhello\r\n"),
    ("a NUL in the extension", b"5;a\x00\r\nhello\r\n"),
    ("a DEL in the extension", b"5;a\x7f\r\nhello\r\n"),
    ("data longer than its size", b"5\r\nhello!\r\n0\r\n\r\n"),
    ("data shorter than its size", b"5\r\nhell\r\n0\r\n\r\n"),
    ("a bare LF behind the data", b"5\r\nhello\n0\r\n\r\n"),
    ("a bare CR behind the data", b"5\r\nhello\r0\r\n\r\n"),
    ("two CR behind the data", b"5\r\nhello\r\r\n0\r\n\r\n"),
    ("nothing behind the data", b"5\r\nhello0\r\n\r\n"),
    ("a bare LF behind the last chunk", b"0\n\r\n"),
    ("a bare LF as the end", b"0\r\n\n"),
    ("a trailer without a colon", b"0\r\nabc\r\n\r\n"),
    ("a trailer without a name", b"0\r\n: x\r\n\r\n"),
    ("a trailer with a space in its name", b"0\r\na b: x\r\n\r\n"),
    ("a trailer with a space before its colon", b"0\r\na : x\r\n\r\n"),
    ("a folded trailer", b"0\r\na: x\r\n b\r\n\r\n"),
    ("a NUL in a trailer", b"0\r\na: x\x00\r\n\r\n"),
    ("a bare CR in a trailer", b"0\r\na: x\ry\r\n\r\n"),
    ("a trailer that ends in LF", b"0\r\na: x\n\r\n"),
]


@pytest.mark.parametrize("raw", [case[1] for case in BAD], ids=[case[0] for case in BAD])
def test_what_two_parsers_could_read_in_two_ways_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        read(Chunked(), [raw])
    with pytest.raises(Malformed):
        read(Chunked(), every_byte(raw))


@pytest.mark.parametrize("whole", [True, False])
def test_lines_are_bounded(whole: bool) -> None:
    def pieces(raw: bytes) -> list[bytes]:
        return [raw] if whole else cut(raw, range(0, len(raw), 97))

    fits = b"1;" + b"e" * (MAX_CHUNK_LINE_BYTES - 3) + b"\r\nx\r\n0\r\n\r\n"
    assert read(Chunked(), pieces(fits))[0] == b"x"
    with pytest.raises(Malformed):
        read(Chunked(), pieces(b"1;" + b"e" * (MAX_CHUNK_LINE_BYTES - 1) + b"\r\nx\r\n0\r\n\r\n"))
    with pytest.raises(Malformed):  # without an end it is given up, not kept
        read(Chunked(), pieces(b"1;" + b"e" * (2 * MAX_CHUNK_LINE_BYTES)))
    with pytest.raises(Malformed):
        read(Chunked(), pieces(b"0\r\na: " + b"v" * MAX_CHUNK_LINE_BYTES + b"\r\n\r\n"))


def test_the_trailer_section_is_bounded_in_bytes_and_in_work() -> None:
    line = b"a: " + b"v" * 1000 + b"\r\n"
    assert len(read(Chunked(), [b"0\r\n" + line * 65 + b"\r\n"])[2]) == 65
    with pytest.raises(Malformed):
        read(Chunked(), [b"0\r\n" + line * 66 + b"\r\n"])
    with pytest.raises(Malformed):
        read(Chunked(), [b"0\r\n" + b"a:\r\n" * MAX_TRAILER_BYTES])
    began = time.process_time()
    read(Chunked(), [b"0\r\n" + b"a:\r\n" * (MAX_TRAILER_BYTES // 4) + b"\r\n"])
    assert time.process_time() - began < 0.5


def test_a_reader_holds_no_payload_back() -> None:
    reader = Chunked()
    assert reader.read(b"5\r\nhel") == (b"hel", None)
    assert reader.read(b"lo") == (b"lo", None)
    assert reader.read(b"\r") == (b"", None)
    assert reader.read(b"\n0\r\n\r") == (b"", None)
    assert reader.read(b"\nGET") == (b"", b"GET")


def test_a_body_of_a_known_size() -> None:
    assert read(Sized(5), [b"hel", b"lo", b"next"]) == (b"hello", b"next", ())
    assert read(Sized(5), [b"hello"]) == (b"hello", b"", ())
    assert read(Sized(5), [b"hell"]) == (b"hell", None, ())
    assert read(Sized(1 << 62), [b"x"]) == (b"x", None, ())


def test_a_body_until_the_end_of_its_connection() -> None:
    assert read(UntilClose(), [b"a", b"0\r\n\r\n"]) == (b"a0\r\n\r\n", None, ())
    assert UntilClose().until_close
    assert not Sized(1).until_close
    assert not Chunked().until_close


def test_the_reader_of_a_size() -> None:
    assert reader_of(0) is None
    assert isinstance(reader_of(None), Chunked)
    assert isinstance(reader_of(-1), UntilClose)
    assert isinstance(reader_of(3), Sized)


def test_what_is_written_is_what_is_read() -> None:
    trailers = ((b"X-Sum", b"1"), (b"B", b""))
    raw = chunk(b"hello") + chunk(b"x" * 70_000) + last_chunk(trailers)
    assert read(Chunked(), [raw]) == (b"hello" + b"x" * 70_000, b"", trailers)
    assert last_chunk(()) == b"0\r\n\r\n"


# --- generated ---

_TOKEN = st.text("abcXYZ019-_!#", min_size=1, max_size=8).map(str.encode)
_VALUE = st.text("ab 9\t;=,:\"'\xe9", max_size=12).map(lambda text: text.encode("latin-1").strip(b" \t"))
_EXTENSION = st.one_of(
    st.just(b""),
    _TOKEN.map(lambda name: b";" + name),
    st.tuples(_TOKEN, _TOKEN).map(lambda pair: b";%b=%b" % pair),
    _TOKEN.map(lambda value: b';q="%b"' % value),
)
_SIZES = st.sampled_from(["x", "X", "03x", "08X"])


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, Read]:
    raw, payload = b"", b""
    for data in draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5)):
        size = format(len(data), draw(_SIZES)).encode()
        raw += size + draw(_EXTENSION) + b"\r\n" + data + b"\r\n"
        payload += data
    trailers = tuple(draw(st.lists(st.tuples(_TOKEN, _VALUE), max_size=3)))
    raw += draw(st.sampled_from([b"0", b"000"])) + draw(_EXTENSION) + b"\r\n"
    raw += b"".join(
        b"%b:%b%b\r\n" % (name, draw(st.sampled_from([b"", b" ", b"\t "])), value) for name, value in trailers
    )
    rest = draw(st.binary(max_size=20))
    return raw + b"\r\n" + rest, (payload, rest, trailers)


_CUTS = st.lists(st.integers(0, 500), max_size=12)


@settings(max_examples=300, deadline=None)
@given(bodies(), _CUTS)
def test_any_cut_of_any_body_reads_the_same(body: tuple[bytes, Read], places: list[int]) -> None:
    raw, expected = body
    assert read(Chunked(), cut(raw, places)) == expected
    assert read(Chunked(), every_byte(raw)) == expected


def by_h11(raw: bytes) -> tuple[bytes, bytes | None] | None:
    """h11's reading: payload, and what is behind the end (None: it goes on). None where it refuses."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
    payload = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                payload += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return payload, connection.trailing_data[0]
            elif event is h11.NEED_DATA or event is h11.PAUSED:
                return payload, None
    except h11.RemoteProtocolError:
        return None


@settings(max_examples=500, deadline=None)
@given(
    bodies(),
    st.lists(st.tuples(st.sampled_from("rid"), st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=3),
    _CUTS,
)
def test_a_damaged_body_is_refused_or_read_as_another_decoder_reads_it(
    body: tuple[bytes, Read], damage: list[tuple[str, int, int]], places: list[int]
) -> None:
    raw = bytearray(body[0])
    for kind, where, what in damage:
        at = where % (len(raw) + 1)
        match kind:
            case "r":
                raw[at : at + 1] = bytes([what])
            case "i":
                raw[at:at] = bytes([what])
            case _:
                del raw[at : at + 1]
    damaged = bytes(raw)
    try:
        payload, rest, _ = read(Chunked(), cut(damaged, places))
    except Malformed:
        # Refused in one piece too, or at least never taken for a whole body.
        with contextlib.suppress(Malformed):
            assert read(Chunked(), [damaged])[1] is None
        return
    theirs = by_h11(damaged)
    if theirs is None:
        # h11 may refuse what lies ahead of us; it must not refuse what we take for a whole body.
        assert rest is None, damaged
        return
    assert (payload, rest) == theirs
