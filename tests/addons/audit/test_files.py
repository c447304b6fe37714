"""Files: how they are opened, whole lines, rotation."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from addons.audit import files
from addons.audit.files import PLENTY, Appender, SinkError, free_bytes, inspect, open_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def appender(path: Path) -> Iterator[Appender]:
    one = Appender(open_file(path))
    yield one
    one.close()


def test_a_file_is_made_for_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        descriptor = open_file(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_what_cannot_be_opened_says_why(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SinkError) as missing:
        open_file(tmp_path / "none" / "audit.jsonl")
    assert "No such file or directory" in str(missing.value.strerror)
    with pytest.raises(SinkError, match="Is a directory"):
        open_file(tmp_path)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SinkError, match="symbolic link"):
        open_file(path)
    assert not (tmp_path / "elsewhere").exists()


def test_two_writers_are_refused(path: Path) -> None:
    first = open_file(path)
    with pytest.raises(SinkError, match="written by another process"):
        open_file(path)
    os.close(first)
    os.close(open_file(path))


def test_a_device_can_be_shared() -> None:
    first, second = open_file(Path("/dev/null")), open_file(Path("/dev/null"))
    os.close(first)
    os.close(second)


def failing(monkeypatch: pytest.MonkeyPatch, descriptor: int, *steps: int | OSError) -> None:
    """The next writes to this descriptor take that many bytes, or fail; then it works again."""
    left = list(steps)
    real = os.write

    def write(to: int, content: bytes) -> int:
        if to != descriptor or not left:
            return real(to, content)
        step = left.pop(0)
        if isinstance(step, OSError):
            raise step
        return real(to, content[:step])

    monkeypatch.setattr(os, "write", write)


def test_a_short_write_is_continued(appender: Appender, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, appender.descriptor, 3, 1)
    appender.write(b"0123456789\n")
    assert path.read_bytes() == b"0123456789\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_what_a_failed_append_left_is_taken_back(
    appender: Appender, path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    appender.write(b"first\n")
    failing(monkeypatch, appender.descriptor, 4, OSError(number, "no"))
    with pytest.raises(OSError, match="no"):
        appender.write(b"second\n")
    assert path.read_bytes() == b"first\n"
    appender.write(b"third\n")
    assert path.read_bytes() == b"first\nthird\n"


def test_where_it_cannot_be_taken_back_the_next_line_stands_alone(
    appender: Appender, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", refuse)
        failing(patched, appender.descriptor, 4, OSError(errno.EIO, "no"))
        with pytest.raises(OSError, match="no"):
            appender.write(b"second\n")
    appender.write(b"third\n")
    appender.write(b"fourth\n")
    assert path.read_bytes() == b"seco\nthird\nfourth\n"


def test_a_file_size_limit_leaves_whole_lines(path: Path) -> None:
    """A real fault: the kernel takes part of a line, then refuses."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (105, 105))

    script = """
import sys
from pathlib import Path
from addons.audit.files import Appender, open_file
appender = Appender(open_file(Path(sys.argv[1])))
for number in range(20):
    try:
        appender.write(b"%08d\\n" % number)
    except OSError as error:
        print(number, error.errno)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, path],
        check=True,
        capture_output=True,
        preexec_fn=limit,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=30,
    )
    assert path.read_bytes() == b"".join(b"%08d\n" % number for number in range(11))
    assert ran.stdout.decode().splitlines() == [f"{number} {errno.EFBIG}" for number in range(11, 20)]


def test_a_pipe_that_its_parent_made_non_blocking(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    appender = Appender(write)
    content = b"x" * 300_000 + b"\n"
    writer = threading.Thread(target=appender.write, args=(content,), daemon=True)
    writer.start()
    got = b""
    while len(got) < len(content):
        got += os.read(read, 65536)
    writer.join(5)
    assert got == content
    appender.close()
    os.close(read)


def test_a_closed_appender_writes_to_nobody_else(appender: Appender, path: Path) -> None:
    number = appender.descriptor
    appender.close()
    appender.close()
    reused = os.open(path.with_name("other"), os.O_CREAT | os.O_WRONLY)
    assert reused == number
    with pytest.raises(OSError, match="Bad file descriptor"):
        appender.write(b"line\n")
    os.close(reused)
    assert path.with_name("other").read_bytes() == b""


def test_space(appender: Appender) -> None:
    assert 0 < free_bytes(appender.descriptor) < PLENTY
    assert free_bytes(-1) == PLENTY


def test_inspection_follows_a_rotation(appender: Appender, path: Path) -> None:
    assert inspect(path, appender.descriptor).moved is None
    path.rename(path.with_name("audit.jsonl.1"))
    seen = inspect(path, appender.descriptor)
    assert seen.moved is not None
    assert not seen.gone
    os.write(seen.moved, b"new\n")
    assert path.read_bytes() == b"new\n"
    os.close(seen.moved)


def test_a_file_that_cannot_be_made_again_is_gone(appender: Appender, path: Path) -> None:
    path.unlink()
    path.parent.joinpath("audit.jsonl").mkdir()
    assert inspect(path, appender.descriptor).gone


def test_a_moved_file_that_cannot_be_made_again_still_has_a_name(appender: Appender, path: Path) -> None:
    path.rename(path.with_name("audit.jsonl.1"))
    path.symlink_to("/dev/full-of-nothing")
    seen = inspect(path, appender.descriptor)
    assert (seen.moved, seen.gone) == (None, False)


def test_the_door_of_the_package_is_the_same_error() -> None:
    import addons.audit

    assert addons.audit.SinkError is files.SinkError
