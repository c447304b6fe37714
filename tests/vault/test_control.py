"""`custom_metadata` as the owners' channel: what is read, and what of other forms comes to."""

from __future__ import annotations

import pytest

from vault.control import MAX_TEXT, NOTHING, Control, read_control


def test_everything_it_can_say() -> None:
    found = read_control(
        {
            "overlap_until": "2026-11-25T18:00:00Z",
            "expires_at": "2027-01-01T00:00:00+01:00",
            "pending_version": "8",
            "owner": "team-pay",
            "classification": "confidential",
            "their-own": "x",
        }
    )
    assert found == Control(1795629600.0, 1798758000.0, 8, "team-pay", "confidential")


def test_nothing_is_said() -> None:
    assert read_control({}) is NOTHING
    assert read_control({"other": "x", "owner": ""}) == NOTHING


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("overlap_until", "tomorrow"),
        ("overlap_until", "2026-11-25T18:00:00"),
        ("overlap_until", "2026-13-25T18:00:00Z"),
        ("expires_at", "2026-11-25"),
        ("expires_at", "2026-11-25T25:00:00Z"),
        ("pending_version", "0"),
        ("pending_version", "-1"),
        ("pending_version", "8.0"),
        ("pending_version", "٨"),
        ("pending_version", 8),
    ],
)
def test_what_makes_no_sense_is_told_and_counts_as_absent(key: str, value: object) -> None:
    found = read_control({key: value})
    assert (found.overlap_until_s, found.expires_at_s, found.pending_version) == (None, None, None)
    (fault,) = found.faults
    assert fault.startswith(f"{key} is not ")
    assert str(value) not in fault


def test_texts_are_short_and_printable() -> None:
    found = read_control({"owner": "a\r\nb\x00" + "c" * 300, "classification": "\x07"})
    assert found.owner is not None
    assert (found.owner[:3], len(found.owner), found.classification) == ("abc", MAX_TEXT, None)
