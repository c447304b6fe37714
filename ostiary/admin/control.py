"""What the admin API can ask of the proxy, as a value: the API knows these callables and nothing behind them, so that a
process that is no proxy itself can serve the same API for others.

Every answer is a noun of this module. None can hold a secret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from policies.faults import Fault


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A policy was read and is in force."""

    version: str
    routes: int
    changed: bool
    """Whether it differs from the one before."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A policy was read and has faults; the one of `version` stays in force."""

    version: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests can be served."""

    policy: str
    """Version of the policy in force."""
    problems: tuple[str, ...]
    """Why they cannot; empty when they can."""


@dataclass(frozen=True, slots=True)
class RouteSummary:
    """What may be told of a route. Its secret, paths and grants are not among it."""

    name: str
    hosts: tuple[str, ...]
    port: int
    mode: str


@dataclass(frozen=True, slots=True)
class Routes:
    """The routes of one policy."""

    version: str
    routes: tuple[RouteSummary, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """The last use of a version of a secret."""

    request_id: str
    workload: str
    route: str
    seconds_ago: float


@dataclass(frozen=True, slots=True)
class SecretStatus:
    """What is told of a secret: never its values. What is not known is None."""

    secret: str
    routes: tuple[str, ...]
    """Those of the policy in force that read it."""
    pinned: int | None = None
    version: str | None = None
    created_at: str | None = None
    age_seconds: float | None = None
    problem: str | None = None
    requests: int = 0
    """Under way with this version."""
    last_use: Use | None = None
    before: str | None = None
    """The version that this one has taken the place of."""
    before_requests: int = 0
    before_last_use: Use | None = None
    owner: str | None = None
    classification: str | None = None
    expires_at: str | None = None
    overlap_until: str | None = None
    pending_version: int | None = None
    lease: str | None = None
    lease_seconds: float | None = None
    """What is left of it."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A secret was read past the cache; from now on this version is handed out."""

    secret: str
    version: str
    changed: bool
    """Whether it differs from the one before."""


@dataclass(frozen=True, slots=True)
class SecretFailed:
    """The store did not give the secret."""

    reason: str


@dataclass(frozen=True, slots=True)
class AdminRefusal:
    """An admin call that was refused, for the audit."""

    listener: str
    source: str
    method: str
    path: str
    code: str
    status: int
    by: str = ""
    """The token, where one was proven."""


@dataclass(frozen=True, slots=True)
class Control:
    """What the API may ask.

    Args:
        reload: reads the policy files anew for the one named. Calls never interleave, and one that was begun is ended
            whatever becomes of its caller.
        routes: those of the policy in force.
        readiness: of the process.
        metrics: the exposition that suits an `Accept` field, and its content type.
        refused: records a refusal; never waits, and many of one source become one record.
        secrets: what is known of the secrets that the policy in force reads.
        refresh: has the secret of this name read past the cache, for the one named; returns when it is in use. None where
            no route reads it.
    """

    reload: Callable[[str], Awaitable[Reloaded | Rejected]]
    routes: Callable[[], Awaitable[Routes]]
    readiness: Callable[[], Awaitable[Readiness]]
    metrics: Callable[[str], Awaitable[tuple[bytes, str]]]
    refused: Callable[[AdminRefusal], None]
    secrets: Callable[[], Awaitable[tuple[SecretStatus, ...]]]
    refresh: Callable[[str, str], Awaitable[Refreshed | SecretFailed | None]]
