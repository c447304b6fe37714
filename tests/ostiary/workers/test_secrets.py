"""Secrets of all workers as one answer: the newest version, and who uses the one before."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ostiary.admin import Refreshed, SecretFailed, SecretStatus, Use
from ostiary.workers.secrets import Found, all_refreshed, found_body, found_of, of_all, statuses_body, statuses_of

EARLY, LATE = Use("r1", "billing", "api", 9.0), Use("r2", "billing", "api", 1.0)
NEW = SecretStatus(
    "secret/a",
    ("api",),
    version="10",
    age_seconds=1.0,
    requests=2,
    last_use=LATE,
    before="9",
    before_requests=1,
    before_last_use=EARLY,
)
OLD = SecretStatus("secret/a", ("api",), version="9", age_seconds=14.0, requests=4, last_use=LATE, owner="team")


def test_they_cross_as_json() -> None:
    for status in (NEW, OLD, SecretStatus("secret/b", (), pinned=3)):
        assert statuses_of(json.loads(json.dumps(statuses_body([status])))) == (status,)
    for found in (None, SecretFailed("why"), Refreshed("secret/a", "7", changed=True)):
        assert found_of(json.loads(json.dumps(found_body(found)))) == found


def test_one_that_is_behind_counts_for_the_version_before() -> None:
    (found,) = of_all([(OLD,), (NEW,)])
    assert (found.version, found.requests, found.last_use) == ("10", 2, LATE)
    assert (found.before, found.before_requests, found.before_last_use) == ("9", 5, LATE)
    assert found.age_seconds == 1.0
    # The one that has the new one knows of none before: the other does.
    (found,) = of_all([(replace(NEW, before=None, before_requests=0, before_last_use=None),), (OLD,)])
    assert (found.before, found.before_requests) == ("9", 4)


def test_all_with_the_same() -> None:
    (found,) = of_all([(NEW,), (replace(NEW, age_seconds=5.0, requests=1, problem="is away"),)])
    assert (found.version, found.requests, found.before_requests, found.age_seconds) == ("10", 3, 2, 5.0)
    assert found.problem == "is away"


def test_what_no_worker_has_read_and_what_is_pinned() -> None:
    unread = SecretStatus("secret/b", ("other",))
    pinned = SecretStatus("secret/a", ("api",), pinned=3, version="3")
    found = of_all([(NEW, pinned, unread), (pinned, unread)])
    assert [(one.secret, one.pinned, one.version) for one in found] == [
        ("secret/a", None, "10"),
        ("secret/a", 3, "3"),
        ("secret/b", None, None),
    ]
    assert (found[2].before, found[2].requests, found[2].last_use) == (None, 0, None)
    assert of_all([]) == ()


@pytest.mark.parametrize(
    ("found", "whole"),
    [
        ((None, None), None),
        ((Refreshed("s", "9", changed=False), Refreshed("s", "10", changed=True)), Refreshed("s", "10", changed=True)),
        ((Refreshed("s", "10", changed=False), Refreshed("s", "10", changed=True)), Refreshed("s", "10", changed=True)),
        ((Refreshed("s", "10", changed=True), SecretFailed("is away")), SecretFailed("is away")),
        ((None, Refreshed("s", "abc", changed=False)), Refreshed("s", "abc", changed=False)),
    ],
)
def test_a_refresh_is_done_when_all_have_done_it(found: Any, whole: Found) -> None:
    assert all_refreshed(found) == whole
