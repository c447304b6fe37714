"""The meter of HTTP/2 frames: what counts, whatever pieces it arrives in."""

from __future__ import annotations

import pytest

from ostiary.engines.mitm.frames import BUDGET, BYTES_PER_UPDATE, INTERVAL_S, Flooded, FrameMeter

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int = 0, payload: bytes = b"", stream: int = 1) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def meter() -> FrameMeter:
    made = FrameMeter(block_bytes=1000)
    made.received(PREFACE + frame(4), 0.0)
    return made


@pytest.mark.parametrize("size", [1, 7, 9, 13, 1000])
def test_resets_count_in_any_pieces(size: int) -> None:
    data = frame(3, 0, b"\0\0\0\x08") * (BUDGET["RST_STREAM"] + 1)
    within, one = meter(), meter()
    cut = len(data) - 13
    for at in range(0, cut, size):
        within.received(data[at : min(at + size, cut)], 1.0)
    with pytest.raises(Flooded):
        for at in range(0, len(data), size):
            one.received(data[at : at + size], 1.0)


def test_budgets_come_back_with_time() -> None:
    one = meter()
    for turn in range(5):
        one.received(frame(6, 0, b"pingpong") * BUDGET["PING"], turn * INTERVAL_S + 0.5 * bool(turn))
    with pytest.raises(Flooded):
        one.received(frame(6, 0, b"pingpong"), 4 * INTERVAL_S + 1)


def test_resets_of_ours_count_with_the_callers() -> None:
    one = meter()
    one.received(frame(1, 5), 1.0)
    one.sent(frame(4) + frame(1, 4, b"x") + frame(3, 0, b"\0\0\0\x03") * BUDGET["RST_STREAM"])
    one.received(frame(1, 5), 1.0)
    one.sent(frame(3, 0, b"\0\0\0\x03"))
    with pytest.raises(Flooded):
        one.received(frame(1, 5), 1.0)


def test_window_updates_are_earned_by_what_was_sent() -> None:
    one = meter()
    one.sent(frame(0, 0, b"x" * BYTES_PER_UPDATE * 100))
    one.received(frame(8, 0, b"\0\0\0\1") * (BUDGET["WINDOW_UPDATE"] + 100), 1.0)
    with pytest.raises(Flooded):
        one.received(frame(8, 0, b"\0\0\0\1"), 1.0)


def test_answers_to_our_own_frames_cost_nothing() -> None:
    one = meter()
    one.received((frame(4, 1) + frame(6, 1, b"pingpong") + frame(0, 1)) * 5000, 1.0)


@pytest.mark.parametrize(
    "data",
    [
        frame(1, 0, b"x" * 600) + frame(9, 0, b"x" * 600),
        frame(1, 0) + frame(9) * 20,
        b"\xff\xff\xff" + frame(0)[3:],
    ],
)
def test_blocks_and_frames_have_a_size(data: bytes) -> None:
    with pytest.raises(Flooded):
        meter().received(data, 1.0)


def test_an_open_block_says_since_when() -> None:
    one = meter()
    one.received(frame(1, 0, b"x"), 2.0)
    one.received(frame(9, 0, b"x"), 3.0)
    assert one.block_since_s == 2.0
    one.received(frame(9, 4, b"x"), 4.0)
    assert one.block_since_s is None
