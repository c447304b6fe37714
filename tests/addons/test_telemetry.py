"""Metrics: names, bounds, expositions, and the reference page."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from addons import telemetry
from addons.state import StateObserver
from addons.telemetry import Metrics
from vault.control import NOTHING, Control
from vault.observer import StoreObserver

REFERENCE = Path(__file__).parents[2] / "docs/reference/metrics.md"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def everything() -> Metrics:
    """Each metric has been used once."""
    metrics = Metrics("1.2.3")
    observer: StoreObserver = metrics
    metrics.request_ended("api", "billing", "ok", 0.02)
    metrics.redacted("stripe", 2)
    metrics.refused("path_denied")
    metrics.clock_ahead("api.test", 0.5)
    metrics.stage_overhead("identity", 0.0001)
    metrics.connection("downstream", 1)
    metrics.upstream_connection("api.test", "open", 1)
    metrics.audit_record("credential.opened")
    metrics.audit_lost("audit.jsonl", "reserve")
    metrics.audit_lag(0.001)
    metrics.policy_loaded("abc")
    metrics.policy_reload("ok")
    observer.secret_read("vault", "ok")
    observer.secret_cache("hit")
    observer.secret_in_use("secret/api", "7", 3.5)
    observer.secret_changed("secret/api", "6", "7")
    observer.secret_told("secret/api", Control(expires_at_s=1.8e9))
    observer.secret_rejected("retried")
    metrics.token_made("jwt", "ok")
    observer.store_up(up=True)
    observer.token_ttl(3600)
    observer.store_login("denied")
    state: StateObserver = metrics
    state.state_call("once", "ok", 0.002)
    state.state_up(up=True)
    state.state_local("add", "limited")
    state.state_age("kill:", 0.5)
    return metrics


def test_what_is_told_is_counted() -> None:
    metrics = everything()
    assert value(metrics, "ostiary_requests_total", route="api", workload="billing", outcome="ok") == 1
    assert value(metrics, "ostiary_request_duration_seconds_sum", route="api") == 0.02
    assert value(metrics, "ostiary_refusals_total", code="path_denied") == 1
    assert value(metrics, "ostiary_overhead_seconds_count", stage="identity") == 1
    assert value(metrics, "ostiary_connections", side="downstream") == 1
    assert value(metrics, "ostiary_upstream_connections", host="api.test", state="open") == 1
    assert value(metrics, "ostiary_audit_records_total", event="credential.opened") == 1
    assert value(metrics, "ostiary_audit_lost_total", sink="audit.jsonl", reason="reserve") == 1
    assert value(metrics, "ostiary_audit_lag_seconds") == 0.001
    assert value(metrics, "ostiary_policy_reloads_total", result="ok") == 1
    assert value(metrics, "ostiary_secret_changes_total", secret="secret/api") == 1
    assert value(metrics, "ostiary_secret_rejected_total", result="retried") == 1
    assert value(metrics, "ostiary_secret_expires_timestamp_seconds", secret="secret/api") == 1.8e9
    metrics.secret_told("secret/api", NOTHING)
    metrics.secret_told("secret/other", NOTHING)
    assert value(metrics, "ostiary_secret_expires_timestamp_seconds", secret="secret/api") == math.inf
    assert value(metrics, "ostiary_secret_expires_timestamp_seconds", secret="secret/other") is None
    assert value(metrics, "ostiary_state_calls_total", operation="once", result="ok") == 1
    assert value(metrics, "ostiary_state_call_seconds_sum", operation="once") == 0.002
    assert value(metrics, "ostiary_state_local_total", operation="add", result="limited") == 1
    assert value(metrics, "ostiary_state_age_seconds", prefix="kill:") == 0.5
    assert value(metrics, "ostiary_state_up") == 1
    assert value(metrics, "ostiary_secret_reads_total", store="vault", result="ok") == 1
    assert value(metrics, "ostiary_secret_cache_total", result="hit") == 1
    assert value(metrics, "ostiary_secret_version", secret="secret/api") == 7
    assert value(metrics, "ostiary_secret_age_seconds", secret="secret/api") == 3.5
    assert value(metrics, "ostiary_vault_up") == 1
    # Counted down by whoever asks.
    assert 3500 < (value(metrics, "ostiary_vault_token_ttl_seconds") or 0) <= 3600
    assert value(metrics, "ostiary_vault_logins_total", result="denied") == 1
    assert value(metrics, "ostiary_build_info", version="1.2.3") == 1


def test_gauges_go_down_again() -> None:
    metrics = everything()
    metrics.connection("downstream", -1)
    metrics.upstream_connection("api.test", "open", -1)
    metrics.store_up(up=False)
    assert value(metrics, "ostiary_connections", side="downstream") == 0
    assert value(metrics, "ostiary_upstream_connections", host="api.test", state="open") == 0
    assert value(metrics, "ostiary_vault_up") == 0


def test_one_policy_is_in_force() -> None:
    metrics = everything()
    metrics.policy_loaded("def")
    assert value(metrics, "ostiary_policy_info", version="def") == 1
    assert value(metrics, "ostiary_policy_info", version="abc") is None


def test_a_version_that_is_no_number_and_a_token_that_lives_on() -> None:
    metrics = Metrics()
    metrics.secret_in_use("secret/old", "v1", 1.0)
    metrics.token_ttl(float("inf"))
    assert value(metrics, "ostiary_secret_version", secret="secret/old") is None
    assert value(metrics, "ostiary_vault_token_ttl_seconds") == -1


def test_hosts_that_callers_choose_are_bounded() -> None:
    metrics = Metrics()
    hosts = [f"h{number}.api.test" for number in range(telemetry.MAX_HOSTS + 50)]
    for host in hosts:
        metrics.upstream_connection(host, "open", 1)
    assert value(metrics, "ostiary_upstream_connections", host="other", state="open") == 50
    for host in hosts:
        metrics.upstream_connection(host, "open", -1)
    assert value(metrics, "ostiary_upstream_connections", host="other", state="open") == 0
    assert value(metrics, "ostiary_upstream_connections", host=hosts[0], state="open") == 0


def test_past_the_bound_labels_from_fixed_lists_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    monkeypatch.setattr(metrics._requests, "_bound", 3)
    for number in range(10):
        metrics.request_ended(f"r{number}", "billing", "ok", 0.1)
    metrics.request_ended("r99", "billing", "refused", 0.1)
    assert value(metrics, "ostiary_requests_total", route="r0", workload="billing", outcome="ok") == 1
    assert value(metrics, "ostiary_requests_total", route="other", workload="other", outcome="ok") == 7
    assert value(metrics, "ostiary_requests_total", route="other", workload="other", outcome="refused") == 1


@pytest.mark.parametrize(
    ("accept", "parse", "content_type"),
    [
        ("", plain_text, "text/plain"),
        ("text/html", plain_text, "text/plain"),
        ("application/openmetrics-text; version=1.0.0", open_metrics, "application/openmetrics-text"),
    ],
)
def test_expositions_parse(accept: str, parse: object, content_type: str) -> None:
    body, given = everything().render(accept)
    assert given.startswith(content_type)
    assert callable(parse)
    names = {family.name.removesuffix("_total") for family in parse(body.decode())}
    assert {"ostiary_requests", "ostiary_vault_up", "ostiary_request_duration_seconds"} <= names


def test_every_metric_has_a_help_text_and_only_our_prefix() -> None:
    for family in everything().registry.collect():
        assert family.name.startswith("ostiary_")
        assert family.documentation.endswith(".")


def test_the_reference_names_what_the_registry_has() -> None:
    """Name (as a query writes it), kind and labels of each row."""
    rows = re.findall(r"^\| `(ostiary_\w+)` \| (\w+) \| ([^|]*)\|", REFERENCE.read_text(), re.MULTILINE)
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    present = {}
    for family in everything().registry.collect():
        labels = frozenset(family.samples[0].labels) - {"le"}
        name = family.name + ("_total" if family.type == "counter" else "")
        present[name] = (family.type, labels)
    assert documented == present


def test_two_processes_worth_of_metrics_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.refused("internal")
    assert value(two, "ostiary_refusals_total", code="internal") is None


def test_a_series_that_begins_while_another_thread_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exposition is spelt out in a thread, while the event loop counts on."""
    metrics = everything()
    begun = 0
    for family in (CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily):
        whole = family.add_metric

        def add(self: Any, *given: Any, whole: Any = whole, **named: Any) -> None:
            nonlocal begun
            begun += 1
            whole(self, *given, **named)
            metrics.request_ended(f"route{begun}", "billing", "ok", 0.1)
            metrics.secret_in_use(f"secret/{begun}", "1", 1.0)

        monkeypatch.setattr(family, "add_metric", add)
    assert b'route="api"' in metrics.render("")[0]
    assert begun > 3
