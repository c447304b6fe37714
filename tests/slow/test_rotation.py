"""A minute of rotations under load on each engine, and on two workers: no request fails, with an overlap of old and new and
without.
"""

import os
from pathlib import Path

import pytest

from bench.rotation import EVERY_S, TTL_S, rotate

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize(("engine", "workers"), [("fast", 1), ("mitmproxy", 1), ("fast", 2), ("mitmproxy", 2)])
def test_g27_no_request_notices_a_rotation(tmp_path: Path, engine: str, workers: int) -> None:
    found = rotate(tmp_path, engine, SECONDS, workers=workers)
    assert found.failed == []
    assert found.requests > 100
    assert found.rotations >= SECONDS // EVERY_S - 2
    assert found.killed
    assert found.sent_again
    # Used by every caller within ttl; the slack is this machine's.
    assert len(found.until_new_s) == found.rotations
    assert max(found.until_new_s) < TTL_S + 3
    # And by every worker: so long, at the most, the key before is still shown by one of them.
    # The very first one may be replaced before anybody has used it.
    assert len(found.until_all_s) >= found.rotations - 1
    assert max(found.until_all_s) < TTL_S + 3
    # Of each worker one read in each ttl at most, refreshed a little ahead, and one for each key that was killed.
    assert found.vault_reads <= workers * (SECONDS / (TTL_S * 0.75) + found.killed + 2)
    assert found.served_by == workers
    assert found.logins == (1 if workers > 1 else 0)
