"""Descriptors that records are appended to: opening them, keeping lines whole, following a rotated file.

Rules:
- A file is opened to append, with mode 0600, never through a symbolic link, and locked: one file, one writing process.
- A failed append leaves nothing behind, or else makes the next one begin with a line feed, so that a torn line never
  swallows a record.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FILE: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
PLENTY: Final = 1 << 62
"""Free space where the notion has no meaning."""


class SinkError(OSError):
    """A sink cannot be opened; `strerror` names it and the reason."""


def open_file(path: Path) -> int:
    """Opens a sink's file, or the pipe or device that is there.

    Raises:
        SinkError: it cannot be opened, is a symbolic link to a file, or another process writes it.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode) if path.exists() else stat.S_IFREG
        if kind != stat.S_IFREG:
            # A pipe is opened for both ways: it must neither wait for a reader nor die with one.
            flags = os.O_RDWR if kind == stat.S_IFIFO else os.O_WRONLY
            return os.open(path, flags | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY)
        descriptor = os.open(path, _FILE, 0o600)
    except OSError as error:
        raise SinkError(error.errno, f"audit file {path} cannot be opened: {os.strerror(error.errno or 0)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SinkError(errno.EBUSY, f"audit file {path} is written by another process; give each its own") from None
    except OSError as error:
        os.close(descriptor)
        reason = os.strerror(error.errno or 0)
        raise SinkError(error.errno, f"audit file {path} cannot be locked: {reason}; use a local file system") from None
    return descriptor


def is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def sync_folder(path: Path) -> None:
    """Makes the name of a new file durable; its content alone would be lost with the name."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Appender:
    """Appends whole lines to a descriptor, which it owns."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.regular = is_regular(descriptor)
        self._torn = False

    def write(self, lines: bytes) -> None:
        """Appends all or nothing.

        Raises:
            OSError: nothing was appended, or what was is marked so that the next line stands alone.
        """
        payload = b"\n" + lines if self._torn else lines
        done = 0
        try:
            while done < len(payload):
                try:
                    done += os.write(self.descriptor, payload[done:] if done else payload)
                except BlockingIOError:
                    # A parent has made the pipe non-blocking. Only a writer thread has pipes, and it may wait.
                    self._await_room()
        except OSError:
            if done:
                self._torn = not self._cut(done)
            raise
        self._torn = False

    def _await_room(self) -> None:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        poll.poll()

    def _cut(self, done: int) -> bool:
        """Takes back what a failed append left; False where that cannot be done."""
        if not self.regular:
            return False
        try:
            os.ftruncate(self.descriptor, os.fstat(self.descriptor).st_size - done)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Closes the descriptor. A later write fails: its number may by then be somebody else's."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def free_bytes(descriptor: int) -> int:
    """Space left for this process on the descriptor's file system, in bytes; `PLENTY` where that has no meaning."""
    try:
        space = os.fstatvfs(descriptor)
    except OSError:
        return PLENTY
    return space.f_bavail * space.f_frsize if space.f_blocks else PLENTY


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look at an open file and its path has shown."""

    free_bytes: int
    moved: int | None = None
    """A new descriptor, where the path no longer names the open file."""
    gone: bool = False
    """The open file has no name any more and a new one could not be made: what is written to it nobody can read."""


def inspect(path: Path, descriptor: int) -> Inspection:
    """Looks after rotation and free space. Blocks as disks do: never called on the event loop."""
    free = free_bytes(descriptor)
    try:
        here = os.fstat(descriptor)
        there = path.stat(follow_symlinks=False)
        if (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev):
            return Inspection(free)
    except FileNotFoundError:
        pass
    except OSError:
        return Inspection(free)
    try:
        return Inspection(free, moved=open_file(path))
    except SinkError:
        return Inspection(free, gone=here.st_nlink == 0)
