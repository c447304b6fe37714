"""T1: clocks of upstreams against ours."""

from __future__ import annotations

import logging

import pytest

from addons.skew import LOOK_S, MAX_HOSTS, Clocks

NOW_S = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 section 5.6.7


@pytest.mark.parametrize(
    ("date", "ahead_s"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        (b"Sun, 06 Nov 1994 08:48:07 GMT", 90.0),
        (b"Sun, 06 Nov 1994 09:49:37 +0000", -3600.0),
        (b"", None),
        (b"yesterday", None),
        (b"Sun, 99 Nov 1994 99:99:99 GMT", None),
        (b"\xff\xff", None),
    ],
)
def test_t1_what_a_date_says(date: bytes, ahead_s: float | None, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, float]] = []
    with caplog.at_level(logging.WARNING):
        Clocks(lambda: NOW_S, lambda host, by_s: told.append((host, by_s))).look("api.test", ((b"dAtE", date),), 5.0)
    assert told[:1] == ([] if ahead_s is None else [("api.test", ahead_s)]) or ahead_s is None
    assert bool(caplog.records) == any(abs(by_s) > 60 for _, by_s in told)
    if ahead_s == 90.0:
        assert caplog.messages == [
            "this machine's clock is 90 s ahead of that of api.test: set it by NTP, or tell them"
        ]


def test_t1_once_a_minute_and_never_by_what_a_cache_gave() -> None:
    told: list[str] = []
    clocks = Clocks(lambda: NOW_S, lambda host, _: told.append(host))
    fields = ((b"Date", b"Sun, 06 Nov 1994 08:00:00 GMT"),)
    for now_s in (1.0, 2.0, LOOK_S, LOOK_S + 1.5):
        clocks.look("a.test", fields, now_s)
    clocks.look("b.test", (*fields, (b"Age", b"2977")), 1.0)
    assert told == ["a.test", "a.test"]
    for number in range(3 * MAX_HOSTS):
        clocks.look(f"{number}.test", fields, 1.0)
    assert len(clocks._next_s) <= MAX_HOSTS
