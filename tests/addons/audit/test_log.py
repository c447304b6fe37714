"""The audit log: no record, no credential; bounded waits; health."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from addons.audit import AuditConfig, AuditLog, AuditUnavailable, Fields, FileSink, OpenRecord, SinkError, StdoutSink
from addons.audit import log as log_module
from addons.telemetry import Metrics
from tests.addons.audit.conftest import ENDED, FACTS, Moved, Start, events, read, until

ROOT = Path(__file__).parents[3]


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def now(coroutine: Any) -> OpenRecord:
    """The result of a coroutine that must not suspend."""
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    assert isinstance(ended.value.value, OpenRecord)
    return ended.value.value


def full(patch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
    real = os.write

    def write(descriptor: int, content: bytes) -> int:
        if b'"event":"' in content:
            raise OSError(number, os.strerror(number))
        return real(descriptor, content)

    patch.setattr(os, "write", write)


# --- records ---


async def test_opened_and_closed(start: Start, audit_file: Path, metrics: Metrics) -> None:
    log = await start()
    record = await log.open(FACTS)
    (opened,) = read(audit_file)
    assert opened == {
        "v": 1,
        "time": "2026-09-21T14:13:20.250Z",
        "event": "credential.opened",
        "id": record.id,
        **FACTS,
    }
    log.close(record, ENDED)
    closed = read(audit_file)[1]
    assert closed == {**opened, "event": "credential.closed", **ENDED}
    assert value(metrics, "ostiary_audit_records_total", event="credential.opened") == 1
    assert value(metrics, "ostiary_audit_records_total", event="credential.closed") == 1


async def test_an_ending_may_correct_what_was_opened(start: Start, audit_file: Path) -> None:
    log = await start()
    log.close(await log.open(FACTS), {**ENDED, "cache": "stale"})
    line = audit_file.read_bytes().splitlines()[1]
    assert line.count(b'"cache":') == 1
    assert json.loads(line)["cache"] == "stale"


async def test_a_record_closes_once(start: Start, audit_file: Path) -> None:
    log = await start()
    record = await log.open(FACTS)
    log.close(record, ENDED)
    log.close(record, {"outcome": "truncated"})
    assert events(audit_file) == ["credential.opened", "credential.closed"]
    assert log.ignored_closes == 1


async def test_a_regular_file_is_written_without_suspending(start: Start, audit_file: Path) -> None:
    log = await start()
    now(log.open(FACTS))
    assert events(audit_file) == ["credential.opened"]


async def test_notes(start: Start, audit_file: Path) -> None:
    log = await start()
    log.note("policy.loaded", {"version": "abc"})
    (record,) = read(audit_file)
    assert (record["event"], record["version"]) == ("policy.loaded", "abc")


# --- failures of a sink ---


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG])
async def test_a_disk_that_fails_means_no_record_and_no_credential(
    start: Start,
    audit_file: Path,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    monkeypatch.setattr(log_module, "TICK_S", 0.02)
    log = await start()
    before = await log.open(FACTS)
    with monkeypatch.context() as patch:
        full(patch, number)
        for _ in range(3):
            with pytest.raises(AuditUnavailable):
                await log.open(FACTS)
        log.close(before, ENDED)
        log.refused({**FACTS, "code": "path_denied"})
        log.note("policy.loaded", {"version": "abc"})
        assert not log.healthy
        assert os.strerror(number) in log.why
    # Nothing is asked of it now: it finds out by itself that the disk has room.
    await until(lambda: log.healthy)
    assert log.why == ""
    assert events(audit_file) == ["credential.opened", "credential.closed"]
    assert [record["id"] for record in read(audit_file)] == [before.id] * 2
    assert value(metrics, "ostiary_audit_lost_total", sink=str(audit_file), reason="failed") == 2
    assert [one.levelname for one in caplog.records if "audit sink" in one.message] == ["ERROR", "WARNING"]


async def test_health_before_and_after(audit_file: Path, metrics: Metrics, clock: Moved) -> None:
    log = AuditLog(AuditConfig((FileSink(audit_file),)), metrics, clock)
    health = [log.healthy]
    with pytest.raises(AuditUnavailable):
        await log.open(FACTS)
    await log.start()
    health.append(log.healthy)
    record = await log.open(FACTS)
    await log.stop()
    health.append(log.healthy)
    assert health == [False, True, False]
    assert log.why == "no sink is open"
    with pytest.raises(AuditUnavailable):
        await log.open(FACTS)
    log.close(record, ENDED)
    log.note("policy.loaded", {})
    await log.stop()
    assert events(audit_file) == ["credential.opened"]


async def test_without_a_sink_nothing_opens(metrics: Metrics, clock: Moved) -> None:
    log = AuditLog(AuditConfig(()), metrics, clock)
    await log.start()
    with pytest.raises(AuditUnavailable):
        await log.open(FACTS)
    await log.stop()


@pytest.mark.parametrize("name", ["none/audit.jsonl", "."])
async def test_a_sink_that_cannot_be_opened(start: Start, tmp_path: Path, name: str) -> None:
    with pytest.raises(SinkError, match="cannot be opened"):
        await start(FileSink(tmp_path / name))


async def test_two_logs_on_one_file(start: Start) -> None:
    await start()
    with pytest.raises(SinkError, match="another process"):
        await start()


async def test_the_device_that_is_always_full(start: Start) -> None:
    log = await start(FileSink(Path("/dev/full")))
    began = time.monotonic()
    with pytest.raises(AuditUnavailable):
        await log.open(FACTS)
    assert time.monotonic() - began < 0.25
    assert not log.healthy
    assert "No space left on device" in log.why


async def test_a_device_that_works_again_is_found_out(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "TICK_S", 0.02)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    log = await start(FileSink(pipe))
    with monkeypatch.context() as patch:
        full(patch)
        with pytest.raises(AuditUnavailable):
            await log.open(FACTS)
        await asyncio.sleep(0.1)
        health = [log.healthy]
    await until(lambda: log.healthy)
    assert health == [False]
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert [json.loads(line)["event"] for line in os.read(reader, 1 << 16).splitlines()] == ["audit.restored"]
    os.close(reader)


@pytest.mark.parametrize("durability", ["written", "fsync"])
async def test_a_sink_that_works_is_left_alone(
    start: Start, audit_file: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    monkeypatch.setattr(log_module, "TICK_S", 0.01)
    log = await start(durability=durability)
    log.close(await log.open(FACTS), ENDED)
    await asyncio.sleep(0.1)
    await log.stop()
    assert events(audit_file) == ["credential.opened", "credential.closed"]


async def test_one_sink_of_several_suffices(start: Start, audit_file: Path) -> None:
    log = await start(FileSink(Path("/dev/full")), FileSink(audit_file))
    record = now(log.open(FACTS))
    log.close(record, ENDED)
    assert events(audit_file) == ["credential.opened", "credential.closed"]
    await until(lambda: "/dev/full" in log.why)
    assert log.healthy


async def test_a_slow_sink_does_not_hold_up_a_quick_one(start: Start, tmp_path: Path, audit_file: Path) -> None:
    """Both have threads here; the pipe is full and nobody reads it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    filler = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        while True:
            os.write(filler, bytes(65536))
    except BlockingIOError:
        pass
    log = await start(FileSink(pipe), FileSink(audit_file), durability="fsync", wait_s=2.0)
    began = time.monotonic()
    log.close(await log.open(FACTS), ENDED)
    assert time.monotonic() - began < 1
    await until(lambda: len(read(audit_file)) == 2)
    os.read(filler, 1 << 20)
    os.close(filler)


async def test_a_pipe_that_nobody_reads(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    log = await start(FileSink(pipe), wait_s=0.1)
    opened: list[OpenRecord] = []
    long: Fields = {**FACTS, "path": "/" + "a" * 2000}
    with pytest.raises(AuditUnavailable):
        for _ in range(100):
            opened.append(await log.open(long))  # noqa: PERF401 - the list is wanted although it ends in an exception
    assert len(opened) > 10
    assert not log.healthy
    assert "it takes too long" in log.why
    began = time.monotonic()
    with pytest.raises(AuditUnavailable):
        await log.open(long)
    assert 0.05 < time.monotonic() - began < 1
    # Somebody reads: it works again, and the records in doubt are closed.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    content = b""

    def drained() -> bool:
        nonlocal content
        try:
            content += os.read(reader, 1 << 20)
        except BlockingIOError:
            return log.healthy and b"audit_unavailable" in content and content.endswith(b"\n")
        return False

    await until(drained)
    os.close(reader)
    records = [json.loads(line) for line in content.splitlines()]
    doubtful = [record for record in records if record["event"] == "credential.closed"]
    assert {record["id"] for record in records if record["event"] == "credential.opened"} == {
        *(one.id for one in opened),
        *(record["id"] for record in doubtful),
    }
    assert [(one["outcome"], one["code"]) for one in doubtful] == [("refused", "audit_unavailable")]


async def test_an_opener_that_goes_away_leaves_a_closed_record(
    start: Start, audit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        time.sleep(0.2)
        slow(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    log = await start(durability="fsync", wait_s=2.0)
    opening = asyncio.create_task(log.open(FACTS))
    await until(lambda: b"opened" in audit_file.read_bytes())
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: len(read(audit_file)) == 2)
    opened, closed = read(audit_file)
    assert (closed["event"], closed["id"], closed["outcome"]) == ("credential.closed", opened["id"], "interrupted")


async def test_a_sync_that_fails_is_no_record(start: Start, audit_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await start(durability="fsync")

    def fdatasync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(AuditUnavailable):
        await log.open(FACTS)
    await until(lambda: len(read(audit_file)) == 2)
    assert [record.get("code") for record in read(audit_file)] == [None, "audit_unavailable"]


async def test_group_commit(start: Start, audit_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = 0
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    log = await start(durability="fsync", wait_s=5.0)
    await asyncio.gather(*(log.open(FACTS) for _ in range(300)))
    assert len(read(audit_file)) == 300
    assert 1 <= syncs < 100


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_group_commit_as_the_kernel_sees_it(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from addons.audit import AuditConfig, AuditLog, FileSink
from addons.clock import SystemClock
from addons.telemetry import Metrics

async def main():
    log = AuditLog(AuditConfig((FileSink(Path(sys.argv[1])),), "fsync", 20.0), Metrics(), SystemClock())
    await log.start()
    await asyncio.gather(*(log.open({"secret": "s"}) for _ in range(200)))
    await log.stop()

asyncio.run(main())
"""
    trace = tmp_path / "trace"
    ran = subprocess.run(
        ["strace", "-f", "-e", "trace=fdatasync", "-o", trace, sys.executable, "-c", script, tmp_path / "audit.jsonl"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    if b"ptrace" in ran.stderr.lower():
        pytest.skip("processes cannot be traced here")
    assert ran.returncode == 0, ran.stderr.decode()
    assert len(read(tmp_path / "audit.jsonl")) == 200
    assert 1 <= trace.read_text().count("fdatasync(") < 100


def test_standard_output(tmp_path: Path) -> None:
    script = """
import asyncio
from addons.audit import AuditConfig, AuditLog, StdoutSink
from addons.clock import SystemClock
from addons.telemetry import Metrics

async def main():
    log = AuditLog(AuditConfig((StdoutSink(),)), Metrics(), SystemClock())
    await log.start()
    print("ready", flush=True)
    log.close(await log.open({"secret": "s"}), {"outcome": "ok"})
    await log.stop()
    print("still open")

asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    first, *records, last = ran.stdout.decode().splitlines()
    assert (first, last) == ("ready", "still open")
    assert [json.loads(line)["event"] for line in records] == ["credential.opened", "credential.closed"]
    assert StdoutSink() == StdoutSink()


# --- floods ---


async def test_g56_a_flood_of_unproven_requests_does_not_fill_the_disk(
    start: Start, audit_file: Path, clock: Moved
) -> None:
    log = await start()
    for number in range(20_000):
        log.refused({"source": f"10.1.{number % 1000 // 256}.{number % 256}", "code": "proof_required", "path": "/"})
    assert len(read(audit_file)) <= 257
    log.refused({**FACTS, "code": "path_denied"})
    log.refused({**FACTS, "code": "path_denied"})
    assert [record.get("workload") for record in read(audit_file)[-2:]] == ["billing"] * 2
    await log.stop()
    records = [record for record in read(audit_file) if record["event"] == "request.refused"]
    assert sum(record.get("count", 1) for record in records) == 20_002


async def test_counts_are_written_when_their_window_has_passed(
    start: Start, audit_file: Path, clock: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "TICK_S", 0.01)
    log = await start()
    assert not log.scarce
    for _ in range(5):
        log.refused({"source": "10.1.1.1", "code": "proof_required"})
    assert len(read(audit_file)) == 1
    clock.monotonic += 11
    await until(lambda: len(read(audit_file)) == 2)
    assert read(audit_file)[1]["count"] == 4


async def test_below_the_reserve_only_credentials_are_recorded(
    start: Start, audit_file: Path, metrics: Metrics
) -> None:
    log = await start(reserve_bytes=1 << 61)
    log.note("policy.loaded", {"version": "abc"})
    log.refused({**FACTS, "code": "path_denied"})
    log.close(await log.open(FACTS), ENDED)
    assert events(audit_file) == ["credential.opened", "credential.closed"]
    assert value(metrics, "ostiary_audit_lost_total", sink=str(audit_file), reason="reserve") == 2
    assert log.healthy
    assert log.scarce


# --- rotation ---


async def test_a_rotated_file_is_followed(start: Start, audit_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "TICK_S", 0.01)
    log = await start()
    record = await log.open(FACTS)
    audit_file.rename(audit_file.with_name("audit.jsonl.1"))
    await until(audit_file.exists)
    await log.reopen()
    log.close(record, ENDED)
    assert events(audit_file) == ["credential.closed"]


async def test_reopen_looks_at_once(start: Start, audit_file: Path) -> None:
    log = await start()
    audit_file.unlink()
    await asyncio.gather(*(log.reopen() for _ in range(5)))
    assert log.healthy
    await log.open(FACTS)
    assert events(audit_file) == ["credential.opened"]


FULL_DISK = """
import asyncio, json, os, sys
from pathlib import Path
from addons.audit import AuditConfig, AuditLog, AuditUnavailable, FileSink
from addons.clock import SystemClock
from addons.telemetry import Metrics

async def main():
    disk = Path(sys.argv[1])
    (disk / "filler").write_bytes(bytes(100_000))
    log = AuditLog(AuditConfig((FileSink(disk / "audit.jsonl"),), sys.argv[2]), Metrics(), SystemClock())
    await log.start()
    records = []
    try:
        while True:
            records.append(await log.open({"path": "/" + "x" * 700}))
    except AuditUnavailable:
        pass
    log.note("policy.loaded", {})
    for record in records:
        log.close(record, {"outcome": "ok"})
    told = {"opened": len(records), "healthy": log.healthy, "why": log.why}
    for _ in range(50):
        # The writer thread may be between a short write and taking it back: what counts is what stays.
        content = (disk / "audit.jsonl").read_bytes()
        told["whole"] = content.endswith(b"}\\n")
        if told["whole"]:
            break
        await asyncio.sleep(0.01)
    told["whole"] = told["whole"] and all(json.loads(line) for line in content.splitlines())
    (disk / "filler").unlink()
    for _ in range(100):
        await asyncio.sleep(0.05)
        if log.healthy:
            break
    told["healthy again"] = log.healthy
    await log.stop()
    lines = (disk / "audit.jsonl").read_bytes().splitlines()
    told["closed"] = sum(json.loads(line)["event"] == "credential.closed" for line in lines)
    print(json.dumps(told))

asyncio.run(main())
"""


@pytest.mark.parametrize("durability", ["written", "fsync"])
def test_a1_a_real_disk_that_is_full(tmp_path: Path, durability: str) -> None:
    command = 'mount -t tmpfs -o size=160k none "$1" && exec "$2" -c "$3" "$1" "$4"'
    probe = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, check=False, timeout=20
    )
    if probe.returncode:
        pytest.skip("no file system can be mounted here")
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-ec", command, "sh", tmp_path, sys.executable, FULL_DISK, durability],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    told = json.loads(ran.stdout)
    assert told["opened"] > 10
    assert not told["healthy"]
    assert "No space left on device" in told["why"]
    assert told["whole"]
    assert told["healthy again"]
    assert told["closed"] == told["opened"]
