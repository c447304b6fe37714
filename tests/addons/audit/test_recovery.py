"""What a kill leaves behind, and what the next start makes of it."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.audit import Fields, FileSink, SinkError, recovery
from addons.audit.files import open_file
from addons.audit.record import Encoder
from addons.audit.recovery import recover
from addons.uuid7 import uuid7
from tests.addons.audit.conftest import ENDED, FACTS, Moved, Start, read

ROOT = Path(__file__).parents[3]
ENCODER = Encoder(Moved())


def opened(record_id: str, **more: Any) -> bytes:
    fields: Fields = {**FACTS, **more}  # type: ignore[typeddict-item]  # test data
    return ENCODER.line("credential.opened", record_id, fields)


def closed(record_id: str) -> bytes:
    return ENCODER.line("credential.closed", record_id, {**FACTS, **ENDED})


def recovered(path: Path) -> list[tuple[str, Fields]]:
    descriptor = open_file(path)
    try:
        return recover(descriptor, path)
    finally:
        os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_what_was_opened_and_never_closed(path: Path) -> None:
    one, two, three = uuid7(), uuid7(), uuid7()
    path.write_bytes(opened(one) + opened(two) + closed(one) + opened(three) + closed(three))
    ((record_id, fields),) = recovered(path)
    assert record_id == two
    assert fields == {**FACTS, "outcome": "interrupted"}


def test_an_empty_file(path: Path) -> None:
    assert recovered(path) == []
    assert path.read_bytes() == b""


def test_a_torn_tail_is_cut_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = uuid7()
    path.write_bytes(opened(one) + opened(uuid7())[:-1])
    with caplog.at_level(logging.WARNING):
        assert [record_id for record_id, _ in recovered(path)] == [one]
    assert path.read_bytes() == opened(one)
    assert "torn line" in caplog.text


def test_a_file_that_is_one_torn_line(path: Path) -> None:
    path.write_bytes(b'{"v":1')
    assert recovered(path) == []
    assert path.read_bytes() == b""


def test_a_torn_line_in_the_middle_hides_no_record(path: Path) -> None:
    one, torn = uuid7(), uuid7()
    path.write_bytes(opened(torn)[:120] + b"\n" + opened(one))
    assert [record_id for record_id, _ in recovered(path)] == [one]


def test_foreign_lines_are_read_over(path: Path) -> None:
    one = uuid7()
    content = b'\xff\xfe\x00\n[]\n""\n\n{"event":"credential.opened"}\n{"event":"credential.opened","id":"short"}\n'
    nested = b'{"inner":{"event":"credential.opened","id":"' + uuid7().encode() + b'"},"id":"other"}\n'
    path.write_bytes(content + opened(one) + nested + b"x" * 100 + b"\n")
    assert [record_id for record_id, _ in recovered(path)] == [one]


def test_no_value_can_pass_for_a_mark(path: Path) -> None:
    """A path that spells out the closing of another record closes nothing."""
    one, two = uuid7(), uuid7()
    forged = closed(one).decode()
    path.write_bytes(opened(one) + opened(two, path=f"/{forged}", method=forged, reason=forged))
    assert {record_id for record_id, _ in recovered(path)} == {one, two}


@pytest.mark.parametrize("chunk", [1, 7, 64, 400, 1000])
def test_lines_across_chunks(path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(recovery, "_CHUNK", chunk)
    one, two = uuid7(), uuid7()
    path.write_bytes(opened(one) + closed(one) + opened(two) + b'{"torn')
    assert [record_id for record_id, _ in recovered(path)] == [two]
    assert path.read_bytes().endswith(b"}\n")


def test_a_line_without_end_takes_no_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_CHUNK", 1000)
    monkeypatch.setattr(recovery, "_MAX_LINE", 5000)
    one, two = uuid7(), uuid7()
    path.write_bytes(opened(one) + b"x" * 50_000 + b"\n" + opened(two) + b"y" * 50_000)
    assert [record_id for record_id, _ in recovered(path)] == [one, two]
    assert path.read_bytes() == opened(one) + b"x" * 50_000 + b"\n" + opened(two)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40), st.integers(1, 600), st.integers(0, 300))
def test_against_a_reader_of_json(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]], chunk: int, cut: int
) -> None:
    names = [f"{number:036d}" for number in range(10)]
    content = b"".join((opened if begins else closed)(names[number]) for begins, number in steps)
    content = content[: len(content) - cut] if cut < len(content) else content
    expected: dict[str, None] = {}
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        record = json.loads(line)
        if record["event"] == "credential.opened":
            expected[record["id"]] = None
        else:
            expected.pop(record["id"], None)
    path = tmp_path_factory.mktemp("recovery") / "audit.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "_CHUNK", chunk)
        assert {record_id for record_id, _ in recovered(path)} == set(expected)
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]


# --- rotation ---


def test_a_record_opened_before_the_rotation(path: Path) -> None:
    one, two, three = uuid7(), uuid7(), uuid7()
    older = path.with_name("audit.jsonl.1")
    older.write_bytes(opened(one) + opened(two) + opened(three) + closed(three) + b'{"torn')
    path.write_bytes(closed(one))
    assert [record_id for record_id, _ in recovered(path)] == [two]
    assert older.read_bytes().endswith(b'{"torn')


def test_only_the_newest_uncompressed_rotation_counts(path: Path) -> None:
    one, two = uuid7(), uuid7()
    for number, (name, record_id) in enumerate(
        [("audit.jsonl.2", one), ("audit.jsonl-20260101", two), ("audit.jsonl.3.gz", one), ("audit.w1.jsonl", one)]
    ):
        path.with_name(name).write_bytes(opened(record_id))
        os.utime(path.with_name(name), (1000 + number, 1000 + number))
    path.with_name("audit.jsonl.9").symlink_to(path.with_name("audit.jsonl.2"))
    assert [record_id for record_id, _ in recovered(path)] == [two]


# --- the log at its start ---


async def test_a_start_closes_what_was_left_open_once(start: Start, audit_file: Path) -> None:
    one = uuid7()
    audit_file.write_bytes(opened(one) + b'{"v":1,"ev')
    log = await start()
    assert [(record["event"], record["id"]) for record in read(audit_file)] == [
        ("credential.opened", one),
        ("credential.closed", one),
    ]
    assert read(audit_file)[1]["outcome"] == "interrupted"
    await log.stop()
    await start()
    assert len(read(audit_file)) == 2


async def test_a_start_on_a_full_disk_keeps_the_closings(
    start: Start, audit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_file.write_bytes(opened(uuid7()))

    def refuse(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("addons.audit.files.os.write", refuse)
        log = await start()
    assert not log.healthy
    await log.stop()
    assert [record.get("outcome") for record in read(audit_file)] == [None, "interrupted"]


async def test_a_tail_that_cannot_be_cut_is_no_sink(
    start: Start, audit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_file.write_bytes(b'{"torn')

    def refuse(descriptor: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(SinkError, match="cannot be recovered"):
        await start(FileSink(audit_file))


CHILD = """
import asyncio, random, sys
from pathlib import Path
from addons.audit import AuditConfig, AuditLog, FileSink
from addons.clock import SystemClock
from addons.telemetry import Metrics

async def main():
    log = AuditLog(AuditConfig((FileSink(Path(sys.argv[1])),), sys.argv[2]), Metrics(), SystemClock())
    await log.start()
    print("started", flush=True)
    held = []
    while True:
        record = await log.open({"secret": "secret/api", "secret_version": "1", "path": "/" + "x" * 500})
        print(record.id, flush=True)
        held.append(record)
        if len(held) > 20:
            log.close(held.pop(random.randrange(20)), {"outcome": "ok"})

asyncio.run(main())
"""


@pytest.mark.parametrize("durability", ["written", "fsync"])
async def test_a3_after_kill_9_exactly_the_open_records_are_closed(
    start: Start, audit_file: Path, tmp_path: Path, durability: str
) -> None:
    told = tmp_path / "told"
    for run in range(3):
        with told.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, audit_file, durability],
                stdout=output,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        deadline = time.monotonic() + 20
        while told.read_bytes().count(b"\n") < 100 * (run + 1) and time.monotonic() < deadline:
            time.sleep(random.uniform(0.001, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    left = audit_file.read_bytes()
    before: dict[str, str] = {}
    for line in left[: left.rfind(b"\n") + 1].splitlines():
        record = json.loads(line)
        before[record["id"]] = record["event"]
    still_open = {record_id for record_id, event in before.items() if event == "credential.opened"}
    assert len(still_open) >= 20
    # Whoever was told that a record is open finds it in the file.
    said = {line for line in told.read_text().splitlines() if len(line) == 36}
    assert said <= set(before)
    await start()
    after = read(audit_file)
    interrupted = [record for record in after if record.get("outcome") == "interrupted"]
    assert {record["id"] for record in interrupted[-len(still_open) :]} == still_open
    endings = [record["id"] for record in after if record["event"] == "credential.closed"]
    assert sorted(endings) == sorted({record["id"] for record in after if record["event"] == "credential.opened"})
