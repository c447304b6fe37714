"""The reference page says what the code does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from addons.audit.coalesce import MAX_SOURCES, WINDOW_S
from addons.audit.config import AuditConfig
from addons.audit.record import MAX_TEXT, ORDER
from addons.audit.sinks import MAX_BACKLOG
from addons.audit.watchdog import HUNG_S

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/reference/audit.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SAMPLE = next(text for kind, text in BLOCKS if kind == "jsonl")
EXAMPLES = [(command, answer) for (one, command), (two, answer) in pairwise(BLOCKS) if (one, two) == ("sh", "text")]


def rows(after: str, until: str) -> list[str]:
    section = PAGE[PAGE.index(after) : PAGE.index(until)]
    return re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)


def test_every_key_in_its_order() -> None:
    assert rows("## Keys", "| outcome |") == ["v", "time", "event", "id", *ORDER]


def test_every_event_that_the_code_makes() -> None:
    source = "".join(path.read_text() for room in ("addons", "ostiary") for path in (ROOT / room).rglob("*.py"))
    made = set(re.findall(r'(?:\bnote|\.line|\.join|_emit)\(\s*"([a-z]+\.[a-z_]+)"', source))
    assert set(rows("## Events", "## Keys")) == made


def test_numbers() -> None:
    config = AuditConfig(())
    assert (f"{MAX_TEXT:,} characters", MAX_SOURCES, WINDOW_S, HUNG_S) == ("2,048 characters", 256, 10.0, 2.0)
    assert (MAX_BACKLOG, config.queue, config.wait_s, config.reserve_bytes) == (10_000, 10_000, 2.0, 64 << 20)
    for said in (
        "2,048 characters",
        "256 sources",
        "every ten seconds",
        "two seconds",
        "10,000 lines",
        "10,000 of them",
    ):
        assert said in PAGE


def test_the_sample_is_made_of_records() -> None:
    for line in SAMPLE.splitlines():
        record = json.loads(line)
        assert list(record) == [key for key in ("v", "time", "event", "id", *ORDER) if key in record]
        assert json.dumps(record, separators=(",", ":")) == line


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize(("command", "answer"), EXAMPLES)
def test_examples(tmp_path: Path, command: str, answer: str) -> None:
    (tmp_path / "audit.jsonl").write_text(SAMPLE)
    ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert (ran.stdout, ran.stderr) == (answer, "")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
