"""Starts `python -m ostiary …` from a process that has its modules loaded already.

A start from nothing spends most of its time loading modules: over a whole run of the suite that is a third of it. Here
one process a test worker loads them once and forks for each start. What is forked is a process like any other (own
pid, working directory, environment, descriptors, signals, and the interpreter's ordinary end) that runs the package's
`__main__`; what it does not show is a start from nothing. `OSTIARY_TEST_DIRECT=1` starts everything from nothing;
tests of the start and of the search for canaries do so always, and so do those that change the interpreter.

Run as a program it is that process: one request a datagram on its standard input, the descriptors beside it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
MAX_REQUEST: Final = 1 << 20
MODULES: Final = (
    "ostiary.cli",
    "ostiary.logs",
    "ostiary.serve",
    "ostiary.settings",
    "ostiary.explain",
    "ostiary.doctor",
    "ostiary.engines.fast.engine",
    "ostiary.engines.mitm.engine",
    "vault.hashicorp",
    "vault.sealed",
)
"""What a start loads; whatever is missing here is loaded by the fork itself."""


class Forked:
    """One started process, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int, streams: Sequence[int]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout, self.stderr = (os.fdopen(one, "rb", buffering=0) for one in streams)
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        """It has ended: as `Popen`, minus the signal where one ended it."""
        self.returncode = code
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("ostiary", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that forks, as its tests see it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._running: dict[int, Forked] = {}
        self._codes: dict[int, int] = {}
        """Of those that ended before `start` had heard of them."""
        self._answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Killed with its tests: it reads the end of the socket.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.harness.warm"], stdin=theirs.fileno(), cwd=ROOT, start_new_session=True
            )
        self._pids: list[int] = []
        """Of the one that is being started, as soon as it is known."""
        self._told = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self, arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], stdin: int | None = None
    ) -> Forked:
        """Starts `ostiary` with these arguments.

        Args:
            stdin: a descriptor to read from; None means nothing to read.
        """
        request = {"arguments": list(arguments), "cwd": str(cwd), "environ": dict(environ)}
        given = os.open(os.devnull, os.O_RDONLY) if stdin is None else os.dup(stdin)
        pipes = (os.pipe(), os.pipe())
        theirs = (given, *(write for _, write in pipes))
        try:
            with self._turn, self._told:
                socket.send_fds(self._answers, [json.dumps(request).encode()], theirs)
                assert self._told.wait_for(lambda: bool(self._pids), 60), "the warm process does not answer"
                pid = self._pids.pop()
                one = Forked(pid, [read for read, _ in pipes])
                if pid in self._codes:
                    one.end(self._codes.pop(pid))
                else:
                    self._running[pid] = one
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return one

    def run(
        self, arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], stdin: bytes, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """As `subprocess.run` with captured output."""
        given = os.memfd_create("stdin")
        try:
            os.write(given, stdin)
            os.lseek(given, 0, os.SEEK_SET)
            one = self.start(arguments, cwd, environ, given)
        finally:
            os.close(given)
        with one.stdout, one.stderr, ThreadPoolExecutor(2) as readers:
            output, errors = (readers.submit(stream.read) for stream in (one.stdout, one.stderr))
            try:
                code = one.wait(timeout)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
                raise
            return subprocess.CompletedProcess(list(arguments), code, output.result(), errors.result())

    def _listen(self) -> None:
        while data := self._answers.recv(4096):
            told = json.loads(data)
            with self._told:
                if "started" in told:
                    self._pids.append(told["started"])
                    self._told.notify_all()
                elif (one := self._running.pop(told["ended"], None)) is not None:
                    one.end(told["code"])
                else:
                    self._codes[told["ended"]] = told["code"]


_warm: Warm | None = None
_making = threading.Lock()


def warm() -> Warm:
    """That of this test process."""
    global _warm  # noqa: PLW0603 - one a process
    with _making:
        if _warm is None:
            _warm = Warm()
        return _warm


def forks(environ: Mapping[str, str]) -> bool:
    """Whether a start in this environment may be a fork: nothing in it speaks to the interpreter or to a loader."""
    direct = os.environ.get("OSTIARY_TEST_DIRECT") == "1"
    special = [
        name
        for name in environ
        if name.startswith(("LD_", "PYTHON", "MALLOC_"))
        and environ[name] != os.environ.get(name)
        and name != "PYTHONPATH"
    ]
    return not direct and not special and environ.get("PYTHONPATH") == str(ROOT)


# --- the process itself ---


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Turns this fork into what was asked for."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 4096)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    gc.unfreeze()
    sys.argv = [str(ROOT / "ostiary" / "__main__.py"), *request["arguments"]]
    sys.path[:1] = [request["cwd"], str(ROOT)]


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks for each request; returns in a fork with what was asked for, and in this process when its tests are gone."""
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests.fileno(), *children], [], [])
        for descriptor in ready:
            if descriptor == requests.fileno():
                data, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST, 8)
                if not data:
                    for pid in children.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                pid = os.fork()
                if pid == 0:
                    request: dict[str, Any] = json.loads(data)
                    _become(request, descriptors)
                    return request
                for one in descriptors:
                    os.close(one)
                children[os.pidfd_open(pid)] = pid
                requests.send(json.dumps({"started": pid}).encode())
            else:
                pid = children.pop(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                requests.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def main() -> None:
    """Loads, then forks until its tests are gone."""
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    # A copy: descriptor 0 is the fork's standard input.
    requests = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if _serve(requests) is not None:
        requests.detach()  # closed with all the others
        runpy.run_module("ostiary", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
