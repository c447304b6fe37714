"""`make bench` and `make bench-quick`: Ostiary against what else there is, side by side in one run, alternating.

Ratios within one run are what counts; absolute figures move with the machine. ROUNDS, SECONDS and IDLE (connections
that wait) are environment variables. Writes bench/RESULTS.md and bench/results.svg; `--quick` prints three ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Iterator

from bench import chart, contenders, parts, peers, report, scenarios
from bench.contenders import ROOT, ROTATION_TTL_S, WORK, Contender
from bench.measure import build_generator
from bench.report import FAST, MITM
from bench.scenarios import Found
from tests.harness.pki import Pki


@contextlib.contextmanager
def field(pki: Pki, upstream: int, *, both: bool) -> Iterator[list[Contender]]:
    """All that are always measured."""
    with contextlib.ExitStack() as stack:
        found = [Contender("direct", upstream, upstream)]
        found.append(stack.enter_context(contenders.nginx_proxy(pki, upstream)))
        found.append(stack.enter_context(contenders.mitmdump(pki, upstream)))
        found += stack.enter_context(peers.goproxy(pki, upstream))
        if both:
            found.append(stack.enter_context(contenders.ostiary(pki, upstream, MITM, engine="mitmproxy")))
        found.append(stack.enter_context(contenders.ostiary(pki, upstream, FAST, engine="fast")))
        yield found


def variants(pki: Pki, upstream: int, fast: Contender, found: Found) -> None:
    """The fast engine with a large policy, and with an audit that waits for the disk."""
    with (
        contenders.ostiary(pki, upstream, f"{FAST}, 10000 routes", engine="fast", routes=10_000) as many,
        contenders.ostiary(pki, upstream, f"{FAST}, fsync", engine="fast", durability="fsync") as durable,
    ):
        scenarios.alternate((scenarios.VARIANTS,), (fast, many, durable), found)


def workers(pki: Pki, upstream: int, found: Found) -> None:
    """One worker and two, with every core for all that runs."""
    with (
        contenders.ostiary(pki, upstream, f"{FAST}, 1 worker", engine="fast", workers=1) as one,
        contenders.ostiary(pki, upstream, f"{FAST}, 2 workers", engine="fast", workers=2) as two,
    ):
        scenarios.alternate((scenarios.WORKERS,), (one, two), found)


def facts(pki: Pki, upstream: int, everyone: list[Contender], found: Found) -> None:
    """What is one figure and no load."""
    for contender in everyone:
        scenarios.fact(found, "events under way (30 ms apart)", contender, scenarios.stream)
    for contender in everyone:
        if contender.pid is not None:
            scenarios.fact(found, f"an idle connection ({scenarios.IDLE} open)", contender, scenarios.idle)
    scenarios.fact(found, "a cold secret", everyone[-1], scenarios.cold)
    name = f"{FAST}, rotation"
    with contenders.ostiary(pki, upstream, name, engine="fast", ttl=f"{ROTATION_TTL_S}s") as short:
        scenarios.fact(found, "a rotation under load", short, scenarios.rotation)


def main() -> None:
    """Runs everything and writes the report."""
    parser = argparse.ArgumentParser(description="measures Ostiary against what else there is")
    parser.add_argument("--quick", action="store_true", help="the three main ratios, printed only")
    quick = parser.parse_args().quick
    contenders.raise_descriptors()
    build_generator()
    shutil.rmtree(WORK / "pki", ignore_errors=True)
    pki = Pki.make(WORK / "pki")
    found = Found()
    with contenders.upstream(pki) as upstream, field(pki, upstream, both=not quick) as everyone:
        if quick:
            scenarios.alternate(scenarios.QUICK, everyone, found)
            print(report.quick(found, scenarios.QUICK))
            return
        # Before the loads: memory that they have taken would hide what a connection costs.
        facts(pki, upstream, everyone, found)
        scenarios.alternate(scenarios.LOADS, everyone, found)
        try:
            variants(pki, upstream, everyone[-1], found)
        except AssertionError as error:  # a process that was not ready in time
            scenarios.note(found, f"{scenarios.VARIANTS.title}: {error}")
        workers(pki, upstream, found)
        scenarios.memory(everyone, found)
    found.costs = parts.costs()
    text = report.render(found)
    (ROOT / "bench" / "RESULTS.md").write_text(text)
    (ROOT / "bench" / "results.svg").write_text(chart.draw(found))
    print(text)


if __name__ == "__main__":
    main()
