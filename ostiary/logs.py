"""Logs: one JSON object a line on stderr. Only messages of our own loggers are written; an exception is told by its
type, since its text may hold anything.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON.

    Args:
        worker: number of the worker that says it; None where there is but one process, and for the supervisor.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._worker,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=False)


class _Own(logging.Filter):
    """Lets through what Ostiary itself says. Libraries may quote requests, headers and bodies in what they log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "ostiary" or record.name.startswith("ostiary."):
            return True
        if record.levelno < logging.ERROR:
            return False
        record.msg, record.args = "a library reported an error", ()
        return True


def set_up(level: int = logging.INFO, *, worker: int | None = None) -> None:
    """Directs all logging of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(worker))
    handler.addFilter(_Own())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ostiary").setLevel(level)
