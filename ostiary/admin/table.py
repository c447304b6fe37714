"""The operations of the admin API, each once: what is routed, what is asked of the caller and what `/openapi.json` says
all come from here. Another operation is another row, and a function beside it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from ostiary.admin.control import Control, Rejected, RouteSummary, SecretFailed, SecretStatus
from ostiary.admin.problems import Kind, Problem
from ostiary.admin.tokens import Role

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Call:
    """What an operation may know of the request that asks for it."""

    by: str
    """Name of the token; empty where none is asked for."""
    accept: str
    ref: str = ""
    """What stands in the place of `{ref}` in the path, decoded."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation gives."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Shown:
    """One answer, as the document tells it."""

    status: int
    description: str
    schema: str
    content_types: tuple[str, ...] = (JSON,)


@dataclass(frozen=True, slots=True)
class Operation:
    """One row.

    Args:
        method, path: exact; a path has no other spelling, but that `{ref}` stands for one percent-encoded segment.
        role: what the token must have; None: no token is asked for.
        summary: one sentence.
        run: does it.
        answers: what comes of it, problems apart.
        problems: those of its own; what every operation may answer stands in `openapi.py`.
        probe: whether `admin.probes` serves it too.
    """

    method: str
    path: str
    role: Role | None
    summary: str
    run: Callable[[Control, Call], Awaitable[Answer | Problem]]
    answers: tuple[Shown, ...]
    problems: tuple[Kind, ...] = ()
    probe: bool = False


def as_json(status: int, value: Mapping[str, Any]) -> Answer:
    return Answer(status, JSON, json.dumps(value).encode())


async def _healthz(_: Control, __: Call) -> Answer:
    return as_json(200, {"status": "alive"})


async def _readyz(control: Control, _: Call) -> Answer:
    found = await control.readiness()
    return as_json(
        503 if found.problems else 200,
        {
            "status": "not ready" if found.problems else "ready",
            "problems": list(found.problems),
            "policy": found.policy,
        },
    )


async def _metrics(control: Control, call: Call) -> Answer:
    body, content_type = await control.metrics(call.accept)
    return Answer(200, content_type, body)


async def _routes(control: Control, _: Call) -> Answer:
    found = await control.routes()
    # Thousands of routes take a while to spell out: not on the event loop.
    return await asyncio.to_thread(
        lambda: as_json(200, {"version": found.version, "routes": [*map(_route, found.routes)]})
    )


def _route(route: RouteSummary) -> dict[str, Any]:
    return {"name": route.name, "hosts": route.hosts, "port": route.port, "mode": route.mode}


async def _reload(control: Control, call: Call) -> Answer | Problem:
    found = await control.reload(call.by)
    if isinstance(found, Rejected):
        count = len(found.faults)
        detail = f"{count} fault{'s' if count != 1 else ''}; policy {found.version} stays in force."
        faults = [str(fault) for fault in found.faults]
        return Problem(Kind.POLICY_REJECTED, detail, faults=faults, policy=found.version)
    return as_json(200, asdict(found))


async def _secrets(control: Control, _: Call) -> Answer:
    found = await control.secrets()
    # As for routes.
    return await asyncio.to_thread(lambda: as_json(200, {"secrets": [*map(_secret, found)]}))


def _secret(secret: SecretStatus) -> dict[str, Any]:
    """Keys that do not apply are absent."""
    return {
        key: {name: value for name, value in shown.items() if value != ""} if isinstance(shown, dict) else shown
        for key, shown in asdict(secret).items()
        if shown is not None
    }


async def _refresh(control: Control, call: Call) -> Answer | Problem:
    found = await control.refresh(call.ref, call.by)
    if found is None:
        return Problem(Kind.SECRET_UNKNOWN, "GET /secrets lists those of the policy in force, by their whole path.")
    if isinstance(found, SecretFailed):
        return Problem(Kind.SECRET_FAILED, f"{found.reason}.")
    return as_json(200, asdict(found))


async def _document(_: Control, __: Call) -> Answer:
    from ostiary.admin.openapi import document

    return as_json(200, document(OPERATIONS))


OPERATIONS: Final = (
    Operation("GET", "/healthz", None, "The process is alive.", _healthz, (Shown(200, "Alive.", "Alive"),), probe=True),
    Operation(
        "GET",
        "/readyz",
        None,
        "Whether requests can be served, and if not, why.",
        _readyz,
        (Shown(200, "Ready.", "Readiness"), Shown(503, "Not ready.", "Readiness")),
        probe=True,
    ),
    Operation(
        "GET",
        "/metrics",
        None,
        "Metrics, in the Prometheus text format or OpenMetrics.",
        _metrics,
        (Shown(200, "The exposition.", "Metrics", ("text/plain", "application/openmetrics-text")),),
        probe=True,
    ),
    Operation(
        "GET",
        "/openapi.json",
        "viewer",
        "This document.",
        _document,
        (Shown(200, "OpenAPI 3.1.", "Document"),),
    ),
    Operation(
        "GET",
        "/routes",
        "viewer",
        "The routes of the policy in force: names, hosts, ports and modes.",
        _routes,
        (Shown(200, "The routes.", "Routes"),),
    ),
    Operation(
        "POST",
        "/reload",
        "operator",
        "Reads the policy files anew. A policy with faults changes nothing.",
        _reload,
        (Shown(200, "The policy is in force.", "Reloaded"),),
        (Kind.POLICY_REJECTED,),
    ),
    Operation(
        "GET",
        "/secrets",
        "viewer",
        "The secrets that routes read: versions in use, their age and end, and who used the version before last.",
        _secrets,
        (Shown(200, "The secrets; never a value.", "Secrets"),),
    ),
    Operation(
        "POST",
        "/secrets/{ref}/refresh",
        "operator",
        "Reads a secret past the cache; answers when the version found is in use.",
        _refresh,
        (Shown(200, "The version in use.", "Refreshed"),),
        (Kind.SECRET_UNKNOWN, Kind.SECRET_FAILED),
    ),
)
