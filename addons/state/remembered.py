"""What is kept below one prefix, remembered in this process: kills and address rules, asked on every request without
waiting, and standing while the store is down.

Rules:
- A poll every `POLL_S` brings changes, so that what one process keeps is known to all within a second.
- An outage changes nothing: the last known items stand until they expire. How old they are is told.
- A store that comes back with another epoch has lost what it held. What is remembered is given back to it before its
  word counts again: a kill is lifted by being deleted, never by a server that restarted without its disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from addons.state.store import (
    NOTHING,
    Item,
    Listing,
    StateConflict,
    StateError,
    StateObserver,
    StateStore,
)

POLL_S: Final = 0.4
BACK_S: Final = 86_400.0
"""How long it is known that an item was given back."""
_MIN_LEFT_S: Final = 0.001
_log = logging.getLogger("ostiary.state")


class Remembered:
    """The last known items below a prefix.

    Args:
        store: behind its guard.
        prefix: such as `kill:`.
        clock: seconds that only grow; items expire by it.
        observer: told how old what is known is.
        poll_s: between two polls, jittered downwards.
    """

    def __init__(
        self,
        store: StateStore,
        prefix: str,
        clock: Callable[[], float],
        observer: StateObserver,
        *,
        poll_s: float = POLL_S,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._observer = observer
        self._poll_s = poll_s
        self._revision = ""
        self._known: dict[str, tuple[Item, float]] = {}
        self._heard_s = -math.inf
        self._began_s = clock()
        self._task: asyncio.Task[None] | None = None
        self._down = False

    async def start(self) -> None:
        """Asks once, so that what stands is known before the first request, and polls from then on.

        Raises:
            StateError: the store did not answer; polling goes on, and `known` is False until it does.
        """
        try:
            await self.refresh()
        finally:
            self._task = asyncio.get_running_loop().create_task(self._poll(), name=f"state {self._prefix}")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def known(self) -> bool:
        """Whether the store ever answered: before that, nothing is known of kills, and nobody may be let through."""
        return self._heard_s > -math.inf

    @property
    def age_s(self) -> float:
        """Since the store last answered, or since the start where it never did."""
        return self._clock() - (self._heard_s if self.known else self._began_s)

    def get(self, key: str) -> bytes | None:
        """The value of a key as last known, None where there is none or it has expired."""
        found = self._known.get(key)
        return found[0].value if found is not None and found[1] > self._clock() else None

    def items(self) -> Mapping[str, bytes]:
        """All that stands, by key."""
        now_s = self._clock()
        return MappingProxyType({key: item.value for key, (item, ends_s) in self._known.items() if ends_s > now_s})

    async def refresh(self) -> None:
        """Asks now: whoever has just put a kill need not wait for the poll.

        Raises:
            StateError: the store did not answer; what is known stands.
        """
        listing = await self._store.changes(self._revision, self._prefix)
        if listing is not None:
            if self._lost(listing):
                _log.warning("the state store lost what it held; %d items are given back to it", len(self.items()))
                await self._give_back()
                listing = await self._store.items(self._prefix)
            self._take_over(listing)
        self._heard_s = self._clock()

    def _lost(self, listing: Listing) -> bool:
        epoch = self._revision.partition(":")[0]
        return epoch not in {"", NOTHING.partition(":")[0]} and listing.epoch != epoch

    async def _give_back(self) -> None:
        now_s = self._clock()
        for key, (item, ends_s) in tuple(self._known.items()):
            left_s = ends_s - now_s
            if left_s >= _MIN_LEFT_S:
                # Marked once it is back: who comes later must not undo that it was lifted meanwhile.
                back = self._back(item)
                if (await self._store.add(back, 0, BACK_S)).value > 0:
                    continue
                with contextlib.suppress(StateConflict):  # somebody else gave it back, or put a newer one
                    await self._store.put(key, item.value, ttl_s=None if math.isinf(left_s) else left_s, expect=0)
                await self._store.add(back, 1, BACK_S)

    def _back(self, item: Item) -> str:
        epoch = self._revision.partition(":")[0]
        return "back:" + hashlib.sha256(f"{epoch}:{item.version}:{item.key}".encode()).hexdigest()

    def _take_over(self, listing: Listing) -> None:
        now_s = self._clock()
        self._known = {
            item.key: (item, math.inf if item.ttl_left_s is None else now_s + item.ttl_left_s) for item in listing.items
        }
        self._revision = listing.revision

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s * random.uniform(0.8, 1.0))  # noqa: S311 - spreads load, guards nothing
            try:
                await self.refresh()
                down = False
            except StateError as error:
                down = True
                if not self._down:
                    _log.warning("%s; what is known below %s stands", error.reason, self._prefix)
            if self._down and not down:
                _log.info("the state store answers again")
            self._down = down
            self._observer.state_age(self._prefix, self.age_s)
