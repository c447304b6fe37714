"""Readiness: a policy is in force, an audit record could be written, and the secret store, and the state store where
there is one, can be reached or was reached inside the time for which stale secrets may serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from addons.audit import AuditLog
from addons.clock import Clock
from addons.state import StateError, StateStore
from ostiary.admin.control import Readiness
from vault.store import SecretStore, StoreError

STALE_S: Final = 600.0
"""How long after the last contact with a store a process still counts as ready: the default `max_stale`."""
_PROBE_TTL_S: Final = 1.0


@dataclass(slots=True)
class Health:
    """What readiness is made of."""

    store: SecretStore
    audit: AuditLog
    clock: Clock
    policy_version: Callable[[], str]
    state: StateStore | None = None
    draining: bool = False
    _probed_s: float = field(default=-1e9)
    _reached_s: float = field(default=-1e9)
    _store_problem: str = "not asked yet"
    _state_reached_s: float = field(default=-1e9)
    _state_problem: str = ""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def readiness(self) -> Readiness:
        return Readiness(self.policy_version(), tuple(await self.problems()))

    async def problems(self) -> list[str]:
        """Why this process is not ready; empty when it is."""
        async with self._lock:
            now_s = self.clock.monotonic_s()
            if now_s - self._probed_s >= _PROBE_TTL_S:
                await self._probe()
        found: list[str] = []
        if self.draining:
            found.append("draining")
        if not self.audit.healthy:
            found.append(f"audit: {self.audit.why}")
        if self._store_problem and self.clock.monotonic_s() - self._reached_s > STALE_S:
            found.append(f"secret store: {self._store_problem}")
        if self._state_problem and self.clock.monotonic_s() - self._state_reached_s > STALE_S:
            found.append(f"state store: {self._state_problem}")
        return found

    async def _probe(self) -> None:
        if self.state is not None:
            try:
                await self.state.probe()
            except StateError as error:
                self._state_problem = error.reason
            else:
                self._state_problem = ""
                self._state_reached_s = self.clock.monotonic_s()
        try:
            await self.store.probe()
        except StoreError as error:
            self._store_problem = error.reason
        else:
            self._store_problem = ""
            self._reached_s = self.clock.monotonic_s()
        self._probed_s = self.clock.monotonic_s()
