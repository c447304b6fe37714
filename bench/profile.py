"""`make profile`: where the fast engine spends its time under keep-alive load, by self time, microseconds a request.

The process runs under cProfile, which is switched on by SIGUSR1 once it is warm and off by SIGUSR2. A profile makes
calls dearer than they are: read the order and the shares, not the sum. It sees all threads; waits are left out.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from bench import contenders, measure
from bench.contenders import ROOT, WORK, Contender
from bench.report import FAST
from tests.harness.pki import Pki

SECONDS = float(os.environ.get("SECONDS", "4"))
TOP = 45


def inside(target: Path) -> None:
    """Runs the command `ostiary` in this process and notes what it does between the two signals."""
    from ostiary.__main__ import main as ostiary

    profile = cProfile.Profile()

    def on(_number: int, _frame: FrameType | None) -> None:
        profile.enable()

    def off(_number: int, _frame: FrameType | None) -> None:
        profile.disable()
        profile.dump_stats(target.with_suffix(".part"))
        target.with_suffix(".part").rename(target)

    signal.signal(signal.SIGUSR1, on)
    signal.signal(signal.SIGUSR2, off)
    sys.exit(ostiary())


def _place(where: tuple[str, int, str]) -> str:
    file, line, name = where
    if file == "~":
        return name
    for known in (str(ROOT), *sys.path):
        if known and file.startswith(known + "/"):
            file = file.removeprefix(known + "/")
            break
    return f"{file}:{line} {name}"


def table(stats: pstats.Stats, requests: int) -> str:
    """The costliest functions."""
    rows: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = stats.stats  # type: ignore[attr-defined]  # typeshed does not know it
    rows = {
        where: row for where, row in rows.items() if not (where[0].endswith("/threading.py") and where[2] == "wait")
    }
    total = sum(row[2] for row in rows.values())
    lines = [
        f"{requests} requests, {total * 1e6 / requests:.1f} us each under the profiler",
        f"{'self us':>8} {'share':>6} {'calls':>7} {'with all below':>14}  (a request)",
    ]
    for where, (_, calls, own, below, _) in sorted(rows.items(), key=lambda item: -item[1][2])[:TOP]:
        lines.append(
            f"{own * 1e6 / requests:8.2f} {own / total:6.1%} {calls / requests:7.2f} {below * 1e6 / requests:14.1f}  {_place(where)}"
        )
    return "\n".join(lines)


def _drive(contender: Contender, target: Path) -> int:
    if contender.pid is None:
        raise SystemExit("nothing to profile")
    measure.load(contender, ("-c", "32"), "/1k", 1.0)
    os.kill(contender.pid, signal.SIGUSR1)
    time.sleep(0.1)
    sample = measure.load(contender, ("-c", "32"), "/1k", SECONDS, warm_s=0)
    os.kill(contender.pid, signal.SIGUSR2)
    for _ in range(200):
        if target.exists():
            return sample.requests
        time.sleep(0.05)
    raise SystemExit("the process wrote no profile")


def main() -> None:
    contenders.raise_descriptors()
    measure.build_generator()
    target = WORK / "profile.pstats"
    target.unlink(missing_ok=True)
    pki = Pki.make(WORK / "profile-pki")
    prefix = (sys.executable, "-m", "bench.profile", "--inside", str(target))
    with (
        contenders.upstream(pki) as upstream,
        contenders.ostiary(pki, upstream, f"{FAST}, profile", engine="fast", prefix=prefix) as contender,
    ):
        requests = _drive(contender, target)
    print(table(pstats.Stats(str(target)), requests))
    print(f"\nThe whole profile: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        # What follows is the command as it would have been: python -m ostiary run …
        place = Path(sys.argv[2])
        sys.argv = ["ostiary", *sys.argv[6:]]
        inside(place)
    main()
