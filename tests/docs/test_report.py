"""docs/testing.md claims no more than there are tests for, and leaves no row out."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.harness.rows import ATTACKS, FAULTS, LATER, LEAKS
from tools import report
from tools.report import ROOT, outcomes, render, rows_of, standing

ROW = re.compile(r"^\| ([A-Z]\d{1,2}) \| .* \| (.*) \| ([^|]+) \|$", re.MULTILINE)


def test_the_page_lists_every_row_and_claims_nothing_without_a_test() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    listed = {match[0]: (match[1], match[2].strip()) for match in ROW.findall(page)}
    assert list(listed) == [*ATTACKS, *FAULTS]
    found = report.rows_with_tests()
    for row, (shown, claim) in listed.items():
        if claim == "defended":
            assert found.get(row), row
        named = re.findall(r"`([^`]+)`", shown)
        missing = {f"tests/{name}" for name in named} - set(found.get(row, []))
        assert not missing, f"{row}: {missing} is gone: run make report"


def test_every_built_row_has_a_test() -> None:
    found = report.rows_with_tests()
    bare = [row for row in (*ATTACKS, *FAULTS) if not found.get(row) and row not in LATER and row not in LEAKS]
    assert bare == []


def test_what_waits_has_no_test_yet_and_what_leaks_is_told() -> None:
    assert LATER.keys() | LEAKS.keys() <= ATTACKS.keys() | FAULTS.keys()
    threats = (ROOT / "docs" / "threat-model.md").read_text()
    for place in LEAKS.values():
        assert f"**{place.partition(', ')[2]}" in threats


def test_names_and_outcomes(tmp_path: Path) -> None:
    assert rows_of("test_g18_u10_redirects") == ("G18", "U10")
    assert rows_of("test_v1_sealed") == ("V1",)
    assert rows_of("test_f99_x") == rows_of("test_plain") == ()
    recorded = {"a.py::x[1]": "passed", "a.py::x[2]": "failed", "a.py::y": "xfailed", "a.py::z": "passed"}
    (tmp_path / "outcomes.json").write_text(json.dumps(recorded))
    seen = outcomes(tmp_path)
    assert seen == {"a.py::x": "failed", "a.py::y": "xfailed", "a.py::z": "passed"}
    assert standing("G01", ["a.py::x", "a.py::z"], seen) == "FAILED"
    assert standing("G01", ["a.py::y"], seen) == "leaks"
    assert standing("G01", ["a.py::z"], seen) == "defended"
    assert standing("G01", ["a.py::z", "a.py::new"], seen) == "not run"
    assert standing("G01", [], seen) == "no test"
    waiting = next(iter(LATER))
    assert standing(waiting, ["a.py::z"], seen) == f"in part (waits for {LATER[waiting]})"
    assert standing(waiting, ["a.py::x"], seen) == "FAILED"
    assert render(folder=tmp_path) == render(folder=tmp_path)


def test_the_clients_page_is_what_the_tool_makes_of_what_is_kept(tmp_path: Path) -> None:
    kept = report.kept_clients(folder=tmp_path)
    assert (ROOT / "docs" / "guides" / "clients.md").read_text() == report.clients_page(kept), "run make report"
    facts = {"version", "exec", "environment", "set", "roots", "key", "cannot", "language"}
    for name, one in kept.items():
        assert {"version", "exec", "environment", "language"} <= one.keys() <= facts, name
        assert one["exec"] == one["environment"] == "works", name


def test_what_a_run_measured_goes_over_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "clients.json").write_text(json.dumps({"curl": {"version": "9.9.9", "exec": "FAILS"}}))
    curl = report.kept_clients(folder=tmp_path)["curl"]
    assert (curl["version"], curl["exec"], curl["environment"]) == ("9.9.9", "FAILS", "works")
    assert "| curl | 9.9.9 | FAILS | works |" in report.clients_table({"curl": curl})
