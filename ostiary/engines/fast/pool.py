"""Idle connections to upstreams, kept for the next request of the same kind.

Rules:
- Connections are shared by requests with the same `PoolKey` only: workload, authority, vetted addresses, roots.
- The one used last is taken first, so that the others age and go.
- Bounded in number, by key and in all, and in time. What an upstream closes, or sends a byte on unasked, leaves at once.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ostiary.engines.fast.link import Link
from ostiary.engines.mitm.dialling import PoolKey

IDLE_S: Final = 30.0
"""Below what servers keep idle connections open for (nginx 75 s, most balancers 60 s), so that few are closed under a
request."""
MAX_IDLE_OF_KEY: Final = 64
MAX_IDLE: Final = 1024
MAX_KEYS: Final = 2 * MAX_IDLE
"""Kinds that are remembered; those with no connection are until the next sweep, since most get theirs back."""


class Pool:
    """The idle connections of one process."""

    def __init__(self) -> None:
        self._idle: dict[PoolKey, deque[Link]] = {}
        self._count = 0

    def take(self, key: PoolKey) -> Link | None:
        """The connection of this kind that was used last, if one is still open."""
        waiting = self._idle.get(key)
        while waiting:
            link = waiting.pop()
            self._count -= 1
            link.pooled = False
            if link.usable:
                return link
            link.close()
        return None

    def give(self, link: Link, now_s: float) -> None:
        """Keeps a connection that has served its request; closes it where there are enough."""
        key = link.bound.pool_key
        waiting = self._idle.get(key)
        if self._count >= MAX_IDLE or (waiting is not None and len(waiting) >= MAX_IDLE_OF_KEY):
            link.close()
            return
        if waiting is None:
            if len(self._idle) >= MAX_KEYS:
                self._forget_empty()
            waiting = self._idle[key] = deque()
        link.pooled, link.idle_since_s = True, now_s
        waiting.append(link)
        self._count += 1

    def forget(self, link: Link) -> None:
        """A pooled connection that has ended."""
        waiting = self._idle.get(link.bound.pool_key)
        if waiting is not None and link in waiting:
            waiting.remove(link)
            self._count -= 1

    def sweep(self, now_s: float) -> None:
        """Closes what has been idle for too long."""
        for waiting in self._idle.values():
            while waiting and now_s - waiting[0].idle_since_s > IDLE_S:
                self._count -= 1
                old = waiting.popleft()
                old.pooled = False
                old.close()
        self._forget_empty()

    def _forget_empty(self) -> None:
        self._idle = {key: waiting for key, waiting in self._idle.items() if waiting}

    def close(self) -> None:
        for waiting in self._idle.values():
            for link in waiting:
                link.pooled = False
                link.close()
        self._idle.clear()
        self._count = 0

    def __len__(self) -> int:
        return self._count
