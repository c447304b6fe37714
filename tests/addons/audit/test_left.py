"""Files of workers that are no more: their open records are closed, those of the living are left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from addons.audit import AuditConfig, FileSink
from addons.audit.files import open_file
from addons.audit.left import left_behind
from addons.audit.record import Encoder
from addons.uuid7 import uuid7
from tests.addons.audit.conftest import FACTS, Moved, Start, read

ENCODER = Encoder(Moved())


def left_open(path: Path, record_id: str | None = None, tail: bytes = b"") -> str:
    record_id = record_id or uuid7()
    path.write_bytes(ENCODER.line("credential.opened", record_id, FACTS) + tail)
    return record_id


@pytest.mark.parametrize("durability", ["written", "fsync"])
async def test_what_is_open_there_is_closed(start: Start, audit_file: Path, durability: str) -> None:
    folder = audit_file.parent
    first = left_open(audit_file)
    third = left_open(folder / "audit.w2.jsonl", tail=b'{"torn')
    fourth = left_open(folder / "audit.w13.jsonl")
    log = await start(workers=2, durability=durability)
    await log.stop()
    for name, record_id in (("audit.jsonl", first), ("audit.w2.jsonl", third), ("audit.w13.jsonl", fourth)):
        opened, closed = read(folder / name)
        assert (closed["event"], closed["id"], closed["outcome"]) == ("credential.closed", record_id, "interrupted")
        assert closed["secret"] == opened["secret"] == "secret/egress/api"


async def test_files_of_living_workers_are_left_alone(start: Start, audit_file: Path) -> None:
    folder = audit_file.parent
    others = {
        name: folder / name
        for name in (
            "audit.w1.jsonl",
            "audit.w5.jsonl",
            "audit.w0.jsonl",
            "audit.w01.jsonl",
            "audit.exec-7.jsonl",
            "other.w3.jsonl",
            "audit.w4.jsonl.1",
        )
    }
    for path in others.values():
        left_open(path)
    before = {path: path.read_bytes() for path in others.values()}
    (folder / "audit.w6.jsonl").mkdir()
    (folder / "audit.w7.jsonl").symlink_to(others["other.w3.jsonl"])
    # Written by a process that lives, of another number of workers; and worker 1, which this crew has.
    held = open_file(others["audit.w5.jsonl"])
    try:
        await start(workers=2)
    finally:
        os.close(held)
    assert {path: path.read_bytes() for path in others.values()} == before


async def test_only_one_of_a_crew_looks_after_them(start: Start, audit_file: Path) -> None:
    path = audit_file.parent / "audit.w9.jsonl"
    left_open(path)
    await start()
    assert len(read(path)) == 1


def test_a_folder_that_cannot_be_read_is_no_reason_not_to_start(tmp_path: Path) -> None:
    assert list(left_behind(AuditConfig((FileSink(tmp_path / "gone" / "audit.jsonl"),), workers=1))) == []
