"""What a connection does that has to wait: the rest of a hook, and tasks of its own. It ends with the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ostiary.engines.mitm.handler import PIPELINE_DEADLINE_S


class Steps:
    """The tasks of one connection.

    Args:
        loop: of this thread.
    """

    __slots__ = ("_loop", "_tasks")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs what has to wait; cancelled when the connection ends."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def finish(
        self,
        rest: Coroutine[Any, Any, None],
        then: Callable[[], None],
        guarded: Callable[[Callable[[], None]], None],
    ) -> None:
        """Runs the rest of a hook within the deadline of stages, then goes on, also where it was cancelled: what it was
        about is refused by then.

        Args:
            rest: as the dispatcher gives it; it never raises.
            then: the next step; taken at once where nothing has to wait after all.
            guarded: takes a step that comes later, and whatever fails in it.
        """
        task = asyncio.Task(rest, loop=self._loop, eager_start=True)
        if task.done():
            then()
            return
        deadline = self._loop.call_later(PIPELINE_DEADLINE_S, task.cancel)
        self._tasks.add(task)

        def completed(done: asyncio.Task[None]) -> None:
            deadline.cancel()
            self._tasks.discard(done)
            guarded(then)

        task.add_done_callback(completed)

    def cancel(self) -> None:
        """The connection has ended."""
        for task in tuple(self._tasks):
            task.cancel()
