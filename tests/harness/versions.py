"""Versions of the clients that are measured, as they tell them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache

from tests.harness.two_ways import PROGRAMS

_VERSION = re.compile(r"\d+(?:\.\d+)+")


@cache
def told_by(*command: str) -> str:
    """The first version in what a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    found = _VERSION.search(done.stdout + done.stderr)
    assert found is not None, done
    return found[0]


@cache
def npm_package(name: str) -> str:
    """Of a package that the Node programs are locked to."""
    found = json.loads((PROGRAMS / "package.json").read_text())["dependencies"][name]
    return str(found)


@cache
def usable(name: str) -> str | None:
    """The path of a program that is there and runs. A shim that has no toolchain to start is there and does not."""
    path = shutil.which(name)
    if path is None or name != "cargo":
        return path
    done = subprocess.run([path, "--version"], capture_output=True, timeout=30, check=False)
    return path if done.returncode == 0 else None
