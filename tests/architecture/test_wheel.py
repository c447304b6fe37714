"""The wheel holds just the product: every package listed by hand is there, and nothing else is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("addons", "ostiary", "policies", "vault")


def packages_in_the_tree() -> set[str]:
    return {
        ".".join(path.parent.relative_to(ROOT).parts) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")
    }


def test_the_list_is_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == packages_in_the_tree()


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    # setuptools packs what an earlier build left there, modules that are gone since included.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--disable-pip-version-check",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("ostiary-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    others = {name for name in names if not name.endswith(".py")}
    presets = {str(path.relative_to(ROOT)) for path in (ROOT / "policies" / "presets").glob("*.yaml")}
    assert presets <= others
    assert all(".dist-info/" in name for name in others - presets), others
    assert any(name.endswith("LICENSE") for name in names)
