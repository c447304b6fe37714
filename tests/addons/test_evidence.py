"""What ends is announced ahead, once at each step, with its owner."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from addons.evidence import DAY_S, Evidence
from addons.telemetry import Metrics
from vault.control import NOTHING, Control

NOW_S = 1_800_000_000.0


class Notes:
    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []

    def note(self, event: str, fields: dict[str, Any]) -> None:
        self.made.append((event, fields))


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def wall_s(self) -> float:
        return self.now_s

    def monotonic_s(self) -> float:
        return self.now_s


class Use:
    """Not a record of ours: nothing of it is told but what is asked for."""

    secret = "secret/api"
    secret_version = "1"


@pytest.fixture
def parts() -> tuple[Evidence, Notes, Clock]:
    notes, clock = Notes(), Clock()
    return Evidence(cast("Any", notes), Metrics(), clock), notes, clock


def test_what_ends_is_announced_once_at_each_step(
    parts: tuple[Evidence, Notes, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    evidence, _, clock = parts
    evidence.secret_told("secret/api", Control(expires_at_s=NOW_S + 30 * DAY_S, owner="team-pay"))
    said = []
    for day in range(33):
        clock.now_s = NOW_S + day * DAY_S
        for _ in range(3):
            caplog.clear()
            evidence.look_ahead()
            said += [(day, record.levelname, record.getMessage()) for record in caplog.records]
    assert [(day, level) for day, level, _ in said] == [
        (16, "WARNING"), (23, "WARNING"), (27, "WARNING"), (29, "WARNING"), (30, "ERROR"),
    ]  # fmt: skip
    assert said[1][2] == "secret secret/api expires at 2027-02-14T08:00:00Z, in 7.0 days: rotate it (owner: team-pay)"
    # What is said anew counts anew; what is said no more is not announced.
    caplog.clear()
    evidence.secret_told("secret/api", Control(expires_at_s=clock.now_s + 2 * DAY_S))
    assert len(caplog.records) == 1
    evidence.secret_told("secret/api", NOTHING)
    clock.now_s += 10 * DAY_S
    caplog.clear()
    evidence.look_ahead()
    assert not caplog.records


def test_rotations_are_noted(parts: tuple[Evidence, Notes, Clock], caplog: pytest.LogCaptureFixture) -> None:
    evidence, notes, _ = parts
    evidence.secret_changed("secret/api", "1", "2")
    evidence.secret_last_used("secret/api", "1", Use())
    assert notes.made == [
        ("secret.version_changed", {"secret": "secret/api", "secret_version": "2", "version_before": "1"}),
        ("secret.last_use_of_version", {"secret": "secret/api", "secret_version": "1"}),
    ]
    evidence.secret_told("secret/api", Control(faults=("pending_version is not a version number",)))
    assert "pending_version is not a version number; it is taken as absent" in caplog.text
