"""Metrics: every name of docs/reference/metrics.md, on a registry of this process.

Label values come from policies, settings and fixed lists; the one that callers may choose (a host under a wildcard
route) is bounded like all others. Children are looked up once and kept; past a metric's bound a value that is not from
a fixed list becomes `other`.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import choose_encoder

from addons.tallies import OTHER, Level, Spread, Tally
from vault.control import Control
from vault.uses import Opening

MAX_CHILDREN: Final = 10_000
MAX_HOSTS: Final = 1000
FIXED: Final = frozenset(
    {"outcome", "stage", "code", "store", "result", "event", "operation", "reason", "side", "state"}
)
"""Labels whose values come from lists in the code: they survive the bound."""
_LATENCY_S: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
_OVERHEAD_S: Final = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)


class _Children:
    """Children of one metric by label values, bounded."""

    def __init__(self, metric: Any, labels: tuple[str, ...], bound: int = MAX_CHILDREN) -> None:
        self._metric = metric
        self._labels = labels
        self._bound = bound
        self._known: dict[tuple[str, ...], Any] = {}

    def __call__(self, *values: str) -> Any:
        child = self._known.get(values)
        return child if child is not None else self._look_up(values)

    def _look_up(self, values: tuple[str, ...]) -> Any:
        if len(self._known) >= self._bound:
            # Not cached under its own name: the cache is what is bounded. What was counted up as `other` is counted
            # down as `other`, for nothing ever leaves the cache.
            values = tuple(
                value if label in FIXED else OTHER for label, value in zip(self._labels, values, strict=True)
            )
        child = self._known.get(values)
        if child is None:
            child = self._known[values] = self._metric.labels(*values)
        return child


class Metrics:
    """The metrics of one process. Implements `vault.observer.StoreObserver` and
    `addons.state.StateObserver`.

    Args:
        version: of Ostiary.
    """

    def __init__(self, version: str = "0.1.0") -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> _Children:
            return _Children(Counter(f"ostiary_{name}", text, labels, registry=self.registry), labels)

        def gauge(name: str, text: str, *labels: str, bound: int = MAX_CHILDREN) -> _Children:
            return _Children(Gauge(f"ostiary_{name}", text, labels, registry=self.registry), labels, bound)

        def tally(name: str, text: str, *labels: str) -> Tally:
            return Tally(self.registry, f"ostiary_{name}", text, *labels, fixed=FIXED, bound=MAX_CHILDREN)

        def level(name: str, text: str, *labels: str) -> Level:
            return Level(self.registry, f"ostiary_{name}", text, *labels, fixed=FIXED, bound=MAX_CHILDREN)

        def spread(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Spread:
            return Spread(self.registry, f"ostiary_{name}", text, bounds, *labels, fixed=FIXED, bound=MAX_CHILDREN)

        self._requests = tally("requests", "Requests that ended.", "route", "workload", "outcome")
        self._duration = spread(
            "request_duration_seconds", "From the head of a request to the end of its answer.", _LATENCY_S, "route"
        )
        self._overhead = spread("overhead_seconds", "Time a stage took of a request.", _OVERHEAD_S, "stage")
        self._refusals = counter("refusals", "Requests refused by Ostiary itself.", "code")
        self._redactions = tally("redactions", "Places of answers that showed a credential.", "route")
        self._reads = counter("secret_reads", "Reads that went to the secret store.", "store", "result")
        self._cache = tally("secret_cache", "Reads by how they were answered.", "result")
        self._version = level("secret_version", "Version of a secret in use, where it is a number.", "secret")
        self._shown: dict[str, str] = {}
        """Versions by the names of their secrets, so that what has not changed is not set again."""
        self._changes = counter("secret_changes", "Versions that took the place of another.", "secret")
        self._expires = level(
            "secret_expires_timestamp_seconds",
            "When a secret ends, by what its owners say: seconds since the epoch, +Inf where they say so no more.",
            "secret",
        )
        self._tokens_made = counter(
            "tokens_made", "Tokens that were derived, or were not, by grant.", "grant", "result"
        )
        self._rejected = counter(
            "secret_rejected", "Credentials that an upstream rejected (401), by what was done.", "result"
        )
        self._age = level("secret_age_seconds", "Age of the secret that was handed out last.", "secret")
        self._audit = tally("audit_records", "Audit records that a sink has taken.", "event")
        self._audit_lost = counter(
            "audit_lost", "Audit lines that a sink did not get, by sink and reason.", "sink", "reason"
        )
        self._connections = gauge("connections", "Open connections.", "side")
        self._upstream = gauge(
            "upstream_connections", "Open connections to upstreams.", "host", "state", bound=MAX_HOSTS
        )
        self._buffered = Gauge(
            "ostiary_buffered_bytes", "Bytes held for callers and upstreams that read slowly.", registry=self.registry
        )
        self._clock_ahead = gauge(
            "clock_ahead_seconds", "By how much this clock is ahead of an upstream's.", "host", bound=MAX_HOSTS
        )
        self._policy = Gauge("ostiary_policy_info", "The policy in force.", ["version"], registry=self.registry)
        self._reloads = counter("policy_reloads", "Policy loads by result.", "result")
        self._state_calls = tally("state_calls", "Calls to the state store that ended.", "operation", "result")
        self._state_seconds = spread(
            "state_call_seconds", "How long a call to the state store took.", _OVERHEAD_S, "operation"
        )
        self._state_local = counter(
            "state_local",
            "Limits that this process decided alone while the state store was down.",
            "operation",
            "result",
        )
        self._state_age = gauge("state_age_seconds", "Age of what is remembered of the state, by prefix.", "prefix")
        self._state_up = Gauge(
            "ostiary_state_up", "Whether the last contact with the state store succeeded.", registry=self.registry
        )
        self._vault_up = Gauge(
            "ostiary_vault_up", "Whether the last contact with the secret store succeeded.", registry=self.registry
        )
        self._token_ttl = Gauge(
            "ostiary_vault_token_ttl_seconds", "Seconds the store token still lives.", registry=self.registry
        )
        self._token_ends_s: float | None = None
        self._token_ttl.set_function(self._token_left_s)
        self._logins = tally("vault_logins", "Logins to the secret store that ended, by result.", "result")
        self._audit_lag = level(
            "audit_lag_seconds", "How long the last `credential.opened` took to become durable, or to fail."
        )
        self._audit_lag.set((), 0.0)
        Gauge("ostiary_build_info", "Version of Ostiary.", ["version"], registry=self.registry).labels(version).set(1)

    # --- requests ---

    def request_ended(self, route: str, workload: str, outcome: str, duration_s: float) -> None:
        self._requests.add((route, workload, outcome))
        self._duration.observe((route,), duration_s)

    def refused(self, code: str) -> None:
        self._refusals(str(code)).inc()

    def redacted(self, route: str, count: int) -> None:
        self._redactions.add((route,), count)

    def stage_overhead(self, stage: str, seconds: float) -> None:
        self._overhead.observe((stage,), seconds)

    # --- connections ---

    def connection(self, side: str, delta: int) -> None:
        self._connections(side).inc(delta)

    def upstream_connection(self, host: str, state: str, delta: int) -> None:
        self._upstream(host, state).inc(delta)

    def clock_ahead(self, host: str, seconds: float) -> None:
        self._clock_ahead(host).set(seconds)

    def buffered(self, held_bytes: int) -> None:
        self._buffered.set(held_bytes)

    # --- audit ---

    def audit_record(self, event: str) -> None:
        self._audit.add((event,))

    def audit_lost(self, sink: str, reason: str) -> None:
        """`reason`: an `addons.audit.sinks.Loss`."""
        self._audit_lost(sink, reason).inc()

    def audit_lag(self, seconds: float) -> None:
        self._audit_lag.set((), seconds)

    # --- policy ---

    def policy_loaded(self, version: str) -> None:
        # One child at a time: two versions in force would be a lie.
        self._policy.clear()
        self._policy.labels(version).set(1)

    def policy_reload(self, result: str) -> None:
        self._reloads(result).inc()

    # --- secrets (vault.observer.StoreObserver) ---

    def secret_read(self, store: str, result: str) -> None:
        self._reads(store, result).inc()

    def secret_cache(self, result: str) -> None:
        self._cache.add((result,))

    def secret_in_use(self, name: str, version: str, age_s: float) -> None:
        self._age.set((name,), age_s)
        if self._shown.get(name) != version:
            self._show_version(name, version)

    def _show_version(self, name: str, version: str) -> None:
        if version.isdigit():
            self._version.set((name,), int(version))
        if len(self._shown) < MAX_CHILDREN or name in self._shown:
            self._shown[name] = version

    def secret_changed(self, name: str, before: str, version: str) -> None:  # noqa: ARG002 - the audit says which
        self._changes(name).inc()

    def secret_last_used(self, name: str, version: str, last: Opening) -> None:
        """The audit's alone."""

    def secret_told(self, name: str, control: Control) -> None:
        if control.expires_at_s is not None or (name,) in self._expires:
            self._expires.set((name,), math.inf if control.expires_at_s is None else control.expires_at_s)

    def secret_rejected(self, result: str) -> None:
        self._rejected(result).inc()

    def token_made(self, grant: str, result: str) -> None:
        self._tokens_made(grant, result).inc()

    def store_up(self, *, up: bool) -> None:
        self._vault_up.set(up)

    def token_ttl(self, ttl_s: float) -> None:
        self._token_ends_s = time.monotonic() + ttl_s

    def store_login(self, result: str) -> None:
        self._logins.add((result,))

    def _token_left_s(self) -> float:
        """Counted down by whoever scrapes."""
        if self._token_ends_s is None:
            return 0.0
        left_s = self._token_ends_s - time.monotonic()
        return max(left_s, 0.0) if math.isfinite(left_s) else -1.0

    # --- shared state (addons.state.StateObserver) ---

    def state_call(self, operation: str, result: str, duration_s: float) -> None:
        self._state_calls.add((operation, result))
        self._state_seconds.observe((operation,), duration_s)

    def state_up(self, *, up: bool) -> None:
        self._state_up.set(up)

    def state_local(self, operation: str, result: str) -> None:
        self._state_local(operation, result).inc()

    def state_age(self, prefix: str, age_s: float) -> None:
        self._state_age(prefix).set(age_s)

    # --- out ---

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition that suits an `Accept` field, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
