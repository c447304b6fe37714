"""Fixtures of the tests that run the real process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ostiary_process import ENGINES, Ostiary
from tests.harness.pki import Pki
from tests.harness.report import keep_outcomes
from tests.harness.upstream import Script, StreamScript, Upstream, plain

_ENDED: dict[str, str] = {}

POLICY = """
workloads:
  billing: {proofs: [{any: true}]}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key, ttl: 0}
    inject: {bearer: "{secret}"}
"""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes how each test ended, for `make report`. With xdist every report reaches the process that has no worker id."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "call" or report.outcome != "passed":
        outcome: str = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if report.skipped else "xpassed"
        if report.when == "call" or _ENDED.get(report.nodeid, "passed") != "failed":
            _ENDED[report.nodeid] = outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Joins what this run saw to what earlier ones did: `make test` runs everything, a developer runs one file."""
    if _ENDED and "PYTEST_XDIST_WORKER" not in os.environ:
        keep_outcomes(_ENDED)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def upstream(pki: Pki) -> Iterator[Callable[..., Upstream]]:
    """Makes upstreams; the first name of its certificate is `api.test` unless said otherwise."""
    made: list[Upstream] = []

    def make(
        script: Script | None = None,
        *,
        names: tuple[str, ...] = ("api.test",),
        alpn: tuple[str, ...] = ("http/1.1",),
        early: bool = False,
        trailers: tuple[tuple[str, str], ...] = (),
        http2_script: StreamScript | None = None,
        **bad: bool,
    ) -> Upstream:
        context = pki.context(*names, alpn=alpn, **bad)
        one = Upstream(context, script or plain(), early=early, trailers=trailers, http2_script=http2_script)
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine a test runs on."""
    return str(request.param)


@pytest.fixture
def ostiary(tmp_path: Path, pki: Pki, engine: str) -> Iterator[Callable[..., Ostiary]]:
    """Starts processes; at the end every one is stopped and everything it wrote is searched for canaries."""
    made: list[Ostiary] = []

    def make(policy: str = POLICY, *, start: bool = True, **given: Any) -> Ostiary:
        one = Ostiary(tmp_path / f"o{len(made)}", policy, ca_file=pki.ca_file, engine=engine, **given)
        made.append(one)
        return one.start() if start else one.write()

    yield make
    leaks: list[str] = []
    for one in made:
        if one.process is not None:
            leaks += one.leaks()
            assert one.stop() in {0, -9}, one.stderr.decode()
        leaks += one.leaks()
    assert not leaks, leaks
