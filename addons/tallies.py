"""Metrics that every request touches, kept as plain numbers and shown when they are asked for.

prometheus_client takes a lock and several calls for each step of a metric. These are for the event loop's thread alone:
one look-up and one addition; another thread may look on, and sees the series that were there when it began. Past a
bound, a label value that is not from a fixed list becomes `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

type Labels = tuple[str, ...]
OTHER: Final = "other"


class _Family(Collector):
    """Values of one metric by label values, bounded."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Labels, *, fixed: Collection[str], bound: int
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._fixed = fixed
        self._bound = bound
        registry.register(self)

    def _named(self, values: Labels, known: Collection[Labels]) -> Labels:
        """The label values that count: the given ones while there is room."""
        if len(known) < self._bound:
            return values
        return tuple(
            value if label in self._fixed else OTHER for label, value in zip(self._labels, values, strict=True)
        )


class Tally(_Family):
    """A counter."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, *labels: str, fixed: Collection[str], bound: int
    ) -> None:
        self._counts: dict[Labels, float] = {}
        super().__init__(registry, name, text, labels, fixed=fixed, bound=bound)

    def add(self, values: Labels, count: int = 1) -> None:
        try:
            self._counts[values] += count
        except KeyError:
            values = self._named(values, self._counts)
            self._counts[values] = self._counts.get(values, 0) + count

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in tuple(self._counts.items()):
            family.add_metric(values, count)
        yield family


class Level(_Family):
    """A gauge that is set."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, *labels: str, fixed: Collection[str], bound: int
    ) -> None:
        self._values: dict[Labels, float] = {}
        super().__init__(registry, name, text, labels, fixed=fixed, bound=bound)

    def set(self, values: Labels, level: float) -> None:
        if values not in self._values:
            values = self._named(values, self._values)
        self._values[values] = level

    def __contains__(self, values: Labels) -> bool:
        return values in self._values

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for values, level in tuple(self._values.items()):
            family.add_metric(values, level)
        yield family


class _Spread:
    """One histogram: a count for each bucket, the last one without end, and the sum."""

    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.total = 0.0


class Spread(_Family):
    """A histogram.

    Args:
        registry: that shows it.
        name: with its unit.
        text: what it says.
        bounds: upper ends of the buckets, ascending, in the unit of the name.
        labels: names.
        fixed: labels whose values come from lists in the code.
        bound: of children.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        text: str,
        bounds: Sequence[float],
        *labels: str,
        fixed: Collection[str],
        bound: int,
    ) -> None:
        self._bounds = tuple(bounds)
        self._spreads: dict[Labels, _Spread] = {}
        super().__init__(registry, name, text, labels, fixed=fixed, bound=bound)

    def observe(self, values: Labels, amount: float) -> None:
        found = self._spreads.get(values)
        if found is None:
            values = self._named(values, self._spreads)
            found = self._spreads.setdefault(values, _Spread(len(self._bounds)))
        found.counts[bisect_left(self._bounds, amount)] += 1
        found.total += amount

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        ends = [*(_shown(end) for end in self._bounds), "+Inf"]
        for values, spread in tuple(self._spreads.items()):
            below, buckets = 0, []
            for end, count in zip(ends, spread.counts, strict=True):
                below += count
                buckets.append((end, float(below)))
            family.add_metric(values, buckets, spread.total)
        yield family


def _shown(end: float) -> str:
    return repr(float(end))
