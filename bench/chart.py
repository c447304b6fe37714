"""bench/results.svg: requests a second of each contender for the main loads, as bars on a logarithmic scale; and docs/soak.svg,
the curve of a soak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.report import middle
from bench.scenarios import DOWN, HTTP2, KEEP_ALIVE, NEW, Found

COLOURS = {"direct": "#9aa5b1", "nginx": "#5b8c5a", "mitmdump": "#c0794b", "goproxy": "#8a7bb5"}
OURS = ("#2b6cb0", "#7fb0e0")
WIDTH, LEFT, RIGHT, BAR, GAP, HEAD = 760, 150, 70, 17, 34, 44


def _colour(name: str) -> str:
    return COLOURS.get(name) or OURS["mitmproxy" in name]


def draw(found: Found) -> str:
    """The chart. A bar that is twice as long is not twice as fast: the scale is one of powers of ten, marked by lines."""
    groups = [
        (load.title, found.loads[load.key]) for load in (KEEP_ALIVE, NEW, DOWN, HTTP2) if found.loads.get(load.key)
    ]
    rates = [middle(samples, "rps") for _, by_name in groups for samples in by_name.values()]
    if not rates:
        raise ValueError("nothing to draw")
    low = math.floor(math.log10(max(min(rates), 1)))
    high = max(math.ceil(math.log10(max(rates))), low + 1)
    height = HEAD + sum(GAP + BAR * len(by_name) for _, by_name in groups) + 10

    def across(rate: float) -> float:
        share = (math.log10(max(rate, 10**low)) - low) / (high - low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="10" y="20" font-size="14" fill="#222">Requests a second, one core (logarithmic)</text>',
    ]
    for power in range(low, high + 1):
        x = across(10**power)
        parts.append(f'<line x1="{x:.1f}" y1="{HEAD - 6}" x2="{x:.1f}" y2="{height - 6}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEAD - 10}" text-anchor="middle" fill="#777">{10**power:,}</text>')
    y = HEAD
    for title, by_name in groups:
        y += GAP
        parts.append(f'<text x="10" y="{y - 8}" font-weight="bold" fill="#222">{escape(title)}</text>')
        for name, samples in by_name.items():
            rate = middle(samples, "rps")
            end = across(rate)
            parts += [
                f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end" fill="#222">{escape(name)}</text>',
                f'<rect x="{LEFT}" y="{y + 2}" width="{max(end - LEFT, 1):.1f}" height="{BAR - 4}" fill="{_colour(name)}"/>',
                f'<text x="{end + 5:.1f}" y="{y + 12}" fill="#222">{rate:,.0f}</text>',
            ]
            y += BAR
    return "\n".join([*parts, "</svg>", ""])


CURVE_HEIGHT, FOOT, TICKS = 240, 30, 4


def draw_curve(points: Sequence[tuple[float, float]], title: str) -> str:
    """A line over time, from zero.

    Args:
        points: seconds since the first, and MiB.
        title: above it.
    """
    last_s, most = points[-1][0], max(value for _, value in points)
    top = 2 ** math.ceil(math.log2(most))
    left, right = 70, 20

    def place(at_s: float, value: float) -> tuple[float, float]:
        x = left + at_s / last_s * (WIDTH - left - right)
        return x, HEAD + (1 - value / top) * (CURVE_HEIGHT - HEAD - FOOT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{CURVE_HEIGHT}" viewBox="0 0 {WIDTH} {CURVE_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{CURVE_HEIGHT}" fill="#ffffff"/>',
        f'<text x="10" y="20" font-size="14" fill="#222">{escape(title)}</text>',
    ]
    for tick in range(TICKS + 1):
        _, y = place(0, top * tick / TICKS)
        x, _ = place(last_s * tick / TICKS, 0)
        parts += [
            f'<line x1="{left}" y1="{y:.1f}" x2="{WIDTH - right}" y2="{y:.1f}" stroke="#dddddd"/>',
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#777">{top * tick / TICKS:.0f} MiB</text>',
            f'<text x="{x:.1f}" y="{CURVE_HEIGHT - 8}" text-anchor="middle" fill="#777">{last_s * tick / TICKS / 60:.0f} min</text>',
        ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{OURS[0]}" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>", ""])
