"""Locked packages of others, installed once for a lock file into folders of `.cache/`: clients that tests drive."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.harness.two_ways import CACHE, NODE, NPM


@contextlib.contextmanager
def _once(name: str, lock: bytes) -> Iterator[tuple[Path, bool]]:
    """The folder for a lock file, and whether it is complete already; the block completes it, or raises. One at a time."""
    folder = CACHE / f"{name}-{hashlib.sha256(lock).hexdigest()[:12]}"
    CACHE.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = (folder / ".complete").exists()
        yield folder, done
        (folder / ".complete").touch()


def python_with(name: str, lock: Path, *, patience_s: float = 110) -> Path:
    """A Python with the packages of a requirements file beside it, in an environment of its own."""
    with _once(name, lock.read_bytes()) as (folder, done):
        python = folder / "bin" / "python"
        if not done:
            shutil.rmtree(folder, ignore_errors=True)
            for step in (
                [sys.executable, "-m", "venv", str(folder)],
                [str(python), "-m", "pip", "--no-input", "-q", "install", "--require-hashes", "-r", str(lock)],
            ):
                # The user's own environment: this is the way to an index, not the client under test.
                ended = subprocess.run(step, capture_output=True, text=True, timeout=patience_s, check=False)
                assert ended.returncode == 0, f"{lock.name} cannot be installed: {ended.stderr[-300:]}"
    return python


def node_with(name: str, lock: Path, beside: Sequence[Path]) -> Path:
    """A folder with these files and the packages of a lock file of npm. Skips the test where they cannot be had."""
    with _once(name, lock.read_bytes()) as (folder, done):
        folder.mkdir(exist_ok=True)
        for path in (lock, *beside):
            shutil.copy(path, folder)
        if not done:
            ended = subprocess.run(
                # As above.
                [NODE, NPM, "ci", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=20000"],
                cwd=folder, capture_output=True, text=True, timeout=90, check=False,
            )  # fmt: skip
            if ended.returncode:
                pytest.skip(f"the packages of {lock.parent.name} cannot be installed here: {ended.stderr[-300:]}")
    return folder
