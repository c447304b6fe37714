"""`ostiary run`: the proxy, in the foreground."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import stat
import threading
from typing import TYPE_CHECKING, Any

from ostiary.cli.common import CommandFailed, add_config, config_of

if TYPE_CHECKING:
    from ostiary.serve import Private


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run the proxy in the foreground",
        description="Runs the proxy. Prints one JSON line on stdout when every listener accepts; logs are JSON lines on stderr.",
    )
    add_config(parser)
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_workers,
        help="processes that serve, under a supervisor (default: workers of the settings, else 1: this process alone)",
    )
    # How a supervisor starts a worker: its end of their channel.
    parser.add_argument("--worker-fd", type=int, help=argparse.SUPPRESS)
    # How `exec` starts its private proxy: a descriptor with the workload and the hash of the one key that is accepted.
    parser.add_argument("--private-fd", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(command=command)


def _workers(text: str) -> int:
    from ostiary.settings.workers import MAX_WORKERS

    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"must be a whole number between 1 and {MAX_WORKERS}, not {text!r}")
    return int(text)


def command(options: argparse.Namespace) -> int:
    if options.worker_fd is not None:
        return _worker(options.worker_fd)
    # A hang-up asks for a reload. One that comes before there is anything to reload waits (`life.on_hang_up`), where it
    # would end the process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    try:
        return _run(options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(options: argparse.Namespace) -> int:
    import logging

    from ostiary.logs import set_up
    from ostiary.settings import Texts, load_to_run

    private: Private | None = None
    if options.private_fd is not None:
        private = _private(options.private_fd)
    set_up(logging.WARNING if private else logging.INFO)
    texts = Texts()
    settings, policy, addons = load_to_run(
        config_of(options), os.environ, private=private is not None, workers=options.workers, texts=texts
    )
    if settings.workers > 1:
        from ostiary.workers import supervisor

        return supervisor.main(settings, policy, texts, environ=os.environ)
    from ostiary.serve import main

    return main(settings, policy, environ=os.environ, private=private, addons=addons)


def _worker(descriptor: int) -> int:
    try:
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except (OSError, OverflowError):
        is_socket = False
    if not is_socket:
        raise CommandFailed("--worker-fd is for ostiary run itself", 64)
    from ostiary.workers import worker

    return worker.main(descriptor, os.environ)


def _private(descriptor: int) -> Any:
    from ostiary.serve import Private

    try:
        given = json.loads(os.read(descriptor, select.PIPE_BUF))
        private = Private(given["workload"], given["key_sha256"])
    except (OSError, OverflowError, ValueError, KeyError, TypeError):
        raise CommandFailed("--private-fd is for ostiary exec alone", 64) from None
    threading.Thread(target=_end_with, args=(descriptor,), name="end of exec", daemon=True).start()
    return private


def _end_with(descriptor: int) -> None:
    """Ends this process as SIGTERM does once nobody holds the other end: `exec` was killed, and can no longer say so."""
    os.read(descriptor, 1)
    os.kill(os.getpid(), signal.SIGTERM)
