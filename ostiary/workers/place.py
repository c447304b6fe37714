"""One place in the crew: the process that fills it now, its channel, and how it stands."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ostiary.workers.backoff import BackOff
from ostiary.workers.channel import Answer, Channel

_log = logging.getLogger("ostiary.workers")

type State = Literal["fallen", "starting", "serving", "ending"]
STATES: Final[tuple[State, ...]] = ("fallen", "starting", "serving", "ending")
LAST_WORDS_S: Final = 5.0
"""How long what a worker has written before its end is waited for."""


@dataclass(slots=True)
class Place:
    """Args:
    number: from 0; it names the audit file too.
    """

    number: int
    state: State = "fallen"
    process: subprocess.Popen[bytes] | None = None
    channel: Channel | None = None
    version: str = ""
    """Of the policy that this process has in force."""
    metrics: str = ""
    """What it told last."""
    covered_by: int | None = None
    """The place whose worker accepts on these sockets while this one is empty."""
    back_off: BackOff = field(default_factory=BackOff)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    """It accepts for the first time."""

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


async def start(
    place: Place, answers: Mapping[str, Answer], beginning: Mapping[str, Any], descriptors: Sequence[int]
) -> tuple[asyncio.Task[None], asyncio.Future[int]]:
    """Starts a process for a place.

    Args:
        place: to be filled.
        answers: what the worker may ask.
        beginning: is told first.
        descriptors: that the worker inherits.

    Returns:
        The task that runs the channel, and the exit code to come.

    Raises:
        OSError: the machine has no room for another process; nothing is left of it.
    """
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        with theirs, _kept_off(signal.SIGINT, signal.SIGHUP):
            process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own interpreter and module; a fork takes a moment
                [*interpreter(), "-m", "ostiary", "run", "--worker-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *descriptors),
            )
        undo.callback(process.wait)
        undo.callback(process.kill)
        code = exit_code(process)
        channel = Channel(answers)
        await channel.open(ours)
        undo.pop_all()
    place.process, place.channel = process, channel
    running = asyncio.get_running_loop().create_task(channel.run())
    channel.tell("begin", **beginning)
    return running, code


@contextlib.contextmanager
def _kept_off(*numbers: signal.Signals) -> Iterator[None]:
    """Whoever is started meanwhile begins with these signals blocked, until it says what becomes of them: keys of a
    terminal, and its hang-up, reach every process there, and would end one that has just begun.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def interpreter() -> list[str]:
    """The interpreter as this process was started: with the same optimisation, isolation and places for modules."""
    given = [sys.executable, *["-O"] * sys.flags.optimize]
    if sys.flags.isolated:
        return [*given, "-I"]
    # `-m` puts the working directory first. Only where it stands there already: nothing is to be imported by chance.
    here = bool(sys.path) and os.path.realpath(sys.path[0]) == str(Path.cwd())
    return given if here else [*given, "-P"]


def exit_code(process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """How the process will have ended; negative for a signal."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    descriptor = os.pidfd_open(process.pid)

    def reap() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        code = process.wait()
        if not ended.done():
            ended.set_result(code)

    loop.add_reader(descriptor, reap)
    return ended


async def last_words(place: Place, running: asyncio.Task[None]) -> None:
    """Reads what an ended worker has left in the channel, and closes it."""
    await asyncio.wait([running], timeout=LAST_WORDS_S)
    if place.channel is not None:
        place.channel.close()
    place.channel = None


def told(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
