"""How long a place stays empty: told by a clock that tests move."""

from __future__ import annotations

from ostiary.workers.backoff import FIRST_S, MOST_S, STEADY_S, BackOff


def test_the_pause_doubles_up_to_a_bound() -> None:
    back_off, now_s, pauses = BackOff(), 1000.0, []
    for _ in range(12):
        back_off.serving(now_s)
        now_s += 1.0
        pauses.append(back_off.fallen(now_s))
        now_s += pauses[-1]
    assert pauses[:4] == [FIRST_S, FIRST_S * 2, FIRST_S * 4, FIRST_S * 8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_S


def test_one_that_had_served_for_a_while_is_replaced_at_once() -> None:
    back_off = BackOff()
    for now_s in range(10):
        back_off.fallen(float(now_s))
    back_off.serving(100.0)
    assert back_off.fallen(100.0 + STEADY_S) == FIRST_S
    assert back_off.fallen(200.0) == FIRST_S * 2


def test_one_that_never_served_was_not_steady_however_long_it_took() -> None:
    back_off = BackOff()
    assert back_off.fallen(0.0) == FIRST_S
    # Its start hung: no time counts in which it did not serve, nor that of the one before.
    assert back_off.fallen(10_000.0) == FIRST_S * 2
    back_off.serving(20_000.0)
    assert back_off.fallen(20_000.5) == FIRST_S * 4
    assert back_off.fallen(90_000.0) == FIRST_S * 8


def test_a_million_falls_are_no_number_too_large() -> None:
    back_off = BackOff(_falls=1_000_000)
    assert back_off.fallen(0.0) == MOST_S
