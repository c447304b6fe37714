"""The metrics of several processes as one exposition.

Counters and histograms are added up, those of workers that have ended included: a sum that went down would look like a
restart, and a scraper would count everything that is left once more. What a worker counted after it was last asked, and
before it was killed, is lost; the audit has it.

What cannot be read counts for nothing: a worker that tells nonsense must not hide what the others tell, nor keep its own
place from being filled again.

Gauges are of the living alone, and each is combined as the table says. `_created` series are left out: there is no one
time at which all began.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from addons.tallies import OTHER
from addons.telemetry import FIXED, MAX_CHILDREN

_log = logging.getLogger("ostiary.workers")

type How = Literal["sum", "most", "least", "least or -1"]

GAUGES: Final[Mapping[str, How]] = {
    "ostiary_connections": "sum",
    "ostiary_upstream_connections": "sum",
    "ostiary_buffered_bytes": "sum",
    "ostiary_policy_info": "most",
    "ostiary_build_info": "most",
    "ostiary_secret_version": "least",  # who still uses the one before
    "ostiary_secret_age_seconds": "most",
    "ostiary_secret_expires_timestamp_seconds": "least",
    "ostiary_audit_lag_seconds": "most",
    "ostiary_clock_ahead_seconds": "most",
    "ostiary_state_age_seconds": "most",
    "ostiary_state_up": "least",
    "ostiary_vault_up": "least",
    "ostiary_vault_token_ttl_seconds": "least or -1",  # -1: it does not end
    "ostiary_workers": "sum",
}
"""How gauges of several processes become one. One that is missing here is a fault of ours, which a test finds."""
BUCKET: Final = "le"

type Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a sample, and its labels."""


@dataclass(slots=True)
class _Family:
    kind: str
    text: str
    values: dict[Key, float] = field(default_factory=dict)
    children: set[tuple[tuple[str, str], ...]] = field(default_factory=set)
    """Labels of those that have ended, without the bucket's."""

    def put(self, key: Key, value: float, how: How) -> None:
        before = self.values.get(key)
        self.values[key] = value if before is None else _one(before, value, how)

    def bounded(self, key: Key) -> Key:
        """Of workers that have ended there is no end: their labels stay within the bound of one process."""
        name, labels = key
        child = tuple(pair for pair in labels if pair[0] != BUCKET)
        if child in self.children:
            return key
        if len(self.children) < MAX_CHILDREN:
            self.children.add(child)
            return key
        return name, tuple((label, at if label in FIXED or label == BUCKET else OTHER) for label, at in labels)


class Combined:
    """Metrics of several processes."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def add(self, exposition: str, *, ended: bool = False) -> None:
        """Adds what a process has told, in the text format.

        Args:
            exposition: of the process.
            ended: the process is no more: what it counted stays, what it measured does not.
        """
        try:
            families = tuple(text_string_to_metric_families(exposition))
        except Exception as error:  # noqa: BLE001 - the parser fails in many ways on what is none of that format
            _log.error("the metrics of a worker cannot be read (%s)", type(error).__name__)
            return
        for found in families:
            if found.name.endswith("_created") or (ended and found.type == "gauge"):
                continue
            family = self._families.setdefault(found.name, _Family(found.type, found.documentation))
            how = _how(found.name, found.type)
            for sample in found.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                family.put(family.bounded(key) if ended else key, sample.value, how)

    def join(self, other: Combined) -> None:
        """Adds what another has."""
        for name, theirs in other._families.items():
            family = self._families.setdefault(name, _Family(theirs.kind, theirs.text))
            for key, value in theirs.values.items():
                family.put(key, value, _how(name, theirs.kind))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition that suits an `Accept` field, and its content type."""
        registry = CollectorRegistry()
        registry.register(_Shown(self._families))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type


def _how(name: str, kind: str) -> How:
    return GAUGES.get(name, "sum") if kind == "gauge" else "sum"


def _one(before: float, value: float, how: How) -> float:
    match how:
        case "sum":
            return before + value
        case "most":
            return max(before, value)
        case "least":
            return min(before, value)
        case "least or -1":
            return max(before, value) if -1 in {before, value} else min(before, value)


class _Shown(Collector):
    def __init__(self, families: Mapping[str, _Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for name, family in self._families.items():
            metric = Metric(name, family.text, family.kind)
            for (sample, labels), value in family.values.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def combine(living: Iterable[str], ended: Combined) -> Combined:
    """All of it. Takes as long as there are series: for a thread."""
    whole = Combined()
    for exposition in living:
        whole.add(exposition)
    whole.join(ended)
    return whole
