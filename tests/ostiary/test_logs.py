"""Log lines: JSON, only our own words, and which worker says it."""

from __future__ import annotations

import json
import logging

from ostiary.logs import JsonLines


def line(formatter: JsonLines) -> dict[str, object]:
    record = logging.LogRecord("ostiary.x", logging.INFO, "x.py", 1, "said %s", ("so",), None)
    found: dict[str, object] = json.loads(formatter.format(record))
    return found


def test_a_worker_says_which_it_is() -> None:
    assert line(JsonLines(2))["worker"] == 2
    assert line(JsonLines(0))["worker"] == 0
    assert set(line(JsonLines())) == {"time", "level", "logger", "message"}
    assert line(JsonLines(1))["message"] == "said so"
