"""Several real processes on one store: no limit is passed, no nonce is used twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ostiary_process import clean_environment
from tests.harness.valkey import Valkey

PROCESSES, CALLS, LIMIT = 4, 50, 100
ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_processes_share_limits_and_nonces(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given: dict[str, Any] = {"kind": kind, "calls": CALLS, "limit": LIMIT}
    if kind == "sqlite":
        given["path"] = str(tmp_path / "state.db")
    else:
        valkey: Valkey = request.getfixturevalue("valkey")
        given |= {"port": valkey.port, "prefix": valkey.fresh_prefix()}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.addons.state.conformance.racer", json.dumps(given)],
            stdout=subprocess.PIPE,
            env=clean_environment(PYTHONPATH=str(ROOT)),
            cwd=tmp_path,
        )
        for _ in range(PROCESSES)
    ]
    ended = [json.loads(one.communicate(timeout=90)[0]) for one in started]
    assert sum(one["added"] for one in ended) == LIMIT // 3
    assert max(one["most"] for one in ended) == LIMIT // 3 * 3
    assert sum(one["first"] for one in ended) == CALLS
    assert sum(one["taken"] for one in ended) == 20
