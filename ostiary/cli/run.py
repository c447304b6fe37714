"""`ostiary run`: the proxy, in the foreground."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from ostiary.cli.common import CommandFailed, add_config, config_of


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run the proxy in the foreground",
        description="Runs the proxy. Prints one JSON line on stdout when every listener accepts; logs are JSON lines on stderr.",
    )
    add_config(parser)
    # How `exec` starts its private proxy: a descriptor with the workload and the hash of the one key that is accepted.
    parser.add_argument("--private-fd", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    import logging

    from ostiary.logs import set_up
    from ostiary.serve import Private, main
    from ostiary.settings import load_to_run

    private: Private | None = None
    if options.private_fd is not None:
        private = _private(options.private_fd)
    set_up(logging.WARNING if private else logging.INFO)
    settings, policy, addons = load_to_run(config_of(options), os.environ, private=private is not None)
    return main(settings, policy, environ=os.environ, private=private, addons=addons)


def _private(descriptor: int) -> Any:
    from ostiary.serve import Private

    try:
        with os.fdopen(descriptor, "r") as handle:
            given = json.load(handle)
        return Private(given["workload"], given["key_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CommandFailed("--private-fd is for ostiary exec alone", 64) from None
