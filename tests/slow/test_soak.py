"""Two minutes at half load with all that goes wrong in a day: nothing fails, nothing grows, nothing is left behind."""

import os
from pathlib import Path

import pytest

from bench.soak import curve, soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
MAX_GROWTH = 0.05
SLACK_DESCRIPTORS = 2


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
def test_a_soak_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    found = soak(tmp_path, SECONDS)
    curve(found, tmp_path / "soak.csv")
    assert found.failures == []
    for kind in ("requests", "new", "upload", "stream", "websocket", "abort", "reset"):
        assert found.done.get(kind, 0) > 0, f"{kind} never ran: {found.done}"
    assert found.open_records == 0
    assert found.before is not None
    assert found.after is not None
    assert found.after.callers == 0
    # What the gauge counts and what the kernel counts are the same connections: idle ones that wait in the pool.
    assert found.after.upstream <= 32
    held = found.after.descriptors - found.after.upstream
    assert held <= found.before.descriptors - found.before.upstream + SLACK_DESCRIPTORS, (found.before, found.after)
    assert found.growth() <= MAX_GROWTH, [reading.rss_kib for reading in found.readings]
