"""The command line: one file a command, put together here. Names and exit codes are public (docs/reference/cli.md)."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from ostiary import __version__
from ostiary.cli import ca, check, doctor, env, execute, explain, key, policy, preset, reload, run, secret, vault
from ostiary.cli.common import CommandFailed
from policies.faults import FaultError

EXIT_SETTINGS = 78


def parser() -> argparse.ArgumentParser:
    """The whole parser; docs/reference/cli.md is checked against it."""
    top = argparse.ArgumentParser(
        prog="ostiary",
        description="A credential-injecting forward proxy: workloads send keyless requests, Ostiary holds the keys.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"ostiary {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (run, reload, check, explain, doctor, secret, key, execute, env, policy, preset, ca, vault):
        module.add(commands)
    return top


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command.

    Returns:
        Its exit code.
    """
    options = parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except FaultError as error:
        for fault in error.faults:
            sys.stderr.write(f"{fault}\n")
        return EXIT_SETTINGS
    except CommandFailed as error:
        sys.stderr.write(f"ostiary: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone: end as a shell tool would.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
