"""The regular file that the event loop appends to: backlog, reserve, rotation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from addons.audit import sinks
from addons.audit.files import PLENTY, Inspection, open_file
from addons.audit.sinks import InlineFile, Sink, Stopwatch


class Told:
    """What a sink reports."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.losses: list[str] = []

    def report(self, sink: Sink, failure: OSError | None) -> None:
        self.reports.append("works" if failure is None else str(failure.strerror))

    def lost(self, name: str, loss: str) -> None:
        self.losses.append(loss)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def sink(path: Path, told: Told) -> Iterator[InlineFile]:
    one = InlineFile(path, open_file(path), Stopwatch(), told.report, told.lost)
    yield one
    one.close(0)


class Broken:
    """While it is entered, no write succeeds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def __enter__(self) -> None:
        def refuse(descriptor: int, content: bytes) -> int:
            raise OSError(28, "No space left on device")

        self._real = os.write
        self._patch.setattr(os, "write", refuse)

    def __exit__(self, *_: object) -> None:
        self._patch.setattr(os, "write", self._real)


def test_a_closing_waits_for_the_disk(
    sink: InlineFile, path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Broken(monkeypatch):
        assert sink.append(b"closing\n", keep=True)
        assert not sink.append(b"note\n")
        sink.retry()
    assert told.losses == ["failed"]
    sink.retry()
    assert path.read_bytes() == b"closing\n"
    assert told.reports == ["No space left on device"] * 3 + ["works"]
    sink.retry()
    assert path.read_bytes() == b"closing\n"


def test_the_backlog_is_bounded(sink: InlineFile, path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "MAX_BACKLOG", 3)
    with Broken(monkeypatch):
        assert [sink.append(b"%d\n" % number, keep=True) for number in range(5)] == [True] * 3 + [False] * 2
    assert told.losses == ["backlog_full"] * 2
    sink.close(0)
    assert path.read_bytes() == b"0\n1\n2\n"


def test_the_reserve(sink: InlineFile) -> None:
    assert sink.scarce(PLENTY)
    assert not sink.scarce(0)
    sink.adopt(Inspection(free_bytes=10))
    assert sink.scarce(11)
    assert not sink.scarce(10)


def test_rotation_is_followed(sink: InlineFile, path: Path) -> None:
    sink.write(b"old\n")
    path.rename(path.with_name("audit.jsonl.1"))
    sink.write(b"still old\n")
    sink.adopt(sink.inspect())
    sink.write(b"new\n")
    assert path.with_name("audit.jsonl.1").read_bytes() == b"old\nstill old\n"
    assert path.read_bytes() == b"new\n"


def test_copy_and_truncate_is_followed(sink: InlineFile, path: Path) -> None:
    sink.write(b"old\n")
    os.truncate(path, 0)
    sink.write(b"new\n")
    assert path.read_bytes() == b"new\n"


def test_a_file_without_a_name_takes_nothing(sink: InlineFile, path: Path) -> None:
    """No record that nobody can read."""
    path.unlink()
    path.mkdir()
    sink.adopt(sink.inspect())
    with pytest.raises(FileNotFoundError):
        sink.write(b"line\n")
    path.rmdir()
    sink.adopt(sink.inspect())
    sink.write(b"line\n")
    assert path.read_bytes() == b"line\n"


def test_the_stopwatch_stands_still_between_writes(path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch()
    sink = InlineFile(path, open_file(path), watch, told.report, told.lost)
    seen: list[float] = []
    real = os.write

    def write(descriptor: int, content: bytes) -> int:
        seen.append(watch.since_s)
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", write)
    sink.write(b"line\n")
    assert seen[0] > 0
    assert watch.since_s == 0
    sink.close(0)
