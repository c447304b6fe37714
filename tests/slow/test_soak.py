"""Two minutes at half load with all that goes wrong in a day: nothing fails, nothing grows, nothing is left behind."""

import os
from pathlib import Path

import pytest

from bench.soak import KINDS, MAX_GROWTH, Soak, curve, soak
from bench.soak_process import Reading

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
SHORT_GROWTH = 0.25
"""Of a run of seconds, which is a trial of the test: its warm-up is too short."""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
def test_a_soak_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    found = soak(tmp_path, SECONDS)
    curve(found, tmp_path / "soak.csv")
    faults = found.faults(MAX_GROWTH if SECONDS >= 60 else SHORT_GROWTH)
    assert faults == [], [reading.rss_kib for reading in found.readings]


def reading(rss_kib: int = 100, *, descriptors: int = 10, callers: int = 0, upstream: int = 0) -> Reading:
    return Reading(0.0, rss_kib, descriptors, callers, upstream, 0.0)


def held() -> Soak:
    """One in which nothing went wrong; a connection waited in the pool before it."""
    done = dict.fromkeys(KINDS, 1)
    return Soak([reading()] * 20, [], done, 1.0, reading(descriptors=11, upstream=1), reading(descriptors=12))


def test_the_verdict_tells_each_fault() -> None:
    assert held().faults() == []
    for change, told in (
        ({"failures": ["new: OSError: x"]}, "failed: new: OSError: x"),
        ({"done": dict.fromkeys(KINDS[1:], 1)}, "requests never ran"),
        ({"readings": [reading()] * 16 + [reading(106)] * 4}, "memory grew by 6.0%, more than 5%"),
        ({"open_records": 3}, "3 records of credentials were left open"),
        ({"after": reading(callers=1)}, "1 connections of callers and 0 of upstreams were left open"),
        ({"after": reading(descriptors=13)}, "13 descriptors were left open, more than 12"),
        ({"after": None}, "nothing was read before or after"),
    ):
        one = held()
        for name, value in change.items():
            setattr(one, name, value)
        assert one.faults() == [told]
