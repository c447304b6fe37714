"""`ostiary doctor`: walks the chain a request walks, one line a check, and says how to mend what is broken."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
from typing import Any, Final

from ostiary.cli.common import add_config, config_of

_WIDTH: Final = 19


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="find what is broken between a client and its upstream",
        description="Walks the chain a request walks: settings, files, CA, this environment, proxy, caller, policy, secret store, upstreams, clock, audit. Sends no request and no credential upstream, reads no secret's value. Exit 0 when nothing failed (warnings do not count), else 1.",
    )
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    from ostiary.doctor.chain import walk
    from ostiary.doctor.finding import counted

    # What modules log on the way is told by their findings.
    logging.disable(logging.CRITICAL)
    found = asyncio.run(walk(config_of(options), os.environ))
    failed = sum(finding.state == "fail" for finding in found)
    if options.json:
        print(
            json.dumps(
                {
                    "ok": not failed,
                    "findings": [
                        {"id": one.id, "state": one.state, "found": one.found}
                        | ({"mend": one.mend} if one.mend else {})
                        for one in found
                    ],
                }
            )
        )
        return 1 if failed else 0
    for one in found:
        print(f"{one.state:<4}  {one.id:<{_WIDTH}}{one.found}")
        if one.state in {"fail", "warn"} and one.mend:
            print(f"{'':<{6 + _WIDTH}}-> {one.mend}")
    warned = sum(finding.state == "warn" for finding in found)
    print(f"{failed} failed, {counted(warned, 'warning')}, {counted(len(found), 'finding')}")
    return 1 if failed else 0
