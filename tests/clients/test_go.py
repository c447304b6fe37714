"""Go's net/http, unchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.ostiary_process import clean_environment
from tests.harness.two_ways import CACHE, PLACEHOLDER, PROGRAMS, WAYS, Served

GO = shutil.which("go")
pytestmark = pytest.mark.skipif(GO is None, reason="no Go on this machine")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built once; the compiler's own cache lasts between runs."""
    built = tmp_path_factory.mktemp("go") / "client"
    done = subprocess.run(
        [str(GO), "build", "-o", str(built), "."],
        cwd=PROGRAMS / "go", capture_output=True, text=True, timeout=110, check=False,
        env=clean_environment(GOCACHE=str(CACHE / "go"), GOFLAGS="-mod=mod", GOTOOLCHAIN="local"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return built


@pytest.mark.parametrize("way", WAYS)
def test_net_http(served: Callable[..., Served], binary: Path, way: str) -> None:
    one = served(None, "api.example.com")
    done = one.run(way, str(binary), API_KEY=PLACEHOLDER)
    one.assert_injected(done)
    assert done.stdout.strip() == "200 hello"
    assert json.loads(one.api.requests[0].body) == {"question": "go"}


@pytest.mark.parametrize("way", WAYS)
def test_net_http_over_http2(served: Callable[..., Served], binary: Path, way: str) -> None:
    one = served(None, "api.example.com", alpn=("h2", "http/1.1"))
    done = one.run(way, str(binary), API_KEY=PLACEHOLDER)
    one.assert_injected(done)
    assert done.stdout.startswith("200 ")
