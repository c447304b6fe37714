"""What may come out of a step of the engine and must end one request, not the process."""

from __future__ import annotations

import asyncio
from typing import Final

FAILURES: Final = (Exception, asyncio.CancelledError)
"""A cancellation that reaches a callback of the loop is no cancellation of ours: it came out of a part, as any error."""


def cancelled() -> bool:
    """Whether the task that runs now has been asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
