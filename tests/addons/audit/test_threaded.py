"""The writer thread: group commit, bounded waits, pipes and devices."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from addons.audit import threaded
from addons.audit.files import open_file
from addons.audit.sinks import Sink
from addons.audit.threaded import ThreadedSink


class Told:
    """What a sink reports, and on which thread."""

    def __init__(self) -> None:
        self.reports: list[int | None] = []
        self.losses: list[str] = []
        self.threads: set[int] = set()

    def report(self, sink: Sink, failure: OSError | None) -> None:
        self.threads.add(threading.get_ident())
        self.reports.append(None if failure is None else failure.errno)

    def lost(self, name: str, loss: str) -> None:
        self.threads.add(threading.get_ident())
        self.losses.append(loss)


@pytest.fixture
def told() -> Told:
    return Told()


type Make = Callable[..., ThreadedSink]


@pytest.fixture
def make(tmp_path: Path, told: Told) -> Iterator[Make]:
    made: list[ThreadedSink] = []

    def one(path: Path | None = None, **settings: Any) -> ThreadedSink:
        path = path or tmp_path / "audit.jsonl"
        given = {"sync": False, "capacity": 100, **settings}
        made.append(ThreadedSink(str(path), open_file(path), path, report=told.report, lost=told.lost, **given))
        return made[-1]

    yield one
    for sink in made:
        sink.close(0.5)


async def fate(sink: ThreadedSink, line: bytes) -> OSError | None:
    entry = sink.submit(line)
    assert entry is not None
    assert entry.waiter is not None
    async with asyncio.timeout(5):
        return await entry.waiter


async def settled(told: Told, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while len(told.reports) < count:
            await asyncio.sleep(0.005)


class Gate:
    """Holds the writer inside a system call."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str) -> None:
        self.inside = threading.Event()
        self.open = threading.Event()
        self.calls = 0
        real = getattr(os, name)

        def call(*given: Any) -> Any:
            if threading.current_thread().name.startswith("audit "):
                self.calls += 1
                self.inside.set()
                assert self.open.wait(10)
            return real(*given)

        patch.setattr(os, name, call)

    async def entered(self) -> None:
        assert await asyncio.to_thread(self.inside.wait, 5)


async def test_a_line_is_written_and_its_waiter_woken(make: Make, tmp_path: Path, told: Told) -> None:
    assert await fate(make(), b"line\n") is None
    assert (tmp_path / "audit.jsonl").read_bytes() == b"line\n"
    assert told.reports == [None]
    assert told.threads == {threading.get_ident()}


async def test_many_waiters_share_one_sync(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "fdatasync")
    sink = make(sync=True)
    first = asyncio.create_task(fate(sink, b"first\n"))
    await gate.entered()
    rest = [asyncio.create_task(fate(sink, b"%d\n" % number)) for number in range(50)]
    await asyncio.sleep(0.05)
    assert not first.done()
    gate.open.set()
    assert set(await asyncio.gather(first, *rest)) == {None}
    assert gate.calls == 2
    assert len((tmp_path / "audit.jsonl").read_bytes().splitlines()) == 51


async def test_a_failed_sync_fails_every_waiter_of_its_batch(
    make: Make, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    sink = make(sync=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        entry = sink.submit(b"line\n")
        assert entry is not None
        assert entry.waiter is not None
        failure = await entry.waiter
        assert failure is not None
        assert failure.errno == errno.EIO
        assert entry.arrived
        # What stands in the file unsynced is not written a second time.
        assert sink.append(b"closing\n", keep=True)
        await settled(told, 2)
    sink.retry()
    assert await fate(sink, b"after\n") is None
    assert (tmp_path / "audit.jsonl").read_bytes() == b"line\nclosing\nafter\n"


async def test_a_device_that_is_full(make: Make, told: Told) -> None:
    sink = make(Path("/dev/full"))
    failure = await fate(sink, b"line\n")
    assert failure is not None
    assert failure.errno == errno.ENOSPC
    assert sink.append(b"note\n")
    await settled(told, 2)
    assert told.losses == ["failed"]


async def test_a_note_that_fails_is_lost_and_a_closing_is_kept(
    make: Make, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = make()
    with monkeypatch.context() as patch:
        patch.setattr("addons.audit.files.os.write", refuse)
        assert sink.append(b"note\n")
        assert sink.append(b"closing\n", keep=True)
        async with asyncio.timeout(5):
            while not told.losses or not sink._backlog:
                await asyncio.sleep(0.005)
    assert told.losses == ["failed"]
    sink.retry()
    assert await fate(sink, b"after\n") is None
    assert (tmp_path / "audit.jsonl").read_bytes() == b"closing\nafter\n"


async def test_a_pipe_that_nobody_reads(make: Make, tmp_path: Path) -> None:
    """The pipe fills, the writer stands still, the queue fills; nothing waits without bound and nothing blocks."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    sink = make(pipe, capacity=5)
    entries = []
    for _ in range(100):
        entries.append(sink.submit(b"x" * 4095 + b"\n"))
        await asyncio.sleep(0.001)
    taken = [entry for entry in entries if entry is not None]
    assert entries[-1] is None
    assert len(taken) < 30
    late = [entry for entry in taken if entry.waiter is not None and not entry.waiter.done()]
    assert [sink.withdraw(entry) for entry in late].count(True) == 5
    # A reader comes: what was taken back never arrives, the sink works again.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    content = b""
    for _ in range(200):
        try:
            content += os.read(reader, 1 << 20)
        except BlockingIOError:
            if all(entry.waiter is not None and entry.waiter.done() for entry in taken if not entry.withdrawn):
                break
        await asyncio.sleep(0.01)
    assert len(content) == 4096 * (len(taken) - 5)
    assert await fate(sink, b"again\n") is None
    assert os.read(reader, 100) == b"again\n"
    os.close(reader)


async def test_a_full_queue_keeps_closings_and_counts_the_rest(
    make: Make, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threaded, "MAX_BACKLOG", 1)
    gate = Gate(monkeypatch, "write")
    sink = make(capacity=1)
    assert sink.append(b"under way\n")
    await gate.entered()
    assert sink.append(b"queued\n")
    assert not sink.append(b"note\n")
    assert sink.append(b"closing\n", keep=True)
    assert not sink.append(b"another closing\n", keep=True)
    assert told.losses == ["queue_full", "backlog_full"]
    gate.open.set()
    await settled(told, 2)
    sink.retry()
    await settled(told, 3)
    assert (tmp_path / "audit.jsonl").read_bytes() == b"under way\nqueued\nclosing\n"


async def test_what_the_thread_has_taken_cannot_be_taken_back(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "write")
    sink = make()
    first = sink.submit(b"first\n")
    await gate.entered()
    second = sink.submit(b"second\n")
    assert first is not None
    assert second is not None
    assert not sink.withdraw(first)
    assert sink.withdraw(second)
    gate.open.set()
    assert await fate(sink, b"third\n") is None
    assert (tmp_path / "audit.jsonl").read_bytes() == b"first\nthird\n"


async def test_rotation_is_followed(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded, "LOOK_S", 0.01)
    path = tmp_path / "audit.jsonl"
    sink = make(sync=True)
    assert await fate(sink, b"old\n") is None
    path.rename(tmp_path / "audit.jsonl.1")
    await asyncio.sleep(0.05)
    assert await fate(sink, b"new\n") is None
    assert (tmp_path / "audit.jsonl.1").read_bytes() == b"old\n"
    assert path.read_bytes() == b"new\n"


async def test_a_file_without_a_name_takes_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threaded, "LOOK_S", 0.01)
    path = tmp_path / "audit.jsonl"
    sink = make()
    path.unlink()
    path.mkdir()
    await asyncio.sleep(0.05)
    failure = await fate(sink, b"line\n")
    assert failure is not None
    assert failure.errno == errno.ENOENT


async def test_closing_writes_what_waits(make: Make, tmp_path: Path) -> None:
    sink = make()
    for number in range(50):
        sink.append(b"%d\n" % number)
    await asyncio.to_thread(sink.close, 5)
    assert len((tmp_path / "audit.jsonl").read_bytes().splitlines()) == 50
    assert sink.submit(b"late\n") is None


async def test_closing_waits_no_longer_than_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "write")
    sink = make()
    sink.append(b"line\n")
    await gate.entered()
    async with asyncio.timeout(2):
        await asyncio.to_thread(sink.close, 0.1)
    gate.open.set()
