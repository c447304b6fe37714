"""V1, V3, V4: a real Vault behind a real Toxiproxy. Slow, thin, cut in the middle, half open, gone: each caller has a typed
answer within the deadline, what the upstream sees is a whole credential or nothing, and nobody else waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Answer, get
from tests.harness.openbao import OpenBao, openbao_server
from tests.harness.ostiary_process import Ostiary
from tests.harness.toxiproxy import Line, toxic_line, toxiproxy_binary
from tests.harness.upstream import Upstream

POLICY = """
workloads: {billing: {proofs: {any: true}}}
routes:
  api:
    match: {host: api.test}
    allow: billing
    secret: {path: secret/egress/api, field: key, kv: 2, ttl: 0, max_stale: 0}
    inject: {bearer: "{secret}"}
  patient:
    match: {host: patient.test}
    allow: billing
    secret: {path: secret/egress/patient, field: key, kv: 2, ttl: 100ms, max_stale: 10m}
    inject: {bearer: "{secret}"}
  open: {match: {host: open.test}, allow: billing}
"""
DEADLINE_S = 2.0
"""Of one read of the store."""
SLACK_S = 6.0
SIZE = 20_000
"""Of a field beside the key: a bandwidth is noticed, and an answer has a middle."""
LONG = 30_000
"""Milliseconds; longer than any deadline."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with openbao_server(tmp_path_factory.mktemp("bao"), sealable=True) as server:
        yield server


class Case:
    """One process whose Vault lies behind a bad line."""

    def __init__(self, proxy: Ostiary, api: Upstream, key: str) -> None:
        self.proxy, self.api, self.key = proxy, api, key

    def ask(self, name: str = "api") -> Answer:
        return get(self.proxy.address("sidecar"), self.proxy.ca, authority=f"{name}.test:443")

    def serves(self, name: str = "api") -> None:
        """A request with its whole credential."""
        assert self.ask(name).status == 200
        assert self.api.requests[-1].get("Authorization") == (None if name == "open" else f"Bearer {self.key}")

    def refuses(self) -> None:
        """A typed answer in time, and an upstream that has seen nothing."""
        seen, refused = len(self.api.requests), len(self.proxy.audit("request.refused"))
        began_s = time.monotonic()
        answer = self.ask()
        assert (answer.status, answer.code) == (503, "secret_unavailable")
        assert int(answer.get("Retry-After") or 0) >= 1
        assert time.monotonic() - began_s < DEADLINE_S + SLACK_S
        assert len(self.api.requests) == seen
        assert self.proxy.wait_audit("request.refused", refused + 1)[-1]["code"] == "secret_unavailable"

    def comes_back(self) -> None:
        """Without a restart, once the line is well."""
        ends_s = time.monotonic() + 30
        while self.ask().status != 200:
            assert time.monotonic() < ends_s
            time.sleep(0.1)
        self.serves()

    def sockets(self) -> int:
        assert self.proxy.process is not None
        count = 0
        for entry in Path(f"/proc/{self.proxy.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                count += os.readlink(entry).startswith("socket:")
        return count

    def threads(self) -> int:
        assert self.proxy.process is not None
        text = Path(f"/proc/{self.proxy.process.pid}/status").read_text()
        return int(re.findall(r"^Threads:\s+(\d+)$", text, re.MULTILINE)[0])


@pytest.fixture
def line(bao: OpenBao) -> Iterator[Line]:
    toxiproxy_binary()
    with toxic_line(bao.address.removeprefix("http://")) as made:
        yield made


@pytest.fixture
def case(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], bao: OpenBao, line: Line) -> Case:
    key = canary("key")
    for name in ("api", "patient"):
        bao.put(f"egress/{name}", key=key, beside="x" * SIZE)
    rights = ("secret/data/egress/*", "auth/token/lookup-self")
    bao.policy("reader", "\n".join(f'path "{path}" {{ capabilities = ["read"] }}' for path in rights))
    token = bao.new_token("reader")
    api = upstream(names=("api.test", "patient.test", "open.test"))
    proxy = ostiary(
        POLICY,
        start=False,
        upstreams={f"{name}.test:443": api.port for name in ("api", "patient", "open")},
        store=f'vault:\n  addresses: ["http://{line.address}"]\n  auth: {{method: token_file, file: vault-token}}',
    )
    (proxy.folder / "vault-token").write_text(token)
    proxy.canaries += [key, token]
    return Case(proxy.run(), api, key)


def test_v3_v4_a_line_that_fails_in_every_way(case: Case, line: Line) -> None:
    case.serves("patient")
    case.serves()
    sockets, threads = case.sockets(), case.threads()
    # What is only slow, thin or in pieces is no failure.
    for well in (
        line.toxic("latency", latency=300, jitter=100),
        line.toxic("bandwidth", rate=200),
        line.toxic("slicer", average_size=400, size_variation=200, delay=10),
        line.toxic("slow_close", delay=2000),
    ):
        with well:
            case.serves()
    bad: list[AbstractContextManager[None]] = [
        line.toxic("latency", latency=LONG),
        line.toxic("latency", stream="upstream", latency=LONG),
        # 20 kB at 1 kB/s: it drips, and it is not waited for.
        line.toxic("bandwidth", rate=1),
        # Half open: the connection stays, and nothing travels; neither an answer nor, the other way, the request.
        line.toxic("timeout", timeout=0),
        line.toxic("timeout", stream="upstream", timeout=0),
        line.toxic("reset_peer", timeout=0),
        line.toxic("reset_peer", timeout=50),
        # Cut before the first byte, in the head, behind it, in the middle of the value, and a few bytes before its end.
        *(line.toxic("limit_data", bytes=count) for count in (1, 40, 300, 700, SIZE // 2, SIZE, SIZE + 300)),
        line.down(),
    ]
    for fault in bad:
        with fault:
            case.refuses()
            # In the middle of it, who needs nothing of Vault is served, and so is who may have what was read before.
            case.serves("open")
            case.serves("patient")
        case.comes_back()
    assert case.proxy.audit("credential.opened")[-1]["cache"] in {"miss", "bypass"}
    stale = [record for record in case.proxy.audit("credential.opened") if record["cache"] == "stale"]
    assert {record["route"] for record in stale} == {"patient"}
    assert len(stale) >= len(bad)
    assert b"Traceback" not in case.proxy.stderr
    # Every thread is back, and no broken connection was kept.
    case.serves()
    assert case.threads() <= threads + 4
    assert case.sockets() <= sockets + 8
    opened = {record["id"] for record in case.proxy.audit("credential.opened")}
    assert {record["id"] for record in case.proxy.wait_audit("credential.closed", len(opened))} == opened


def test_v3_a_crowd_on_a_line_that_is_half_open(case: Case, line: Line, bao: OpenBao, tmp_path: Path) -> None:
    """A hundred wait for one read; others are not held up; and as soon as the line is well, so is everything."""
    case.serves()
    audit = tmp_path / "bao-audit.jsonl"
    bao.api("PUT", "sys/audit/crowd", {"type": "file", "options": {"file_path": str(audit)}})
    try:
        with ThreadPoolExecutor(100) as pool:
            with line.toxic("timeout", timeout=0):
                seen = len(case.api.requests)
                crowd = [pool.submit(case.ask) for _ in range(100)]
                time.sleep(0.3)
                for _ in range(10):
                    before_s = time.monotonic()
                    case.serves("open")
                    assert time.monotonic() - before_s < DEADLINE_S + SLACK_S
                assert {(one.result().status, one.result().code) for one in crowd} == {(503, "secret_unavailable")}
                assert len(case.api.requests) == seen + 10
            case.comes_back()
        entries = [json.loads(text) for text in audit.read_text().splitlines()]
        reads = [
            entry
            for entry in entries
            if entry["type"] == "request" and entry["request"]["path"] == "secret/data/egress/api"
        ]
        # The hundred, the probes of those who came while the line was well again, and the last two.
        assert len(reads) < 20
    finally:
        bao.api("DELETE", "sys/audit/crowd")
