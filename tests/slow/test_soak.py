"""Two minutes at half load with all that goes wrong in a day: nothing fails, nothing grows, nothing is left behind."""

import os
from pathlib import Path

import pytest

from bench.soak import curve, soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
MAX_GROWTH = 0.05 if SECONDS >= 60 else 0.25  # a short run is a trial of the test: its warm-up is too short
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
    assert found.after.upstream == 0
    # Before, one connection waited in the pool.
    assert found.after.descriptors <= found.before.descriptors - found.before.upstream + SLACK_DESCRIPTORS, (
        found.before,
        found.after,
    )
    assert found.growth() <= MAX_GROWTH, [reading.rss_kib for reading in found.readings]
