"""Reads the policy files anew, for SIGHUP and for the admin API alike: one at a time, all or nothing.

A policy that is broken in any way changes nothing but a metric, a record and the log. A reload that was begun is ended
whatever becomes of whoever asked for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from addons.audit import Fields
from addons.parts import Parts
from ostiary.admin.control import Rejected, Reloaded
from ostiary.settings.model import SIGNAL
from policies import FaultError, Policy, load_sources
from policies.faults import Fault, Faults, Place
from policies.sources import Source

_log = logging.getLogger("ostiary.reload")


class Reloader:
    """Puts policies in force.

    Args:
        sources: of the policy; its files are looked up anew each time.
        variables: what `${name}` stands for.
        parts: where the policy in force stands, and what is told of a change.
        judge: adds faults that only the settings show.
        before: what else is read again, whatever becomes of the policy; it must not raise.
    """

    def __init__(
        self,
        sources: tuple[Source, ...],
        variables: Mapping[str, str],
        parts: Parts,
        *,
        judge: Callable[[Policy, Faults], None] | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._sources = sources
        self._variables = variables
        self._parts = parts
        self._judge = judge
        self._before = before
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Reloaded | Rejected]] = set()
        self._signalled: asyncio.Task[Reloaded | Rejected] | None = None
        self._begun: asyncio.Task[Reloaded | Rejected] | None = None

    async def reload(self, by: str) -> Reloaded | Rejected:
        """Reloads for the one named, audit files included, for whoever rotates them."""
        return await asyncio.shield(self._start(by))

    def signalled(self) -> None:
        """Reloads for a signal. While one such reload waits for its turn, further signals ask for nothing more."""
        if self._signalled is None or self._signalled.done() or self._signalled is self._begun:
            self._signalled = self._start(SIGNAL)

    def loaded(self, policy: Policy, by: str = "") -> None:
        """Tells that a policy is in force."""
        self._parts.metrics.policy_loaded(policy.version)
        self._parts.metrics.policy_reload("ok")
        fields: Fields = {"version": policy.version}
        if by:
            fields["by"] = by
        self._parts.audit.note("policy.loaded", fields)
        _log.info("policy %s with %d routes is in force", policy.version, len(policy.routes))

    def _start(self, by: str) -> asyncio.Task[Reloaded | Rejected]:
        task = asyncio.get_running_loop().create_task(self._run(by))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, by: str) -> Reloaded | Rejected:
        async with self._lock:
            self._begun = asyncio.current_task()
            try:
                if self._before is not None:
                    await self._before()
                await self._parts.audit.reopen()
                policy = await asyncio.to_thread(self._load)
            except FaultError as error:
                return self._rejected(error.faults, by)
            except Exception as error:  # noqa: BLE001 - the last good policy stays, whatever is wrong with the new one
                place = self._sources[0].place if self._sources else Place("policies")
                fault = Fault(place, f"it cannot be loaded ({type(error).__name__})", "ostiary check may say more")
                return self._rejected((fault,), by)
            changed = policy.version != self._parts.in_force.policy.version
            self._parts.in_force.policy = policy
            self.loaded(policy, by)
            return Reloaded(policy.version, len(policy.routes), changed)

    def _load(self) -> Policy:
        policy = load_sources(self._sources, variables=self._variables)
        if self._judge is not None:
            faults = Faults()
            self._judge(policy, faults)
            faults.raise_any()
        return policy

    def _rejected(self, faults: tuple[Fault, ...], by: str) -> Rejected:
        version = self._parts.in_force.policy.version
        self._parts.metrics.policy_reload("rejected")
        self._parts.audit.note("policy.rejected", {"version": version, "reason": str(faults[0]), "by": by})
        for fault in faults:
            _log.error("policy not loaded: %s", fault)
        return Rejected(version, faults)
