"""What is known of a field by its name alone, judged once a name: callers and upstreams send few names, again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_NAMES: Final = 1024
"""Remembered by one judgement; then all of them are forgotten."""
MAX_NAME_BYTES: Final = 128
"""A longer name is judged each time."""


class ByName[T](dict[bytes, T]):
    """A judgement of names: `known[name]`.

    Args:
        judge: what it says of a name, always the same.
    """

    def __init__(self, judge: Callable[[bytes], T]) -> None:
        super().__init__()
        self._judge = judge

    def __missing__(self, name: bytes) -> T:
        found = self._judge(name)
        if len(name) <= MAX_NAME_BYTES:
            if len(self) >= MAX_NAMES:
                self.clear()
            self[name] = found
        return found
