"""Metrics of several processes as one: what is added, what is not, and what outlives who told it."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from addons.telemetry import Metrics
from ostiary.workers import combined
from ostiary.workers.combined import GAUGES, Combined, combine
from tests.addons.test_telemetry import everything

OPEN = "application/openmetrics-text; version=1.0.0"


def told(metrics: Metrics) -> str:
    return metrics.render("")[0].decode()


def series(whole: Combined, accept: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, _ = whole.render(accept)
    parse = open_metrics if accept else plain_text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def of(whole: Combined, name: str, **labels: str) -> float | None:
    return series(whole).get((name, tuple(sorted(labels.items()))))


def test_every_gauge_is_told_how_it_is_combined() -> None:
    gauges = {
        family.name
        for family in plain_text(told(everything()))
        if family.type == "gauge" and not family.name.endswith("_created")
    }
    assert gauges | {"ostiary_workers"} == set(GAUGES)


def test_one_process_alone_is_what_it_told() -> None:
    text = told(everything())
    alone = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in plain_text(text)
        for sample in family.samples
        if not family.name.endswith("_created")
    }
    whole = combine([text], Combined())
    assert series(whole) == alone
    # A strict reader takes it too.
    assert series(whole, OPEN) == alone


def test_counters_and_histograms_are_added_up() -> None:
    one, two = Metrics("1"), Metrics("1")
    for metrics, seconds in ((one, 0.02), (one, 40.0), (two, 0.02)):
        metrics.request_ended("api", "billing", "ok", seconds)
    two.request_ended("api", "other", "refused", 0.001)
    two.refused("path_denied")
    whole = combine([told(one), told(two)], Combined())
    assert of(whole, "ostiary_requests_total", route="api", workload="billing", outcome="ok") == 3
    assert of(whole, "ostiary_requests_total", route="api", workload="other", outcome="refused") == 1
    assert of(whole, "ostiary_refusals_total", code="path_denied") == 1
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in series(whole).items()
        if name == "ostiary_request_duration_seconds_bucket"
    }
    assert (buckets["0.001"], buckets["0.025"], buckets["60.0"], buckets["+Inf"]) == (1, 3, 4, 4)
    assert of(whole, "ostiary_request_duration_seconds_count", route="api") == 4
    assert of(whole, "ostiary_request_duration_seconds_sum", route="api") == pytest.approx(40.041)


def test_gauges_are_added_or_the_one_that_matters() -> None:
    one, two = Metrics("1"), Metrics("1")
    one.connection("downstream", 3)
    two.connection("downstream", 4)
    for metrics, version, age_s in ((one, "7", 2.0), (two, "8", 9.0)):
        metrics.secret_in_use("secret/api", version, age_s)
        metrics.policy_loaded("abc")
    one.store_up(up=True)
    one.token_ttl(300)
    two.token_ttl(float("inf"))
    whole = combine([told(one), told(two)], Combined())
    assert of(whole, "ostiary_connections", side="downstream") == 7
    assert of(whole, "ostiary_secret_version", secret="secret/api") == 7
    assert of(whole, "ostiary_secret_age_seconds", secret="secret/api") == 9
    assert of(whole, "ostiary_policy_info", version="abc") == 1
    assert of(whole, "ostiary_build_info", version="1") == 1
    assert of(whole, "ostiary_vault_up") == 0
    # The one of the two that ends, and not the -1 of the one that does not.
    assert 200 < (of(whole, "ostiary_vault_token_ttl_seconds") or 0) <= 300
    two.store_up(up=True)
    assert of(combine([told(one), told(two)], Combined()), "ostiary_vault_up") == 1


def test_what_an_ended_one_counted_stays_and_what_it_measured_does_not() -> None:
    living, gone = Metrics("1"), Metrics("1")
    for metrics in (living, gone):
        metrics.request_ended("api", "billing", "ok", 0.02)
        metrics.connection("downstream", 1)
    before = series(combine([told(living), told(gone)], Combined()))
    ended = Combined()
    ended.add(told(gone), ended=True)
    after = series(combine([told(living)], ended))
    for (name, labels), value in before.items():
        if name.rpartition("_")[2] in {"total", "bucket", "count", "sum"}:
            assert after[name, labels] == value, name
    assert after["ostiary_connections", (("side", "downstream"),)] == 1
    # And again, whatever is scraped in between.
    assert series(combine([told(living)], ended)) == after


def test_labels_of_those_that_ended_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combined, "MAX_CHILDREN", 3)
    ended = Combined()
    for number in range(10):
        metrics = Metrics("1")
        metrics.request_ended(f"route{number}", "billing", "ok", 0.02)
        ended.add(told(metrics), ended=True)
    found = series(combine([], ended))
    routes = {dict(labels)["route"] for name, labels in found if name == "ostiary_requests_total"}
    assert routes == {"route0", "route1", "route2", "other"}
    assert sum(value for (name, _), value in found.items() if name == "ostiary_requests_total") == 10
    other = {
        dict(labels)["outcome"]
        for name, labels in found
        if dict(labels).get("route") == "other" and "outcome" in dict(labels)
    }
    assert other == {"ok"}
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name.endswith("duration_seconds_bucket") and dict(labels)["route"] == "other"
    }
    assert (buckets["0.01"], buckets["+Inf"]) == (0, 7)
