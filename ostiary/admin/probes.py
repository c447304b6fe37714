"""`/healthz`, `/readyz` and `/metrics`, on the admin listener and on `admin.probes`, where kubelet and Prometheus reach
them.

Ready means: a policy is in force, an audit record could be written, and the secret store, and the state store where
there is one, can be reached or was reached inside the time for which stale secrets may serve.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from addons.audit import AuditLog
from addons.clock import Clock
from addons.state import StateError, StateStore
from addons.telemetry import Metrics
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


class _Probe(RequestHandler):
    """Common to the probes: no caching, no server banner."""

    def initialize(self, health: Health, metrics: Metrics) -> None:
        self.health = health
        self.metrics = metrics

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"error": self._reason, "status": status_code}))


class _Healthz(_Probe):
    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish('{"status": "alive"}')


class _Readyz(_Probe):
    async def get(self) -> None:
        problems = await self.health.problems()
        self.set_header("Content-Type", "application/json")
        self.set_status(503 if problems else 200)
        await self.finish(
            json.dumps(
                {
                    "status": "not ready" if problems else "ready",
                    "problems": problems,
                    "policy": self.health.policy_version(),
                }
            )
        )


class _Metrics(_Probe):
    def get(self) -> None:
        body, content_type = self.metrics.render(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.finish(body)


def start_probes(sockets: list[socket.socket], health: Health, metrics: Metrics) -> HTTPServer:
    """Serves the probes on bound sockets."""
    given = {"health": health, "metrics": metrics}
    application = Application(
        [("/healthz", _Healthz, given), ("/readyz", _Readyz, given), ("/metrics", _Metrics, given)],
        log_function=lambda _: None,
    )
    server = HTTPServer(application, max_header_size=16 * 1024, max_body_size=0, idle_connection_timeout=60)
    for opened in sockets:
        opened.setblocking(False)
    server.add_sockets(sockets)
    return server
