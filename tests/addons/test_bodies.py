"""Bodies that are held: caps, accounting, framing."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import cast

import pytest

from addons.bodies import HeldBody, framed, rewriting
from addons.buffers import Buffers, Holder
from addons.exchange import Exchange
from addons.head import Fields, RequestHead
from addons.refusal import Code, Refusal


def head(*fields: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("POST", b"/", fields, http2=False)


def test_a_body_is_handed_over_once_and_whole() -> None:
    body = HeldBody(10)
    body.announced(head((b"Content-Length", b"10")))
    body.add(b"hello")
    body.add(b"world")
    assert body.size == 10
    assert body.whole() == b"helloworld"
    assert (body.size, body.whole()) == (10, b""), "counted until what leaves of it is ready"


def test_a_body_that_comes_in_tiny_pieces_takes_what_is_counted() -> None:
    body = HeldBody(1 << 20)
    tracemalloc.start()
    try:
        for number in range(1 << 17):
            body.add(number.to_bytes(2, "big", signed=False) if number < 1 << 16 else b"ab")
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert body.size == 1 << 18
    assert taken < 2 << 18


@pytest.mark.parametrize("pieces", [(b"12345678901",), (b"1234567890", b"1"), (b"1",) * 11])
def test_over_its_cap_it_is_refused_and_dropped(pieces: tuple[bytes, ...]) -> None:
    body = HeldBody(10)
    with pytest.raises(Refusal) as caught:
        for piece in pieces:
            body.add(piece)
    assert caught.value.code is Code.BODY_TOO_LARGE
    assert (body.size, body.whole()) == (0, b"")


def test_an_announced_size_is_judged_before_any_of_it_is_read() -> None:
    with pytest.raises(Refusal) as caught:
        HeldBody(10).announced(head((b"content-length", b"11")))
    assert caught.value.code is Code.BODY_TOO_LARGE
    HeldBody(10).announced(head((b"Transfer-Encoding", b"chunked")))


def test_where_the_process_is_full_no_more_is_taken() -> None:
    full = cast("Buffers", SimpleNamespace(full=True))
    body = HeldBody(10, full)
    with pytest.raises(Refusal) as caught:
        body.add(b"1")
    assert (caught.value.code, body.size) == (Code.OVERLOADED, 0)


@pytest.mark.parametrize(
    ("before", "size", "http2", "after"),
    [
        ([(b"A", b"1")], 0, False, [(b"A", b"1")]),
        ([(b"Content-Length", b"0")], 0, False, [(b"Content-Length", b"0")]),
        ([(b"Transfer-Encoding", b"chunked")], 0, False, [(b"Content-Length", b"0")]),
        ([(b"Transfer-Encoding", b"chunked"), (b"Trailer", b"X")], 5, False, [(b"Content-Length", b"5")]),
        ([(b"a", b"1")], 5, True, [(b"a", b"1"), (b"content-length", b"5")]),
        ([(b"content-length", b"4")], 5, False, [(b"Content-Length", b"5")]),
    ],
)
def test_it_leaves_framed_by_its_length(
    before: list[tuple[bytes, bytes]], size: int, http2: bool, after: Fields
) -> None:
    assert list(framed(tuple(before), size, http2=http2)) == list(after)


class Doubling:
    """Holds everything, gives it twice at the end."""

    def __init__(self) -> None:
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        self.held += data
        return b"" if data else self.held * 2

    def held_bytes(self) -> int:
        return len(self.held)


class Counting:
    def __init__(self) -> None:
        self.full = False
        self.holders: list[Holder] = []

    def watch(self, holder: Holder) -> None:
        self.holders.append(holder)


def test_what_a_rewriter_holds_is_counted_until_its_exchange_is_settled() -> None:
    exchange = cast("Exchange", SimpleNamespace(settled=False))
    buffers = Counting()
    rewrite = rewriting(exchange, Doubling(), cast("Buffers", buffers))
    assert rewrite(b"abc") == b""
    (holder,) = buffers.holders
    assert holder.held_bytes() == 3
    buffers.full = True
    with pytest.raises(Refusal) as caught:
        rewrite(b"d")
    assert caught.value.code is Code.OVERLOADED
    exchange.settled = True
    assert holder.held_bytes() == 0
    assert rewriting(exchange, Doubling(), None)(b"a") == b""
