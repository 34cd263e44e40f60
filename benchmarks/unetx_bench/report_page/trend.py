"""The chart of one contender over many runs: its ratio to the common peer, with intervals, by the time of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from unetx_bench.report_page.axis import fit_axis, plain_number
from unetx_bench.report_page.svg import Svg, drawing, element, text
from unetx_bench.statistics import Estimate

__all__ = ["TrendPoint", "draw_trend"]

_LEFT: Final = 52
_RIGHT: Final = 16
_TOP: Final = 12
_BOTTOM: Final = 34
_HEIGHT: Final = 190.0
_DATE: Final = len("2026-01-01")


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """One run.

    Attributes
    ----------
    when : str
        ISO 8601.
    ratio : Estimate
        Time over the peer's.
    disturbed : bool
        Others used the machine meanwhile.
    """

    when: str
    ratio: Estimate
    disturbed: bool


def draw_trend(points: Sequence[TrendPoint], title: str, name: str, width: float) -> Svg:
    """Draw ratios in the order of the runs, evenly spaced; a disturbed run is hollow."""
    bounds = [bound for point in points for bound in (point.ratio.low, point.ratio.high)]
    up = fit_axis(bounds, _HEIGHT - _BOTTOM, _TOP)
    step = (width - _LEFT - _RIGHT - 60) / max(len(points) - 1, 1)
    places = [_LEFT + 30 + index * step for index in range(len(points))]
    parts: list[Svg] = []
    for value in up.ticks(4):
        y = up.place(value)
        parts.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(text(_LEFT - 6, y + 4, plain_number(value), "tick end"))
    line = "L".join(f"{x:.1f} {up.place(p.ratio.value):.1f}" for x, p in zip(places, points, strict=True))
    parts.append(element("path", d=f"M{line}", class_="trend"))
    every = -(-len(points) * 90 // max(int(width - _LEFT - _RIGHT), 1))
    for index, (x, point) in enumerate(zip(places, points, strict=True)):
        low, high = up.place(point.ratio.low), up.place(point.ratio.high)
        parts.append(element("line", x1=x, x2=x, y1=low, y2=high, class_="span engine"))
        state = "hollow" if point.disturbed else "engine"
        parts.append(element("circle", cx=x, cy=up.place(point.ratio.value), r=4.5, class_=f"dot {state}"))
        if index % every == 0:
            parts.append(text(x, _HEIGHT - 12, point.when[:_DATE], "tick middle"))
    summary = "; ".join(
        f"{p.when[:_DATE]}: {p.ratio.value:.3g} ({p.ratio.low:.3g} to {p.ratio.high:.3g})" for p in points
    )
    return drawing(name, (width, _HEIGHT), title, summary, parts)
