"""Bar charts as SVG, written by hand: the same text for the same figures on every machine, readable on light and on dark pages.

The picture brings its own background and takes the reader's colour scheme (``prefers-color-scheme``), so no text is ever dark on dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from benchmarks._results import Spread

WIDTH, LEAST_LABELS, VALUES, EDGE = 760, 120, 76, 16  # px
TOP, MARK_TOP, ROW, BAR, FOOT = 42, 58, 28, 16, 44
CHARACTER = 8.2  # px, of a bold one in the widest of the fonts
STYLE = """
    svg { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
    .page { fill: #ffffff; } .text { fill: #1f2328; } .soft { fill: #59636e; } .value { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; } .title { font-size: 15px; font-weight: 600; }
    .grid { stroke: #d1d9e0; } .bar { fill: #9fb3c8; } .ours { fill: #0969da; } .whisker { stroke: #1f2328; }
    .mark { stroke: #bc4c00; stroke-dasharray: 5 3; stroke-width: 1.5; } .marktext { fill: #bc4c00; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; } .value { stroke: #0d1117; } .text { fill: #f0f6fc; } .soft { fill: #9198a1; } .grid { stroke: #3d444d; }
      .bar { fill: #5c6f84; } .ours { fill: #4493f8; } .whisker { stroke: #f0f6fc; } .mark { stroke: #f0883e; } .marktext { fill: #f0883e; }
    }
"""


class Bar(NamedTuple):
    """One bar: the median, with a whisker from the least to the most of the rounds."""

    label: str
    value: Spread
    ours: bool = False


class Mark(NamedTuple):
    """A baseline or a limit: a dashed line across all bars."""

    label: str
    at: float


def bars(title: str, unit: str, rows: Sequence[Bar], mark: Mark | None = None) -> str:
    """A horizontal bar chart from zero, in the order of ``rows``; ``unit`` stands under the axis."""
    most = max([row.value.most for row in rows] + ([mark.at] if mark else []))
    ticks = axis(most)
    top = MARK_TOP if mark else TOP
    bottom = top + ROW * len(rows)
    height = bottom + FOOT
    labels = max(LEAST_LABELS, round(EDGE + 8 + CHARACTER * max(len(row.label) for row in rows)))

    def x(value: float) -> float:
        return round(labels + value / ticks[-1] * (WIDTH - labels - VALUES - EDGE), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label={quoteattr(title)}>',
        f"  <style>{STYLE}  </style>",
        f'  <rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
        f'  <text class="text title" x="{EDGE}" y="26">{escape(title)}</text>',
    ]
    for tick in ticks:
        parts.append(f'  <line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="{top - 4}" y2="{bottom}"/>')
        parts.append(f'  <text class="soft" x="{x(tick)}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'  <text class="soft" x="{(x(0) + x(ticks[-1])) / 2}" y="{bottom + 35}" text-anchor="middle">{escape(unit)}</text>')
    middles = [top + ROW * (index + 0.5) for index in range(len(rows))]
    for row, middle in zip(rows, middles, strict=True):
        parts += _bar(row, middle, x)
    if mark is not None:
        at = x(mark.at)
        anchor = "end" if at > WIDTH / 2 else "start"
        parts.append(f'  <line class="mark" x1="{at}" x2="{at}" y1="{top - 8}" y2="{bottom}"/>')
        parts.append(f'  <text class="marktext" x="{at}" y="{top - 12}" text-anchor="{anchor}">{escape(mark.label)}</text>')
    for row, middle in zip(rows, middles, strict=True):  # above the mark, which may stand there
        end = x(max(row.value.most, row.value.median)) + 6
        parts.append(f'  <text class="text value" x="{end}" y="{middle + 4.5}">{number(row.value.median)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: Bar, middle: float, x: Callable[[float], float]) -> list[str]:
    """Label, bar and whisker of one row."""
    least, end, most = x(row.value.least), x(row.value.median), x(row.value.most)
    label = f'x="{x(0) - 8}" y="{middle + 4.5}" text-anchor="end"' + (' font-weight="600"' if row.ours else "")
    lines = [
        f'  <text class="text" {label}>{escape(row.label)}</text>',
        f'  <rect class="{"ours" if row.ours else "bar"}" x="{x(0)}" y="{middle - BAR / 2}" width="{max(1.0, round(end - x(0), 1))}" height="{BAR}" rx="2"/>',
    ]
    if most - least > 1:
        lines.append(f'  <path class="whisker" fill="none" d="M{least} {middle - 4}v8M{least} {middle}H{most}M{most} {middle - 4}v8"/>')
    return lines


def axis(most: float) -> list[float]:
    """Round ticks from zero to at least ``most``, four to seven of them."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(step * index, 12) for index in range(math.ceil(most / step * (1 - 1e-9)) + 1)]


def number(value: float) -> str:
    """Three digits, or all of those before the point, in groups of thousands."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
