"""`ostiary exec`: runs a program behind a proxy, by default a private one that only this program can use.

The private proxy listens on loopback, where any local user could reach it, so it demands a random caller key that only
the program's environment holds. It serves one workload, reads the user's policies unchanged, and ends with the program,
or with this process, however that ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from ostiary.cli.common import CommandFailed, add_config, config_of
from ostiary.cli.env import for_client
from ostiary.cli.key import key_hash, new_key

_FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
EXIT_NOT_FOUND: Final = 127
EXIT_NOT_EXECUTABLE: Final = 126


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "exec",
        help="run a program behind a private proxy",
        description="Runs CMD with the proxy and CA environment set. Without --proxy a private proxy is started for one workload and ends with CMD. CMD's exit status and signals pass through.",
    )
    add_config(parser)
    parser.add_argument(
        "--proxy",
        metavar="URL",
        help="use this proxy instead of a private one ($OSTIARY_KEY is the caller key, if it needs one)",
    )
    parser.add_argument(
        "--workload", metavar="W", help="the workload CMD is (may be left out where the policy has but one)"
    )
    parser.add_argument("arguments", metavar="-- CMD …", nargs=argparse.REMAINDER, help="the program and its arguments")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    from ostiary.settings import load_all

    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    if not arguments:
        raise CommandFailed("name the program after --: ostiary exec -- curl https://api.example.com/", 64)
    path = config_of(options)
    settings, policy = load_all(path, os.environ, private=options.proxy is None)
    if options.proxy is not None:
        return _run(arguments, for_client(settings, policy, options.proxy, os.environ.get("OSTIARY_KEY"), os.environ))
    workload = _workload(options.workload, policy)
    key = new_key()
    with _private_proxy(path, workload, key) as address:
        return _run(arguments, for_client(settings, policy, address, key, os.environ))


def _workload(given: str | None, policy: Any) -> str:
    if given is None:
        if len(policy.workloads) != 1:
            raise CommandFailed(
                f"the policy has several workloads; say which with --workload: {', '.join(policy.workloads)}", 64
            )
        return str(next(iter(policy.workloads)))
    if given not in policy.workloads:
        raise CommandFailed(f"no policy defines workload {given!r}; there are {', '.join(policy.workloads)}", 64)
    return given


@contextmanager
def _private_proxy(path: Path, workload: str, key: str) -> Iterator[str]:
    """Starts the private proxy and gives its address; ends it afterwards."""
    read_end, write_end = os.pipe()
    # The child learns the hash alone; the key itself is only in the program's environment.
    # It is shorter than what a pipe takes and gives at once: the name of a workload is.
    os.write(write_end, json.dumps({"workload": workload, "key_sha256": key_hash(key)}).encode())
    proxy = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "ostiary", "run", "--config", str(path), "--private-fd", str(read_end)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=(read_end,),
        # Signals from the terminal are for the program; the proxy must outlive it.
        process_group=0,
    )
    os.close(read_end)
    try:
        yield _ready(proxy)
    finally:
        proxy.terminate()
        try:
            proxy.wait(15)
        except subprocess.TimeoutExpired:
            proxy.kill()
            proxy.wait()
        # Until here this process alone held this end: were it killed, the proxy would see that and end.
        os.close(write_end)


def _ready(proxy: subprocess.Popen[bytes]) -> str:
    line = proxy.stdout.readline() if proxy.stdout is not None else b""
    try:
        return str(json.loads(line)["listeners"][0]["address"])
    except (ValueError, KeyError, IndexError):
        code = proxy.wait()
        raise CommandFailed("the private proxy did not start", code or 70) from None


def _run(arguments: list[str], made: Any) -> int:
    for warning in made.warnings:
        sys.stderr.write(f"ostiary: warning: {warning}\n")
    environment = {**os.environ, **made.variables}
    for ours in ("OSTIARY_KEY", "OSTIARY_ADMIN_TOKEN"):
        environment.pop(ours, None)
    child: subprocess.Popen[bytes] | None = None
    waiting: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            waiting.append(number)
        else:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        try:
            child = subprocess.Popen(arguments, env=environment)  # noqa: S603 - what the user asked to run
        except FileNotFoundError:
            raise CommandFailed(f"{arguments[0]}: not found", EXIT_NOT_FOUND) from None
        except PermissionError:
            raise CommandFailed(f"{arguments[0]}: not executable", EXIT_NOT_EXECUTABLE) from None
        for number in waiting:
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
