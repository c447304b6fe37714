"""docs/reference/presets.md is what the tool writes from the presets there are, and what it says of tests is true."""

from __future__ import annotations

from pathlib import Path

from policies.preset import UNTESTED, built_in, built_in_names
from tools.presets import AGAINST, COMPARES, SDKS, TARGET, render

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    assert TARGET.read_text() == render(), "run python -m tools.presets"


def test_each_preset_was_driven_or_looked_up() -> None:
    presets = [built_in(name) for name in built_in_names()]
    assert [one.name for one in presets if not one.driven and one.checked == UNTESTED] == []


def test_the_tests_that_the_page_names_drive_what_it_says() -> None:
    driven = [name for name in built_in_names() if built_in(name).driven]
    assert set(AGAINST) <= set(driven)
    for name in driven:
        _, test = AGAINST.get(name, (COMPARES, SDKS))
        assert f'"{name}"' in (ROOT / test).read_text(), f"{test} drives no {name}"


def test_versions_are_those_of_the_lock_files() -> None:
    locks = "".join((ROOT / "requirements" / name).read_text() for name in ("sdks.txt", "clients.txt"))
    for name in built_in_names():
        sdk, _, version = built_in(name).driven.partition(" ")
        # Those of npm and git are held by their tests.
        if version and name not in {"linear", "npm"}:
            assert f"\n{sdk}=={version} " in locks, name
