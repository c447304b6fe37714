"""Says what happens again with every request only the first time."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Final

MAX_KNOWN: Final = 1000
"""What is new beyond that is not said: records and metrics tell of it still."""


class Once:
    """Warnings, each said once in the life of a process.

    Args:
        log: where they go.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._known: set[Hashable] = set()

    def warn(self, key: Hashable, message: str, *arguments: object) -> None:
        """Logs a warning, unless one with this key has been logged."""
        if key in self._known or len(self._known) >= MAX_KNOWN:
            return
        self._known.add(key)
        self._log.warning(message, *arguments)
