"""When a caller's connection as a whole has been silent for too long.

mitmproxy's own watchdog knows one number for every connection and goes by the wall clock. A request in flight may be
allowed to be silent for longer than that by its route; it has tighter deadlines of its own (`watch`), and this one only
catches what they leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mitmproxy.proxy.server import TimeoutWatchdog


class InactivityWatch(TimeoutWatchdog):
    """Asks, each time the silence seems too long, how long it may be by now.

    Args:
        allowed_s: seconds of silence that are allowed at this moment.
        silent: awaited once, when there were more.
    """

    def __init__(self, allowed_s: Callable[[], float], silent: Callable[[], Awaitable[None]]) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(0, silent)
        self._allowed_s = allowed_s
        self.register_activity()

    def register_activity(self) -> None:
        """Bytes moved, or a hook is done."""
        self.last_activity = self._loop.time()

    async def watch(self) -> None:
        """Runs for as long as the connection; ends when it was silent for too long."""
        while True:
            await self.can_timeout.wait()
            left_s = self.last_activity + self._allowed_s() - self._loop.time()
            if left_s <= 0:
                await self.callback()
                return
            await asyncio.sleep(left_s)
