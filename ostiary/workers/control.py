"""What the admin API is given of a crew: every answer is that of all workers together.

A reload is all or nothing: the supervisor reads the files once, every worker makes the policy of those very texts, and
only when all have is it put in force, one worker right after the other. A worker that cannot make it keeps it from all;
one that cannot put it in force is killed, and the next one begins with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest

from ostiary.admin import (
    AdminRefusal,
    Control,
    Readiness,
    Refreshed,
    Rejected,
    Reloaded,
    Routes,
    SecretFailed,
    SecretStatus,
)
from ostiary.control import routes_of
from ostiary.reload import Judge, Turns, load_or_faults, log_faults
from ostiary.workers.beginning import policy_body
from ostiary.workers.combined import Combined, combine
from ostiary.workers.crew import STEP_S, Crew, Spoken
from ostiary.workers.place import STATES
from ostiary.workers.secrets import all_refreshed, found_of, of_all, statuses_of
from policies import Policy, PolicyText
from policies.faults import Fault, Place
from policies.sources import Source

_log = logging.getLogger("ostiary.workers")

REOPEN_S: Final = 5.0
METRICS_S: Final = 5.0
READINESS_S: Final = 5.0
SECRETS_S: Final = 5.0


class CrewControl:
    """The control of a supervisor.

    Args:
        crew: the workers.
        sources: of the policy.
        variables: what `${name}` stands for.
        policy: that is in force.
        judge: adds faults that only the settings show.
    """

    def __init__(
        self,
        crew: Crew,
        sources: tuple[Source, ...],
        variables: Mapping[str, str],
        policy: Policy,
        judge: Judge | None = None,
    ) -> None:
        self.turns = Turns(self._reload)
        self.draining = False
        self._crew = crew
        self._sources = sources
        self._variables = variables
        self._policy = policy
        self._judge = judge
        self._own = _Own()
        self._own.reloads.labels("ok").inc()
        self._scraping = asyncio.Lock()
        self._spelling = asyncio.Lock()

    def control(self) -> Control:
        return Control(
            self.turns.reload,
            self._routes,
            self._readiness,
            self._metrics,
            self._refused,
            self._secrets,
            self._refresh,
        )

    # --- the policy ---

    async def _reload(self, by: str) -> Reloaded | Rejected:
        await self._crew.ask_all("reopen", REOPEN_S)
        texts: list[PolicyText] = []
        found = await asyncio.to_thread(load_or_faults, self._sources, self._variables, self._judge, texts)
        if not isinstance(found, Policy):
            return self._rejected(found, by)
        async with self._crew.swapping:
            body = policy_body(texts)
            spoken = await self._crew.ask_all("prepare", STEP_S, policy=body)
            faults = _not_made(spoken, found.version, self._sources[0].place)
            if faults:
                await self._crew.ask_all("abandon", STEP_S)
                return self._rejected(faults, by)
            # Whoever begins from here on begins with it.
            self._crew.in_force(texts, found.version)
            for place, answer in await self._crew.ask_all("commit", STEP_S, by=by, version=found.version):
                if isinstance(answer, BaseException):
                    _log.error("worker %d could not put the policy in force and is killed", place.number)
                    place.kill()
                else:
                    place.version = found.version
        changed = found.version != self._policy.version
        self._policy = found
        self._own.reloads.labels("ok").inc()
        _log.info("policy %s with %d routes is in force", found.version, len(found.routes))
        return Reloaded(found.version, len(found.routes), changed)

    def _rejected(self, faults: tuple[Fault, ...], by: str) -> Rejected:
        version = self._policy.version
        self._own.reloads.labels("rejected").inc()
        if not self._crew.tell_one("rejected", version=version, reason=str(faults[0]), by=by):
            _log.error("no worker could record that a policy was rejected")
        log_faults(faults)
        return Rejected(version, faults)

    async def _routes(self) -> Routes:
        async with self._spelling:
            return await asyncio.to_thread(routes_of, self._policy)

    # --- secrets ---

    async def _secrets(self) -> tuple[SecretStatus, ...]:
        spoken = await self._crew.ask_all("secrets", SECRETS_S)
        told = [statuses_of(answer) for _, answer in spoken if not isinstance(answer, BaseException)]
        return await asyncio.to_thread(of_all, told)

    async def _refresh(self, name: str, by: str) -> Refreshed | SecretFailed | None:
        """Answers when every worker has it. One that begins meanwhile has read nothing before."""
        spoken = await self._crew.ask_all("refresh", STEP_S, name=name, by=by)
        if not spoken:
            return SecretFailed("no worker serves")
        return all_refreshed(
            [
                SecretFailed(f"worker {place.number} did not read it")
                if isinstance(answer, BaseException)
                else found_of(answer)
                for place, answer in spoken
            ]
        )

    # --- how they stand ---

    async def _readiness(self) -> Readiness:
        """Ready while every worker that serves is. One that has fallen is no problem while another serves its sockets."""
        problems: list[str] = ["draining"] if self.draining else []
        spoken = await self._crew.ask_all("readiness", READINESS_S)
        if not spoken:
            problems.append("no worker serves")
        for place, answer in spoken:
            if isinstance(answer, BaseException):
                problems.append(f"worker {place.number}: does not answer")
            else:
                problems += [f"worker {place.number}: {one}" for one in answer["problems"]]
        return Readiness(self._policy.version, tuple(problems))

    async def _metrics(self, accept: str) -> tuple[bytes, str]:
        # One at a time: whoever asks often must not keep the workers from serving.
        async with self._scraping:
            await self._crew.scrape(METRICS_S)
            async with self._crew.counting:
                told = [place.metrics for place in self._crew.places if place.metrics]
                told.append(self._own.exposition(self._crew))
                return await asyncio.to_thread(_combined, told, self._crew.ended, accept)

    # --- records ---

    def _refused(self, refusal: AdminRefusal) -> None:
        if not self._crew.tell_one("refused", **asdict(refusal)):
            _log.error("no worker could record a refused admin call: %s from %s", refusal.code, refusal.source)


def _combined(told: list[str], ended: Combined, accept: str) -> tuple[bytes, str]:
    return combine(told, ended).render(accept)


def _not_made(spoken: list[Spoken], version: str, where: Place) -> tuple[Fault, ...]:
    """Why not every worker has made the policy; empty where all have."""
    found: list[Fault] = []
    for place, answer in spoken:
        if isinstance(answer, TimeoutError):
            why = f"did not make the policy within {STEP_S:g} s"
        elif isinstance(answer, BaseException):
            why = f"could not make the policy ({answer})"
        elif "faults" in answer:
            why = f"could not make the policy: {answer['faults'][0]}"
        elif answer["version"] != version:
            why = f"made policy {answer['version']} of the same files, not {version}"
        else:
            continue
        found.append(
            Fault(where, f"worker {place.number} {why}", "nothing was changed in any worker; the log says more")
        )
    return tuple(found)


class _Own:
    """Metrics of the supervisor itself."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.reloads = Counter("ostiary_policy_reloads", "Policy loads by result.", ["result"], registry=self._registry)
        self._workers = Gauge("ostiary_workers", "Workers by state.", ["state"], registry=self._registry)
        self._restarts = Counter(
            "ostiary_worker_restarts",
            "Workers that ended and were replaced, by how.",
            ["reason"],
            registry=self._registry,
        )
        self._shown: dict[str, int] = {}

    def exposition(self, crew: Crew) -> str:
        """In the text format."""
        for state in STATES:
            self._workers.labels(state).set(crew.states()[state])
        for reason, count in crew.restarts.items():
            self._restarts.labels(reason).inc(count - self._shown.get(reason, 0))
            self._shown[reason] = count
        return generate_latest(self._registry).decode()
