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
from policies import FaultError, Policy, PolicyText, load_sources, load_texts
from policies.faults import Fault, Faults, Place
from policies.sources import Source

_log = logging.getLogger("ostiary.reload")

type Judge = Callable[[Policy, Faults], None]
"""Adds faults of a policy that only the settings show."""


class Turns:
    """Reloads, one at a time.

    Args:
        run: one reload, for the one named.
    """

    def __init__(self, run: Callable[[str], Awaitable[Reloaded | Rejected]]) -> None:
        self._do = run
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

    def _start(self, by: str) -> asyncio.Task[Reloaded | Rejected]:
        task = asyncio.get_running_loop().create_task(self._run(by))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, by: str) -> Reloaded | Rejected:
        async with self._lock:
            self._begun = asyncio.current_task()
            return await self._do(by)


class Reloader(Turns):
    """Puts policies in force in this process.

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
        judge: Judge | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(self._reload)
        self._sources = sources
        self._variables = variables
        self._parts = parts
        self._judge = judge
        self._before = before

    def loaded(self, policy: Policy, by: str = "") -> None:
        """Tells that a policy is in force."""
        tell_loaded(self._parts, policy, by)
        self._parts.metrics.policy_reload("ok")

    async def _reload(self, by: str) -> Reloaded | Rejected:
        found = await self._found()
        if not isinstance(found, Policy):
            return self._rejected(found, by)
        changed = found.version != self._parts.in_force.policy.version
        self._parts.in_force.policy = found
        self.loaded(found, by)
        return Reloaded(found.version, len(found.routes), changed)

    async def _found(self) -> Policy | tuple[Fault, ...]:
        try:
            if self._before is not None:
                await self._before()
            await self._parts.audit.reopen()
        except Exception as error:  # noqa: BLE001 - as for the policy: what cannot be done changes nothing
            return (crash(self._sources, error),)
        return await asyncio.to_thread(load_or_faults, self._sources, self._variables, self._judge)

    def _rejected(self, faults: tuple[Fault, ...], by: str) -> Rejected:
        version = self._parts.in_force.policy.version
        self._parts.metrics.policy_reload("rejected")
        tell_rejected(self._parts, version, str(faults[0]), by)
        log_faults(faults)
        return Rejected(version, faults)


def load_or_faults(
    sources: tuple[Source, ...],
    variables: Mapping[str, str],
    judge: Judge | None,
    texts: list[PolicyText] | None = None,
) -> Policy | tuple[Fault, ...]:
    """The policy that the files now make, or what is wrong with them."""
    try:
        policy = load_sources(sources, variables=variables, texts=texts)
        if judge is not None:
            faults = Faults()
            judge(policy, faults)
            faults.raise_any()
    except FaultError as error:
        return error.faults
    except Exception as error:  # noqa: BLE001 - the last good policy stays, whatever is wrong with the new one
        return (crash(sources, error),)
    return policy


def load_texts_or_faults(
    texts: list[PolicyText], sources: tuple[Source, ...], variables: Mapping[str, str]
) -> Policy | tuple[Fault, ...]:
    """The same for what another process has read."""
    try:
        return load_texts(texts, sources, variables=variables)
    except FaultError as error:
        return error.faults
    except Exception as error:  # noqa: BLE001 - as above
        return (crash(sources, error),)


def crash(sources: tuple[Source, ...], error: Exception) -> Fault:
    """What is told of a policy that could not be loaded for a reason of ours."""
    place = sources[0].place if sources else Place("policies")
    return Fault(place, f"it cannot be loaded ({type(error).__name__})", "ostiary check may say more")


def tell_loaded(parts: Parts, policy: Policy, by: str) -> None:
    """Records that a policy is in force in this process."""
    parts.metrics.policy_loaded(policy.version)
    fields: Fields = {"version": policy.version}
    if by:
        fields["by"] = by
    parts.audit.note("policy.loaded", fields)
    _log.info("policy %s with %d routes is in force", policy.version, len(policy.routes))


def tell_rejected(parts: Parts, version: str, reason: str, by: str) -> None:
    """Records that a policy was rejected, and that the one of `version` stays."""
    parts.audit.note("policy.rejected", {"version": version, "reason": reason, "by": by})


def log_faults(faults: tuple[Fault, ...]) -> None:
    for fault in faults:
        _log.error("policy not loaded: %s", fault)
