"""What a test run leaves for `make report`: outcomes of tests and figures that tests state, as JSON in .cache/report/."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
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


def client(name: str, **facts: str) -> None:
    """States facts of one client; what is stated of it in other tests stays (docs/guides/clients.md is made of them)."""
    path = FOLDER / "clients.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "clients.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        known: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
        known[name] = known.get(name, {}) | facts
        _replace(path, known)


@contextlib.contextmanager
def measuring(name: str, fact: str, value: str = "works", **more: str) -> Iterator[None]:
    """States a fact of a client once the block has ended well; `FAILS` as long as it has not."""
    client(name, **{fact: "FAILS"})
    yield
    client(name, **{fact: value}, **more)
