"""The chart of latencies: for every contender how often a call took how long, its median, p90 and p99."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from unetx_bench.report_page.axis import Axis, fit_axis, plain_number
from unetx_bench.report_page.svg import Svg, drawing, element, shorten, text
from unetx_bench.statistics import Estimate

__all__ = ["DistributionRow", "draw_distributions"]

_ROW_PX: Final = 56
_LABEL_PX: Final = 16
_HILL_PX: Final = 26
_FOOT_PX: Final = 36
_BINS: Final = 64


@dataclass(frozen=True, slots=True)
class DistributionRow:
    """One contender.

    Attributes
    ----------
    label : str
        Its name.
    series : str
        Class of its colour: "engine" or "peer".
    samples_ms : sequence of float
        All of them.
    median_ms, p90_ms, p99_ms : Estimate or None
        None where there are too few samples.
    """

    label: str
    series: str
    samples_ms: Sequence[float]
    median_ms: Estimate | None
    p90_ms: Estimate | None
    p99_ms: Estimate | None


def draw_distributions(rows: Sequence[DistributionRow], name: str, width: float) -> Svg:
    """Draw a histogram for each contender over one logarithmic scale of milliseconds."""
    height = _FOOT_PX + _ROW_PX * len(rows)
    axis = fit_axis([value for row in rows for value in row.samples_ms], 4, width - 12, logarithmic=True)
    base = _ROW_PX * len(rows)
    parts: list[Svg] = []
    for value in axis.ticks(10 if width > 500 else 5):
        x = axis.place(value)
        parts.append(element("line", x1=x, x2=x, y1=0, y2=base, class_="grid"))
        parts.append(text(x, base + 16, plain_number(value), "tick middle"))
    parts.append(text(width - 12, base + 31, "milliseconds, logarithmic", "tick end"))
    for index, row in enumerate(rows):
        parts += _draw_row(row, axis, index * _ROW_PX, width)
    summary = "; ".join(f"{row.label}: {_median_words(row)}" for row in rows)
    return drawing(name, (width, height), "Distribution of latencies", summary, parts)


def _draw_row(row: DistributionRow, axis: Axis, top: float, width: float) -> list[Svg]:
    base = top + _LABEL_PX + _HILL_PX
    parts = [text(4, top + 13, shorten(row.label, width - 16), "label")]
    if row.samples_ms:
        parts.append(element("path", d=_hill(row.samples_ms, axis, base), class_=f"hill {row.series}"))
    parts.append(element("line", x1=axis.start_px, x2=axis.end_px, y1=base, y2=base, class_="base"))
    for estimate in (row.p90_ms, row.p99_ms):
        if estimate is not None:
            x = axis.place(estimate.value)
            parts.append(element("line", x1=x, x2=x, y1=base - 9, y2=base + 4, class_=f"mark {row.series}"))
    if row.median_ms is not None:
        low, high = axis.place(row.median_ms.low), axis.place(row.median_ms.high)
        parts.append(element("line", x1=low, x2=high, y1=base, y2=base, class_=f"span {row.series}"))
        x = axis.place(row.median_ms.value)
        parts.append(element("circle", cx=x, cy=base, r=4.5, class_=f"dot {row.series}"))
    return parts


def _hill(samples_ms: Sequence[float], axis: Axis, base: float) -> str:
    edges = np.linspace(math.log(axis.low), math.log(axis.high), _BINS + 1)
    counts, _ = np.histogram(np.log(np.maximum(samples_ms, axis.low)), edges)
    tops = counts / max(int(counts.max()), 1) * _HILL_PX
    lefts = np.linspace(axis.start_px, axis.end_px, _BINS + 1)
    steps = [f"M{lefts[0]:.1f} {base:.1f}"]
    steps += [f"V{base - top:.1f}H{right:.1f}" for top, right in zip(tops, lefts[1:], strict=True)]
    return "".join([*steps, f"V{base:.1f}Z"])


def _median_words(row: DistributionRow) -> str:
    if row.median_ms is None:
        return f"{len(row.samples_ms)} samples, too few for a median"
    return f"median {row.median_ms.value:.4g} ms ({row.median_ms.low:.4g} to {row.median_ms.high:.4g})"
