"""`make report`: docs/testing.md from the tests there are, their last outcomes, and the figures they state; and
docs/guides/clients.md from what tests measured of clients (`tools/clients.json`) and the words in `tools/clients.md`.

The tables say which test stands for which row of `tests/harness/rows.py`. A row is `defended` when tests name it and
every one of them passed in the recorded run; `in part` where what they test is not all of it; `leaks` where docs/threat-model.md says so; else `not built`, `not run` or `no test`. The
text holds no time, duration or path of a machine: two runs of one tree with one outcome give the same bytes.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.harness.report import FOLDER
from tests.harness.rows import ATTACKS, FAULTS, LATER, LEAKS

ROOT: Final = Path(__file__).parents[1]
TARGET: Final = ROOT / "docs" / "testing.md"
CLIENTS: Final = ROOT / "tools" / "clients.json"
"""What is known of clients; in the repository, since no machine has all of them."""
GUIDE: Final = ROOT / "docs" / "guides" / "clients.md"
_LANGUAGES: Final = ("Command line", "Python", "Node", "Deno", "Go", "Java", "Rust", "Docker")
_ROWS: Final = re.compile(r"^test_((?:[gvucaptlkf]\d{1,2}_)+)")
_WORST: Final = ("failed", "xpassed", "xfailed", "skipped", "passed")


def rows_of(name: str) -> tuple[str, ...]:
    """The rows that a test's name claims: `test_g18_u10_redirects` gives G18 and U10."""
    match = _ROWS.match(name)
    known = ATTACKS.keys() | FAULTS.keys()
    return tuple(row for row in (match.group(1).upper().split("_")[:-1] if match else ()) if row in known)


def rows_with_tests(root: Path = ROOT) -> dict[str, list[str]]:
    """Rows to `tests/…/test_x.py::test_name`, found by reading the sources."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((root / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for row in rows_of(node.name):
                    found[row].append(f"{path.relative_to(root).as_posix()}::{node.name}")
    return found


def outcomes(folder: Path = FOLDER) -> dict[str, str]:
    """Test functions to the worst outcome of their cases in the recorded run."""
    worst: dict[str, str] = {}
    path = folder / "outcomes.json"
    if path.exists():
        for case, outcome in json.loads(path.read_text()).items():
            name = case.partition("[")[0]
            kept = worst.get(name, outcome)
            worst[name] = min(kept, outcome, key=_WORST.index)
    return worst


def standing(row: str, tests: Iterable[str], seen: Mapping[str, str]) -> str:
    """What can be claimed of a row."""
    ended = [seen.get(test, "not run") for test in tests]
    if row in LEAKS:
        return f"leaks ({LEAKS[row]})"
    if "failed" in ended or "xpassed" in ended:
        return "FAILED"
    if "xfailed" in ended:
        return "leaks"
    if not ended:
        return f"not built ({LATER[row]})" if row in LATER else "no test"
    if row in LATER:
        return f"in part (waits for {LATER[row]})"
    return "defended" if "passed" in ended and "not run" not in ended else "not run"


def _table(rows: Mapping[str, str], tests: Mapping[str, list[str]], seen: Mapping[str, str]) -> list[str]:
    lines = ["| row | what | tests | standing |", "|---|---|---|---|"]
    for row, title in rows.items():
        named = tests.get(row, [])
        shown = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in named) or "-"
        lines.append(f"| {row} | {title} | {shown} | {standing(row, named, seen)} |")
    return lines


def figures(folder: Path = FOLDER) -> dict[str, Any]:
    """What tests stated, by name."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "figures").glob("*.json"))]
    return {entry["name"]: entry["value"] for entry in found}


def _torture(stated: Mapping[str, Any]) -> list[str]:
    lines = [
        "| request | engine | failed by | calls failed | refused or cut | credentials without a record | hung requests |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(stated):
        if name.startswith("torture "):
            one = stated[name]
            lines.append(
                f"| {one['kind']} | {one['engine']} | {one['how']} | {one['calls']} | {one['refused']} | {one['unrecorded']} | {one['hung']} |"
            )
    return lines if len(lines) > 2 else ["No run is recorded: `make test`, then `make report`."]


def kept_clients(folder: Path = FOLDER, kept: Path = CLIENTS) -> dict[str, dict[str, str]]:
    """What is kept of clients, and over it what the last runs measured."""
    found: dict[str, dict[str, str]] = json.loads(kept.read_text()) if kept.exists() else {}
    measured = folder / "clients.json"
    if measured.exists():
        for name, facts in json.loads(measured.read_text()).items():
            found[name] = found.get(name, {}) | facts
    return found


def clients_table(clients: Mapping[str, Mapping[str, str]]) -> str:
    """The matrix, by language and name."""
    lines = [
        "| client | version | by `exec` | by environment | what to set | reads the roots from | shows its key | cannot work |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = {language: at for at, language in enumerate(_LANGUAGES)}
    for name in sorted(clients, key=lambda name: (order[clients[name]["language"]], name.lower())):
        one = clients[name]
        cells = [one.get(fact, "-") for fact in ("version", "exec", "environment", "set", "roots", "key", "cannot")]
        lines.append(f"| {_titled(one['language'], name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _titled(language: str, name: str) -> str:
    return name if language in {"Command line", "Docker"} or language in name else f"{language}: {name}"


def clients_page(clients: Mapping[str, Mapping[str, str]]) -> str:
    """docs/guides/clients.md: the words of `tools/clients.md` around the matrix."""
    return CLIENTS.with_suffix(".md").read_text().replace("{table}", clients_table(clients))


def _clients(clients: Mapping[str, Mapping[str, str]]) -> list[str]:
    lines = [
        "More of each in [guides/clients.md](guides/clients.md).",
        "",
        "| client | version | result |",
        "|---|---|---|",
    ]
    for name, one in sorted(clients.items(), key=lambda item: item[0].lower()):
        ways = {one.get("exec", "not run"), one.get("environment", "not run")}
        result = (
            ways.pop()
            if len(ways) == 1
            else f"by exec: {one.get('exec', 'not run')}, by environment: {one.get('environment', 'not run')}"
        )
        lines.append(f"| {_titled(one['language'], name)} | {one['version']} | {result} |")
    return lines


def render(root: Path = ROOT, folder: Path = FOLDER) -> str:
    """The whole page."""
    tests, seen, stated = rows_with_tests(root), outcomes(folder), figures(folder)
    crowd = {name: value for name, value in stated.items() if not name.startswith("torture ")}
    parts: list[str] = [
        "# What is tested",
        "",
        "Made by `make report` from the tests and their last run; not written by hand. Each row is run against the real process with",
        "real sockets, unless its test stands under a room of the code. `defended`: the named tests passed. `leaks`: known not to hold,",
        "told in [threat-model.md](threat-model.md). `not built`: what would be attacked does not exist yet.",
        "",
        "## Attacks",
        "",
        *_table(ATTACKS, tests, seen),
        "",
        "## Faults",
        "",
        "Each test says three things: what the caller saw, what the upstream saw, what the audit says. After every process test all that",
        "the run left is searched for canaries: stdout, stderr, audit, metrics, files, the process's arguments and environment.",
        "",
        *_table(FAULTS, tests, seen),
        "",
        "## Torture",
        "",
        "Every call that a request makes (stages, store, audit, clock, resolver, dial) fails once, in turn.",
        "",
        *_torture(stated),
        "",
        "## Crowds",
        "",
    ]
    parts += ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in sorted(crowd.items()))]
    parts += ["", "## Clients", "", *_clients(kept_clients(folder)), ""]
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.report", description="Writes docs/testing.md and docs/guides/clients.md."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; 1 if a row of a built feature failed or has no test"
    )
    given = parser.parse_args(arguments)
    tests, seen = rows_with_tests(), outcomes()
    bad = [row for row in (*ATTACKS, *FAULTS) if standing(row, tests.get(row, []), seen) in {"FAILED", "no test"}]
    if not given.check:
        clients = kept_clients()
        CLIENTS.write_text(json.dumps(clients, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        GUIDE.write_text(clients_page(clients))
        TARGET.write_text(render())
    for row in bad:
        print(f"{row}: {standing(row, tests.get(row, []), seen)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
