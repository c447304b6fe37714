"""`ostiary` that counts the Python functions its event loop calls between two signals. A count is the same on every
machine, however busy it is.

Runs as the prefix of a process (`Ostiary(prefix=prefix(path))`), so that the process that is counted is the real one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.harness.ostiary_process import Ostiary


def prefix(target: Path) -> tuple[str, ...]:
    """Of the command. What is counted is written to `target`."""
    return (sys.executable, "-m", "tests.harness.called", str(target))


def calls(one: Ostiary, target: Path, work: Callable[[], object]) -> int:
    """How many functions the event loop calls while this is done."""
    _signal(one, target)  # begins
    work()
    return _signal(one, target)


def _signal(one: Ostiary, target: Path) -> int:
    target.unlink(missing_ok=True)
    os.kill(int(one.ready["pid"]), signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not target.exists():
        assert time.monotonic() < deadline, "the process does not tell"
        time.sleep(0.005)
    return int(target.read_text())


def _inside(target: Path) -> int:
    from ostiary.__main__ import main as ostiary

    count, counts = 0, False

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    def on(_number: int, _frame: FrameType | None) -> None:
        nonlocal count, counts
        counts = not counts
        if not counts:
            sys.setprofile(None)
        part = target.with_suffix(".part")
        part.write_text(str(count))
        part.rename(target)
        count = 0
        if counts:
            sys.setprofile(note)

    signal.signal(signal.SIGUSR1, on)
    return ostiary()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    # What follows is the command as it would have been: python -m ostiary run …
    sys.argv = ["ostiary", *sys.argv[5:]]
    sys.exit(_inside(place))
