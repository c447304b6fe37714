"""`ostiary policy`: the examples that policies carry, and the schema for editors."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from ostiary.cli.common import add_config, config_of


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "policy",
        help="test policies, print their schema",
        description="Tests policies and prints the schema for editors.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    test = actions.add_parser(
        "test",
        help="run the examples that policies carry",
        description="Runs the tests: of every policy and tells which routes and denies none of them reached. Exit 0, 1 when one fails, 78 with faults.",
    )
    add_config(test)
    test.set_defaults(command=_test)
    schema = actions.add_parser(
        "schema",
        help="print the JSON Schema of a policy file",
        description="Prints the JSON Schema of a policy file, for editors.",
    )
    schema.set_defaults(command=_schema)


def _test(options: argparse.Namespace) -> int:
    from ostiary.settings import load_all
    from policies import run_tests

    _, policy = load_all(config_of(options), os.environ)
    report = run_tests(policy)
    for failure in report.failures:
        sys.stderr.write(f"{failure}\n")
    covered = len(policy.routes) - len(report.uncovered_routes)
    print(f"{report.passed} passed, {len(report.failures)} failed; {covered} of {len(policy.routes)} routes covered")
    for name in report.uncovered_routes:
        print(f"no test reaches route {name}")
    for name in report.uncovered_denies:
        print(f"no test reaches {name}")
    return 0 if report.ok else 1


def _schema(options: argparse.Namespace) -> int:  # noqa: ARG001 - takes none
    from policies import policy_schema

    print(json.dumps(policy_schema(), indent=2))
    return 0
