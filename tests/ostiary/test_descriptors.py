"""What the descriptors of a process carry."""

from __future__ import annotations

import pytest

from ostiary.descriptors import RESERVE, carried, raise_limit, sockets


@pytest.mark.parametrize(
    ("wanted", "limit", "callers", "together"),
    [
        (10_000, 1_048_576, 10_000, 1_048_576 - RESERVE),
        (10_000, 1024, 480, 960),
        (10, 1024, 10, 960),
        (10_000, -1, 10_000, 0),
        (5, 8, 1, 2),
    ],
)
def test_the_reserve_stays(wanted: int, limit: int, callers: int, together: int) -> None:
    assert (carried(wanted, limit), sockets(limit)) == (callers, together)
    if together:
        assert callers <= together


def test_what_is_held_already_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As sockets of every worker are in each of them."""
    for limit, left in ((1024, 824), (100, 0), (-1, -1)):
        monkeypatch.setattr("resource.getrlimit", lambda _, limit=limit: (limit, limit))
        assert raise_limit(200) == left


def test_a_cap_that_the_limit_cannot_carry_is_told(caplog: pytest.LogCaptureFixture) -> None:
    carried(10_000, 1024)
    assert "limits.connections is 10000, but 1024 descriptors carry only 480" in caplog.text


def test_a_default_that_the_limit_cannot_carry_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert carried(10_000, 1024, asked=False) == 480
    assert caplog.text == ""
