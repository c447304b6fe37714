"""Contexts of TLS towards upstreams, kept by what they verify and show: for either library's contexts.

Rules:
- One that holds a client certificate's key goes when no connection was begun with it for `UNUSED_S`: a key that has been
  rotated or withdrawn does not stay in memory for as long as nothing pushes it out. The others hold nothing secret.
- Bounded: the one that was unused for longest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ostiary.engines.mitm.dialling import TlsTerms

MOST: Final = 256
UNUSED_S: Final = 300.0

type Key = tuple[Path | None, TlsTerms]


class Contexts[C]:
    """Contexts of one engine.

    Args:
        now_s: monotonic seconds.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._kept: OrderedDict[Key, tuple[float, C]] = OrderedDict()

    def get(self, key: Key) -> C | None:
        """The context of this kind; from now on it counts as used now."""
        known = self._kept.get(key)
        if known is None:
            return None
        self._kept[key] = (self._now_s(), known[1])
        self._kept.move_to_end(key)
        return known[1]

    def put(self, key: Key, context: C) -> None:
        self.sweep()
        self._kept[key] = (self._now_s(), context)
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)

    def sweep(self) -> None:
        """Lets go of certificates that nothing shows any more."""
        before_s = self._now_s() - UNUSED_S
        for key in [key for key, (used_s, _) in self._kept.items() if used_s < before_s and key[1].identity]:
            del self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)
