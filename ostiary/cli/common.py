"""What several commands share: the `--config` option, loading, and failing with a sentence."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


class CommandFailed(Exception):
    """A command cannot do what was asked; the message is for the terminal."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config FILE`, else OSTIARY_CONFIG, else ./ostiary.yaml."""
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="settings file (default: $OSTIARY_CONFIG, else ./ostiary.yaml)"
    )


def config_of(options: argparse.Namespace) -> Path:
    """The settings file of a command.

    Raises:
        CommandFailed: there is none.
    """
    given = options.config
    path = Path(given) if given is not None else Path(os.environ.get("OSTIARY_CONFIG") or "ostiary.yaml")
    if not path.exists():
        where = "" if given is not None else " (name one with --config FILE or OSTIARY_CONFIG)"
        raise CommandFailed(f"there is no settings file {path}{where}", 78)
    return path
