"""Golden files: what good policies mean, and every fault of bad ones, word for word.

A bad file ends with its expected faults as comments (`#! line:column: message (mend)`); a good one carries `tests:`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from policies import FaultError, load_policy, run_tests

FOLDER = Path(__file__).parent / "golden"
GOOD = sorted((FOLDER / "good").glob("*.yaml"))
BAD = sorted((FOLDER / "bad").glob("*.yaml"))


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good(path: Path) -> None:
    policy = load_policy([path], variables={"env": "prod"}, base=FOLDER)
    report = run_tests(policy)
    assert report.ok, [str(failure) for failure in report.failures]
    assert report.passed > 0
    assert not report.uncovered_routes
    assert not report.uncovered_denies


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad(path: Path) -> None:
    expected = [f"{path.name}:{line[2:].strip()}" for line in path.read_text().splitlines() if line.startswith("#!")]
    assert expected, "a bad policy says what is wrong with it"
    with pytest.raises(FaultError) as error:
        load_policy([path], base=path.parent)
    assert [str(fault) for fault in error.value.faults] == expected


def test_there_are_enough() -> None:
    assert len(BAD) >= 25
