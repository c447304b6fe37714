"""One process of a race: opens the store that its arguments name and reserves, marks and takes as fast as it can.

`python -m tests.addons.state.conformance.racer JSON` prints one JSON object when it is done.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from addons.clock import SystemClock
from addons.state import StateConfig, StateStore, StateUnavailable, open_state
from addons.state.store import SilentState


async def insist[T](call: Callable[[], Awaitable[T]]) -> T:
    """Until the store answers: a crowd may hold its lock longer than a deadline."""
    while True:
        try:
            return await call()
        except StateUnavailable:
            await asyncio.sleep(0.02)


async def race(store: StateStore, calls: int, limit: int) -> dict[str, int]:
    added = await asyncio.gather(*(insist(lambda: store.add("race:sum", 3, 600, limit)) for _ in range(calls)))
    firsts = await asyncio.gather(*(insist(lambda n=n: store.once(f"race:{n}", 600)) for n in range(calls)))  # type: ignore[misc]  # as in test_remembered
    taken = await asyncio.gather(*(insist(lambda: store.take("race:rate", 1, 20, 0.0001)) for _ in range(calls)))
    return {
        "added": sum(one.added for one in added),
        "most": max(one.value for one in added),
        "first": sum(firsts),
        "taken": sum(one.allowed for one in taken),
    }


async def main() -> None:
    given = json.loads(sys.argv[1])
    config = StateConfig(
        given["kind"],
        path=Path(given["path"]) if "path" in given else None,
        host="127.0.0.1",
        port=given.get("port", 0),
        prefix=given.get("prefix", "t"),
        deadline_s=5,
    )
    store = await open_state(config, SystemClock(), SilentState())
    print(json.dumps(await race(store, given["calls"], given["limit"])), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())
