"""What a test run leaves for `make report`: outcomes of tests and figures that tests state, as JSON in .cache/report/."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".cache" / "report"


def _replace(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(value, indent=0, sort_keys=True))
    written.replace(path)


def keep_outcomes(ended: Mapping[str, str]) -> None:
    """Adds outcomes by node id to those kept; a function that ran anew loses the cases of earlier runs."""
    path = FOLDER / "outcomes.json"
    before: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    anew = {name.partition("[")[0] for name in ended}
    _replace(path, {name: end for name, end in before.items() if name.partition("[")[0] not in anew} | dict(ended))


def figure(name: str, value: object) -> None:
    """States one figure of this run; the last one of a name counts."""
    safe = "".join(letter if letter.isalnum() else "-" for letter in name)[:120]
    _replace(FOLDER / "figures" / f"{safe}.json", {"name": name, "value": value})
