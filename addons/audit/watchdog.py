"""Notices a write of the event loop that hangs. Such a write stops the loop, so only another thread can say so."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from addons.audit.sinks import Stopwatch

_log = logging.getLogger("ostiary.audit")

HUNG_S: Final = 2.0
"""A write that takes longer makes the process not ready."""


class Watchdog:
    """A thread that looks at a stopwatch.

    Args:
        stopwatch: runs while the event loop writes.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._stopping = threading.Event()
        self.hung = False

    @property
    def lag_s(self) -> float:
        """Age of the write that is under way; 0 while there is none."""
        since_s = self._stopwatch.since_s
        return time.monotonic() - since_s if since_s else 0.0

    def start(self) -> None:
        threading.Thread(target=self._run, name="audit watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(HUNG_S / 8):
            hung = self.lag_s > HUNG_S
            if hung and not self.hung:
                _log.critical("a write to an audit file has been hanging for %.0f s; nothing is sent meanwhile", HUNG_S)
            self.hung = hung
