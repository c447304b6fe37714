"""bench/RESULTS.md: the goals with what was measured of them, then everything.

A ratio is made of medians; its spread is that of the ratios of each round, because rounds alternate. What was not
measured says so.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
from dataclasses import dataclass

from bench import parts
from bench.measure import Sample
from bench.peers import GOPROXY
from bench.scenarios import LOADS, RESUMED, ROUNDS, SECONDS, VARIANTS, WAITERS, WORKERS, Found, Load

FAST = "ostiary, fast"
MITM = "ostiary, mitmproxy"
SHORT_S = 6
"""Below so many seconds of load for each contender the report says that it is none."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A median and its spread."""

    value: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.least:.2f} to {self.most:.2f})"


@dataclass(frozen=True, slots=True)
class Goal:
    figure: str
    goal: str
    value: float | None
    met: bool
    measured: str


def middle(samples: list[Sample], name: str) -> float:
    return statistics.median(float(getattr(sample, name)) for sample in samples)


def ratio(found: Found, load: Load, ours: str, other: str, name: str = "rps") -> Ratio | None:
    """How many times better than the other one: more requests, or less CPU."""
    samples = found.loads.get(load.key, {})
    mine, theirs = samples.get(ours, []), samples.get(other, [])
    if name == "cpu_us":
        mine, theirs = theirs, mine
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(mine, theirs, strict=False)]
    if not pairs or not all(b > 0 and a > 0 for a, b in pairs):
        return None
    each = [a / b for a, b in pairs]
    return Ratio(middle(mine, name) / middle(theirs, name), min(each), max(each))


def _at_least(figure: str, least: float, found: Ratio | None) -> Goal:
    value = found.value if found else None
    return Goal(figure, f">= {least:g}x", value, value is not None and value >= least, f"{found}" if found else "")


def _at_most(figure: str, most: float, value: float | None, unit: str) -> Goal:
    text = "" if value is None else f"{value:,.1f} {unit}"
    return Goal(figure, f"<= {most:g} {unit}", value, value is not None and value <= most, text)


def _added(found: Found, name: str) -> float | None:
    samples = found.loads.get("keep-alive-1", {})
    if not samples.get(FAST) or not samples.get("direct"):
        return None
    return middle(samples[FAST], name) - middle(samples["direct"], name)


def goals(found: Found) -> list[Goal]:
    """What the fast engine is held against."""
    loads = {load.key: load for load in LOADS}
    small = found.loads.get("keep-alive-32", {}).get(FAST)
    reads = found.figures.get(f"cold_reads/{FAST}")
    rotated = next((value for key, value in found.figures.items() if key.startswith("rotation_s/")), None)
    failed = next((value for key, value in found.figures.items() if key.startswith("rotation_failed/")), None)
    return [
        _at_least("keep-alive, against stock mitmdump", 25, ratio(found, loads["keep-alive-32"], FAST, "mitmdump")),
        _at_most("CPU of a small request", 60, middle(small, "cpu_us") if small else None, "us"),
        _at_least("keep-alive, against nginx, by CPU", 0.3, ratio(found, loads["keep-alive-32"], FAST, "nginx", "cpu_us")),
        _at_least("keep-alive, against a bare goproxy, by CPU", 0.6, ratio(found, loads["keep-alive-32"], FAST, GOPROXY, "cpu_us")),
        _at_least("new connections, against stock mitmdump", 7, ratio(found, loads["new"], FAST, "mitmdump")),
        _at_most("added p50 at one connection", 100, _added(found, "p50_us"), "us"),
        _at_most("added p99 at one connection", 200, _added(found, "p99_us"), "us"),
        _at_least("1 MB down, against nginx", 0.8, ratio(found, loads["down"], FAST, "nginx")),
        _at_least("1 MB up, against nginx", 0.8, ratio(found, loads["up"], FAST, "nginx")),
        _at_least("HTTP/2, against stock mitmdump", 2.5, ratio(found, loads["http2"], FAST, "mitmdump")),
        _at_most("an idle connection", 60, found.figures.get(f"idle_kib/{FAST}"), "KiB"),
        _at_most(f"store reads for a cold secret, {WAITERS} waiting", 1, reads, "reads"),
        _at_most("a rotation is used after", 15, rotated, "s"),
        _at_most("requests failed during a rotation", 0, failed, "requests"),
    ]  # fmt: skip


def _verdict(goal: Goal) -> str:
    return "not measured" if goal.value is None else "yes" if goal.met else "**no**"


def _cells(samples: dict[str, list[Sample]], name: str, found: Found, load: Load) -> list[str]:
    mine, direct = samples[name], samples.get("direct")
    rates = [sample.rps for sample in mine]
    own = middle(mine, "cpu_us")
    cells = [
        f"{statistics.median(rates):,.0f}",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        f"{own:,.0f}" if own else "",
    ]
    for key in ("p50_us", "p99_us", "p999_us"):
        here = middle(mine, key)
        cells.append(
            f"{here:,.0f}"
            if name == "direct" or direct is None
            else f"+{here - middle(direct, key):,.0f}".replace("+-", "-")
        )
    for other in ("mitmdump", "nginx"):
        for key in ("rps", "cpu_us"):
            found_ratio = None if name in {"direct", other} else ratio(found, load, name, other, key)
            cells.append(f"{found_ratio}" if found_ratio else "")
    return cells


def render(found: Found) -> str:
    """The report as Markdown."""
    lines = [
        "# Results",
        "",
        f"Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d} by `make bench` (ROUNDS={ROUNDS} SECONDS={SECONDS:g}): CPython {platform.python_version()},",
        f"{os.cpu_count()} cores, loopback, TLS on both sides, one header injected. The proxy has one core, upstream and load have the",
        "rest. Medians of alternating rounds, with the spread; read the ratios, not the figures. A ratio above 1 is better",
        "than the other: more requests a second, or less CPU for one.",
        "",
        *(["**A short run: it shows that everything works, and no more.**", ""] if ROUNDS * SECONDS < SHORT_S else []),
        "![requests a second of each contender](results.svg)",
        "",
        "## Goals",
        "",
        "For `engine: fast`, every stage on: identity, policy, egress guard, secret from cache, injection, audit `written`, metrics.",
        "",
        "| figure | goal | measured | met |",
        "|---|---|---|---|",
    ]
    lines += [f"| {goal.figure} | {goal.goal} | {goal.measured} | {_verdict(goal)} |" for goal in goals(found)]
    lines += [
        "",
        "## Loads",
        "",
        "`p50`, `p99` and `p99.9` are microseconds: those of `direct` as they are, the others as what they add to it.",
        "`mitmdump` is stock with one addon, `nginx` a reverse proxy that puts the header, about the least that a proxy can cost,",
        "`goproxy` a forward proxy in Go that puts the header and has no policy and no audit.",
        "",
        "| load | | req/s | spread | CPU us a request | p50 | p99 | p99.9 | x mitmdump, req/s | x mitmdump, CPU | x nginx, req/s | x nginx, CPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for load in (*LOADS, VARIANTS, WORKERS):
        samples = found.loads.get(load.key, {})
        for place, name in enumerate(samples):
            lines.append(
                "| " + " | ".join(["" if place else load.title, name, *_cells(samples, name, found, load)]) + " |"
            )
    if found.costs:
        lines += [
            "",
            "## Parts",
            "",
            "What the stages cost in one process, without sockets and TLS: the best of several rounds (`python -m bench.parts`).",
            "",
            *parts.table(found.costs),
        ]
    lines += ["", "## Facts", "", "| | | |", "|---|---|---|"]
    resumed = {
        name: f"{sum(one.resumed for one in samples) / sum(one.requests for one in samples):.0%}"
        for name, samples in found.loads.get(RESUMED.key, {}).items()
    }
    for title, by_name in {**found.facts, "connections whose TLS was resumed": resumed}.items():
        lines += [
            f"| {'' if place else title} | {name} | {text} |" for place, (name, text) in enumerate(by_name.items())
        ]
    if found.failures:
        lines += ["", "## What failed", "", *(f"- {text.replace(chr(10), ' ')}" for text in found.failures)]
    return "\n".join([*lines, ""])


def quick(found: Found, loads: tuple[Load, ...]) -> str:
    """The main ratios, for the terminal."""
    lines = []
    for load in loads:
        for other in ("mitmdump", "nginx"):
            for key, word in (("rps", "req/s"), ("cpu_us", "CPU")):
                value = ratio(found, load, FAST, other, key)
                lines.append(f"{load.title:42} x {other:9} {word:6} {value or 'not measured'}")
    return "\n".join(lines + [f"failed: {text}" for text in found.failures])
