"""UUIDv7: layout of RFC 9562 section 5.7, and order within a process."""

from __future__ import annotations

import os
import threading
import uuid

from hypothesis import given
from hypothesis import strategies as st

from addons.uuid7 import Uuid7, uuid7


class Readings:
    """A clock that says what it is told."""

    def __init__(self, *readings: int) -> None:
        self._readings = list(readings)

    def __call__(self) -> int:
        return self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]


def zeros(count: int) -> bytes:
    return bytes(count)


def test_layout() -> None:
    now_ns = 1_645_557_742_000_000_000  # the instant of RFC 9562 appendix A.6
    text = Uuid7(lambda: now_ns, os.urandom)()
    parsed = uuid.UUID(text)
    assert text.startswith("017f22e2-79b0-7")
    assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)


def test_the_fraction_of_a_millisecond_orders_too() -> None:
    early, late = Uuid7(lambda: 5_000_000, zeros)(), Uuid7(lambda: 5_999_999, zeros)()
    assert early < late
    assert early[:13] == late[:13]


@given(st.lists(st.integers(0, 2**60), min_size=1, max_size=50))
def test_ids_grow_whatever_the_clock_does(readings: list[int]) -> None:
    make = Uuid7(Readings(*readings), zeros)
    made = [make() for _ in range(len(readings) + 20)]
    assert made == sorted(set(made))


def test_a_burst_inside_one_millisecond_carries_into_the_next() -> None:
    make = Uuid7(lambda: 1_000_000, zeros)
    made = [make() for _ in range(5000)]
    assert made == sorted(set(made))
    assert all(uuid.UUID(one).version == 7 for one in made)


def test_random_bits_are_used_once() -> None:
    asked: list[int] = []

    def random(count: int) -> bytes:
        asked.append(count)
        return os.urandom(count)

    make = Uuid7(lambda: 0, random)
    tails = {make()[19:] for _ in range(640)}
    assert len(tails) == 640
    assert sum(asked) == 640 * 8


def test_ids_of_this_process_do_not_collide_with_a_second_maker() -> None:
    import time

    other = Uuid7(time.time_ns, os.urandom)
    mine: list[str] = []
    thread = threading.Thread(target=lambda: mine.extend(other() for _ in range(2000)))
    thread.start()
    theirs = [uuid7() for _ in range(2000)]
    thread.join()
    assert not set(mine) & set(theirs)
