"""A1-A3: an audit that fails, hangs, or was killed."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable

import pytest

from tests.harness.canaries import canary
from tests.harness.client import Answer, get, tunnel
from tests.harness.guides import wait_until
from tests.harness.ostiary_process import Ostiary
from tests.harness.upstream import Seen, Upstream, Wire


def start(ostiary: Callable[..., Ostiary], api: Upstream, **given: object) -> Ostiary:
    return ostiary(upstreams={"api.test:443": api.port}, secrets={"secret/egress/api": {"key": canary()}}, **given)


def test_a1_a_disk_that_fills_up(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    """A file-size limit stands for the full disk: the kernel cuts the write short, then refuses it."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    api = upstream()
    proxy = ostiary(
        start=False,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
        preexec=limit,
        # Under the limit Python would cut its own bytecode files short, and leave them to everybody else.
        environ={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    proxy.run()
    answers: list[Answer] = []
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        while len(answers) < 200 and (not answers or answers[-1].status == 200):
            answers.append(raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"))
    assert answers[-1].code == "audit_unavailable"
    assert len(api.requests) == len(answers) - 1
    assert proxy.get("/readyz")[0] == 503
    # Every line is whole, and every request that reached the upstream has its opened record.
    assert len(proxy.audit("credential.opened")) == len(api.requests)


def test_a1_one_of_several_sinks_suffices(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = start(ostiary, api, audit_block="audit: {sinks: [{file: /dev/full}, {file: audit.jsonl}]}")
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert len(proxy.wait_audit("credential.closed")) == len(api.requests) == 1
    assert proxy.get("/readyz")[0] == 200


def test_a2_a_pipe_that_nobody_reads(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = ostiary(
        start=False,
        upstreams={"api.test:443": api.port},
        secrets={"secret/egress/api": {"key": canary()}},
        audit_block="audit: {sinks: [{file: pipe}], wait: 300ms}",
    )
    os.mkfifo(proxy.folder / "pipe")
    proxy.run()
    statuses: list[int] = []
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        # The pipe takes 64 KiB before it blocks.
        while len(statuses) < 400 and (not statuses or statuses[-1] == 200):
            statuses.append(raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").status)
        began = time.monotonic()
        assert raw.request("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").code == "audit_unavailable"
        assert time.monotonic() - began < 2
    assert statuses[-1] == 503
    assert len(api.requests) == statuses.count(200)
    assert 'ostiary_refusals_total{code="audit_unavailable"}' in proxy.get("/metrics")[1].decode()
    assert proxy.get("/readyz")[0] == 503
    assert proxy.get("/healthz")[0] == 200
    # Draining the pipe brings it back.
    reader = os.open(proxy.folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        deadline = time.monotonic() + 10
        written = b""
        while proxy.get("/readyz")[0] != 200 and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                written += os.read(reader, 1 << 20)
            time.sleep(0.1)
        # Every request that went has its record in the pipe, whole.
        records = [json.loads(line) for line in written.splitlines()[:-1]]
        assert len([one for one in records if one["event"] == "credential.opened"]) >= statuses.count(200)
        assert proxy.get("/readyz")[0] == 200
        assert get(proxy.address("sidecar"), proxy.ca).status == 200
    finally:
        os.close(reader)


@pytest.mark.parametrize("durability", ["written", "fsync"])
def test_a3_records_left_open_by_a_kill_are_closed_at_the_next_start(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream], durability: str
) -> None:
    hold = threading.Event()

    def slow(seen: Seen, wire: Wire) -> None:
        if seen.target == "/slow":
            hold.wait(20)
        wire.answer(200, b"x")

    api = upstream(slow)
    proxy = start(ostiary, api, audit_block=f"audit: {{sinks: [{{file: audit.jsonl}}], durability: {durability}}}")
    assert get(proxy.address("sidecar"), proxy.ca, "/quick").status == 200
    proxy.wait_audit("credential.closed")
    with tunnel(proxy.address("sidecar"), proxy.ca) as raw:
        raw.send(b"GET /slow HTTP/1.1\r\nHost: api.test\r\n\r\n")
        proxy.wait_audit("credential.opened", 2)
        wait_until("the upstream has the request", lambda: len(api.requests) == 2)
        proxy.stop(signal.SIGKILL)
        hold.set()
    with (proxy.folder / "audit.jsonl").open("ab") as handle:
        handle.write(b'{"v":1,"event":"credential.op')
    proxy.run()
    closed = proxy.wait_audit("credential.closed", 2)
    interrupted = closed[1]
    opened = proxy.audit("credential.opened")[1]
    assert (interrupted["outcome"], interrupted["id"], interrupted["path"]) == ("interrupted", opened["id"], "/slow")
    assert [seen.target for seen in api.requests] == ["/quick", "/slow"]
    assert b"torn line of 29 bytes" in bytes(proxy.stderr)
    assert get(proxy.address("sidecar"), proxy.ca, "/quick").status == 200


def test_standard_output_is_a_sink_too(ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]) -> None:
    api = upstream()
    proxy = start(ostiary, api, audit_block="audit: {sinks: [{stdout: true}]}")
    assert get(proxy.address("sidecar"), proxy.ca).status == 200
    assert proxy.stop() == 0
    time.sleep(0.2)
    lines = [json.loads(line) for line in bytes(proxy.stdout).splitlines()]
    # The ready line comes first, whoever reads it.
    assert [line["event"] for line in lines] == ["ready", "policy.loaded", "credential.opened", "credential.closed"]
    assert lines[2]["id"] == lines[3]["id"]
