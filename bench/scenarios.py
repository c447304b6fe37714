"""What is measured of each contender: loads that alternate between all of them, and single facts.

A scenario of load is a row of the table for each contender. A fact is one figure (idle memory, the delay of events,
cold reads, a rotation). What fails is told in its place; the rest goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench import callers, measure
from bench.contenders import ROTATION_TTL_S, Contender
from bench.measure import Failed, Sample
from bench.parts import Cost

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SECONDS = float(os.environ.get("SECONDS", "3"))
IDLE = int(os.environ.get("IDLE", "1000"))
WAITERS = 100


@dataclass(frozen=True, slots=True)
class Load:
    """A load of the generator, or of the HTTP/2 caller where it has no arguments."""

    key: str
    title: str
    arguments: tuple[str, ...] = ()
    path: str = "/1k"


KEEP_ALIVE = Load("keep-alive-32", "keep-alive, 32 connections, 1 KB", ("-c", "32"))
ONE = Load("keep-alive-1", "keep-alive, 1 connection, 1 KB", ("-c", "1"))
NEW = Load("new", "new connection a request, 8 at a time", ("-c", "8", "-r", "1"))
RESUMED = Load("resumed", "the same with TLS resumption", ("-c", "8", "-r", "1", "-S"))
DOWN = Load("down", "keep-alive, 4 connections, 1 MB down", ("-c", "4"), "/1m")
UP = Load("up", "keep-alive, 4 connections, 1 MB up", ("-c", "4", "-m", "POST", "-b", "1048576"), "/up")
HTTP2 = Load("http2", "HTTP/2, 1 connection, 16 streams, 1 KB")
LOADS = (KEEP_ALIVE, ONE, NEW, RESUMED, DOWN, UP, HTTP2)
QUICK = (KEEP_ALIVE, NEW, DOWN)
VARIANTS = Load("variants", "keep-alive, 32 connections: 10,000 routes; audit fsync", ("-c", "32"))
WORKERS = Load("workers", "keep-alive, 32 connections: 1 and 2 workers on every core", ("-c", "32"))


@dataclass
class Found:
    """All that was measured: samples by load and contender, facts by name and contender, what failed."""

    loads: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    """Figures that goals ask for."""
    costs: list[Cost] = field(default_factory=list)
    """Of the parts of a request."""
    failures: list[str] = field(default_factory=list)


def once(load: Load, contender: Contender) -> Sample:
    """One round of one load."""
    if load.arguments:
        return measure.load(contender, load.arguments, load.path, SECONDS)
    before, began = measure.cpu_s(contender.pid), time.perf_counter()
    try:
        took = asyncio.run(callers.http2(contender.way, SECONDS))
    except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise Failed(f"{type(error).__name__}: {error}") from None
    return measure.of_times(took, time.perf_counter() - began, measure.cpu_s(contender.pid) - before)


def alternate(loads: Sequence[Load], contenders: Sequence[Contender], found: Found) -> None:
    """Every load, round by round, one contender after the other."""
    for load in loads:
        samples = found.loads.setdefault(load.key, {})
        for turn in range(ROUNDS):
            for contender in contenders:
                if not load.arguments and not contender.http2:
                    continue
                try:
                    sample = once(load, contender)
                except Failed as error:
                    note(found, f"{load.title}: {contender.name}: {error}")
                    continue
                samples.setdefault(contender.name, []).append(sample)
                if sample.failed:
                    note(found, f"{load.title}: {contender.name}: {sample.failed} of {sample.requests} requests failed")
            print(f"{load.title}: round {turn + 1} of {ROUNDS}", flush=True)


def note(found: Found, text: str) -> None:
    if text not in found.failures:
        found.failures.append(text)
        print(f"  {text}", flush=True)


def fact(
    found: Found, name: str, contender: Contender, ask: Callable[[Contender], tuple[str, dict[str, float]]]
) -> None:
    """One fact of one contender."""
    try:
        text, figures = ask(contender)
    except (Failed, OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
        text, figures = "failed", {}
        note(found, f"{name}: {contender.name}: {type(error).__name__}: {error}")
    found.facts.setdefault(name, {})[contender.name] = text
    found.figures.update({f"{key}/{contender.name}": value for key, value in figures.items()})
    print(f"{name}: {contender.name}: {text}", flush=True)


def idle(contender: Contender) -> tuple[str, dict[str, float]]:
    """What an idle connection costs, once each has had a request."""

    async def run() -> float:
        before = contender.rss_kib()
        lines = await callers.hold(contender.way, IDLE)
        await asyncio.sleep(0.5)
        after = contender.rss_kib()
        await asyncio.gather(*(line.close() for line in lines))
        return (after - before) / IDLE

    each = asyncio.run(run())
    return f"{each:.1f} KiB", {"idle_kib": each}


def stream(contender: Contender) -> tuple[str, dict[str, float]]:
    """How long events are under way: the first one, and the slowest."""
    rounds = [asyncio.run(callers.events(contender.way)) for _ in range(max(ROUNDS, 2))]
    if not all(rounds):
        raise Failed("a stream without events")
    first, worst = (statistics.median(pick(late) for late in rounds) * 1e3 for pick in (lambda late: late[0], max))
    return f"first after {first:.2f} ms, slowest {worst:.2f} ms", {"event_ms": worst}


def cold(contender: Contender) -> tuple[str, dict[str, float]]:
    """A secret that nobody has read yet, wanted by many at the same instant."""
    reads, slowest, middle = [], [], []
    warm = asyncio.run(callers.together(contender.way, WAITERS, "/1k"))
    for turn in range(ROUNDS):
        before = measure.metric(contender, "ostiary_secret_reads_total")
        took = asyncio.run(callers.together(contender.way, WAITERS, f"/cold/{turn}"))
        reads.append(measure.metric(contender, "ostiary_secret_reads_total") - before)
        middle.append(measure.quantile(took, 0.5) * 1e3)
        slowest.append(max(took) * 1e3)
    text = f"{max(reads):.0f} read for {WAITERS} waiters; p50 {statistics.median(middle):.1f} ms, slowest {statistics.median(slowest):.1f} ms (warm: {measure.quantile(warm, 0.5) * 1e3:.1f} and {max(warm) * 1e3:.1f} ms)"
    return text, {"cold_reads": max(reads)}


def rotation(contender: Contender) -> tuple[str, dict[str, float]]:
    """A new version under load: when it is used, and what failed meanwhile. `contender` has a short `ttl`."""
    one = contender.process
    if one is None:
        raise Failed("no secrets")
    seconds = 3.0 * ROTATION_TTL_S + 2
    samples: list[Sample] = []
    # A thread that waits for another process: the generator.
    caller = threading.Thread(
        target=lambda: samples.append(measure.load(contender, ("-c", "8"), "/1k", seconds, warm_s=0))
    )
    caller.start()
    try:
        time.sleep(1)
        version = measure.metric(contender, "ostiary_secret_version")
        one.set_secret("secret/egress/bench", "key", "bench-credential-rotated")
        seen = measure.wait_metric(contender, "ostiary_secret_version", version + 1, 3 * ROTATION_TTL_S)
    finally:
        caller.join()
    if not samples:
        raise Failed("no load")
    sample = samples[0]
    text = f"used after {seen:.1f} s (ttl {ROTATION_TTL_S} s); {sample.failed} of {sample.requests} requests failed"
    return text, {"rotation_s": seen, "rotation_failed": sample.failed}


def memory(contenders: Sequence[Contender], found: Found) -> None:
    """Resident memory as it stands now."""
    for contender in contenders:
        if contender.pid is not None:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                found.facts.setdefault("resident memory after all loads", {})[contender.name] = (
                    f"{contender.rss_kib() / 1024:.0f} MiB"
                )
