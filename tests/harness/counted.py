"""`ostiary` with the collector of cycles off, which tells on SIGUSR1, and at its end, what of the engine is alive.

Nothing in the fast lane may need the collector: what a connection held goes with it. Runs as the prefix of a process
(`Ostiary(prefix=prefix(path))`), so that the process that is counted is the real one.
"""

from __future__ import annotations

import collections
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from tests.harness.ostiary_process import Ostiary

OWN = ("Caller", "Threshold", "Opening", "Deadline", "Turn", "Relay")
"""What a caller's connection is made of."""
ALL = (
    *OWN, "Link", "HTTPFlow", "Exchange", "Connection", "Client", "Server", "Request", "Response", "Headers", "Tunnel",
    "TCPTransport", "_SSLProtocolTransport", "SSLProtocol", "SSLObject", "MemoryBIO", "Task",
)  # fmt: skip
"""And what that holds: flows and facts, transports, TLS with its buffers, tasks."""


def prefix(target: Path) -> tuple[str, ...]:
    """Of the command. Counts are written to `target`."""
    return (sys.executable, "-m", "tests.harness.counted", str(target))


def alive(one: Ostiary, target: Path, kinds: tuple[str, ...] = ALL) -> dict[str, int]:
    """How many objects of these types a process holds now."""
    target.unlink(missing_ok=True)
    os.kill(int(one.ready["pid"]), signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not target.exists():
        assert time.monotonic() < deadline, "the process does not tell"
        time.sleep(0.005)
    return told(target, kinds)


def told(target: Path, kinds: tuple[str, ...] = ALL) -> dict[str, int]:
    """What was written there last."""
    found = json.loads(target.read_text())
    return {kind: found.get(kind, 0) for kind in kinds}


def _tell(target: Path) -> None:
    part = target.with_suffix(".part")
    part.write_text(json.dumps(collections.Counter(type(one).__name__ for one in gc.get_objects())))
    part.rename(target)


def _inside(target: Path) -> int:
    from ostiary.__main__ import main as ostiary

    def on(_number: int, _frame: FrameType | None) -> None:
        _tell(target)

    signal.signal(signal.SIGUSR1, on)
    gc.disable()
    target.unlink(missing_ok=True)
    try:
        return ostiary()
    finally:
        _tell(target)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    # What follows is the command as it would have been: python -m ostiary run …
    sys.argv = ["ostiary", *sys.argv[5:]]
    sys.exit(_inside(place))
