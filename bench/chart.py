"""bench/results.svg: requests a second of each contender for the main loads, as bars on a logarithmic scale."""

from __future__ import annotations

import math
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
