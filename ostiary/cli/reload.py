"""`ostiary reload`: asks a running process, through its admin API, to read its policy files anew."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ostiary.cli.admin_call import add_admin, ask
from ostiary.cli.common import CommandFailed


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "reload",
        help="make a running process read its policy files anew",
        description="Asks the admin API to reload the policy and says what came of it. The token comes from --token-file or $OSTIARY_ADMIN_TOKEN. Exit 0, or 78 with the faults of a policy that was rejected; the old one then stays in force.",
    )
    add_admin(parser)
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    status, found = ask(options, "POST", "/reload")
    if status == 200:
        change = "" if found.get("changed") else ", unchanged"
        print(f"policy {found.get('version')} with {found.get('routes')} routes is in force{change}")
        return 0
    for fault in found.get("faults", ()):
        sys.stderr.write(f"{fault}\n")
    raise CommandFailed(f"{found['title']}: {found['detail']}", 78 if status == 422 else 1)
