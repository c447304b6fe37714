"""The table in docs/reference/engines.md of where the engines differ, as tests ask for it: what is not written there
must be the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "engines.md"
BOTH: Final = ("mitmproxy", "fast")
_ROW: Final = re.compile(r"\| `(\w+)` \| ([^|]+) \| `([^`|]+)`[^|]* \| `([^`|]+)`[^|]* \| ([^|]+) \|")


@dataclass(frozen=True)
class Difference:
    """One row."""

    what: str
    verdicts: dict[str, str]
    why: str


def differences() -> dict[str, Difference]:
    """The rows by key."""
    _, _, table = PAGE.read_text().partition("## Where the engines differ and why")
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    found = {}
    for line in lines:
        row = _ROW.fullmatch(line)
        assert row is not None, line
        assert row[1] not in found, f"{row[1]} stands twice"
        found[row[1]] = Difference(row[2], {"mitmproxy": row[3], "fast": row[4]}, row[5])
    return found
