"""From settings to a store that is ready to be asked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from addons.clock import Clock
from addons.state.guarded import DEADLINE_S, Guarded
from addons.state.memory import MemoryStore
from addons.state.sqlite import SqliteStore
from addons.state.store import StateObserver, StateStore
from vault.secret import Secret

DEFAULT_PREFIX: Final = "ostiary"
_BUSY_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class StateConfig:
    """Where state lives. `path` is of SQLite, all else but `deadline_s` of a server."""

    kind: Literal["memory", "sqlite", "valkey"]
    path: Path | None = None
    host: str = ""
    port: int = 0
    database: int = 0
    tls: bool = False
    ca_file: Path | None = None
    username: str | None = None
    password: Secret | None = None
    prefix: str = DEFAULT_PREFIX
    deadline_s: float = DEADLINE_S

    def __str__(self) -> str:
        """Where it is, for people; without login."""
        match self.kind:
            case "memory":
                return "the memory of this process"
            case "sqlite":
                return str(self.path)
            case _:
                return f"{self.host}:{self.port}"


async def open_state(config: StateConfig, clock: Clock, observer: StateObserver) -> StateStore:
    """The store of the settings, behind its guard. A server that is down does not fail here: it is asked later.

    Raises:
        StateUnavailable: the file cannot be used.
    """
    return Guarded(
        await _store(config, clock), observer, clock.monotonic_s, deadline_s=config.deadline_s, jitter=random.random
    )


async def _store(config: StateConfig, clock: Clock) -> StateStore:
    if config.kind == "valkey":
        from addons.state.valkey import Server, ValkeyStore

        return ValkeyStore(
            Server(
                config.host,
                config.port,
                config.database,
                config.tls,
                config.ca_file,
                config.username,
                config.password,
                config.prefix,
            ),
            deadline_s=config.deadline_s,
        )
    if config.path is not None:
        store = SqliteStore(config.path, clock.wall_s, busy_s=config.deadline_s * _BUSY_SHARE)
        try:
            await store.start()
        except BaseException:
            await store.close()
            raise
        return store
    return MemoryStore(clock.monotonic_s)
