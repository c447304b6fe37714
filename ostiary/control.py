"""What one proxy process offers to the admin API."""

from __future__ import annotations

import asyncio

from addons.audit import Fields
from addons.parts import Parts
from ostiary import keepers
from ostiary.admin import (
    AdminRefusal,
    Control,
    Health,
    Refreshed,
    Routes,
    RouteSummary,
    SecretFailed,
    SecretStatus,
)
from ostiary.reload import Reloader
from policies import Policy


def control_of(parts: Parts, reloader: Reloader, health: Health) -> Control:
    """The control of this process."""
    # One at a time: whoever asks often must not take the threads that read secrets.
    turn = asyncio.Lock()

    async def routes() -> Routes:
        async with turn:
            return await asyncio.to_thread(routes_of, parts.in_force.policy)

    async def metrics(accept: str) -> tuple[bytes, str]:
        async with turn:
            return await asyncio.to_thread(parts.metrics.render, accept)

    def refused(refusal: AdminRefusal) -> None:
        record_refusal(parts, refusal)

    async def secrets() -> tuple[SecretStatus, ...]:
        return keepers.statuses(parts)

    async def refresh(name: str, by: str) -> Refreshed | SecretFailed | None:
        return await keepers.refresh(parts, name, by)

    return Control(reloader.reload, routes, health.readiness, metrics, refused, secrets, refresh)


def record_refusal(parts: Parts, refusal: AdminRefusal) -> None:
    """Records an admin call that was refused."""
    fields: Fields = {
        "source": refusal.source,
        "listener": refusal.listener,
        "method": refusal.method,
        "path": refusal.path,
        "status": refusal.status,
        "outcome": "refused",
        "code": refusal.code,
    }
    if refusal.by:
        fields["by"] = refusal.by
    parts.audit.refused(fields)


def routes_of(policy: Policy) -> Routes:
    """What may be told of the routes of a policy."""
    return Routes(
        policy.version,
        tuple(
            RouteSummary(route.name, tuple(host.text for host in route.hosts), route.port, route.mode)
            for route in policy.routes.values()
        ),
    )
