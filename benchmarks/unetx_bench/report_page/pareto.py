"""The chart of drift against time: further left is faster, further down is closer to the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from unetx_bench.report_page.axis import Axis, fit_axis, plain_number
from unetx_bench.report_page.svg import Svg, drawing, element, text

__all__ = ["ParetoPoint", "draw_pareto", "pareto_front"]

_LEFT: Final = 62
_RIGHT: Final = 16
_TOP: Final = 26
_BOTTOM: Final = 52


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One candidate.

    Attributes
    ----------
    number : int
        What it is called in the chart.
    label : str
        What it is called beside it.
    median_ms : float
        Its time.
    drift : float
        1 - mean Dice coefficient between its masks and the reference's; 0 to 1.
    state : str
        "passed", "failed" or "peer".
    """

    number: int
    label: str
    median_ms: float
    drift: float
    state: str


def pareto_front(points: Sequence[ParetoPoint]) -> tuple[ParetoPoint, ...]:
    """Points that no other one beats in both time and drift, the fastest first."""
    found: list[ParetoPoint] = []
    for point in sorted(points, key=lambda one: (one.median_ms, one.drift)):
        if not found or point.drift < found[-1].drift:
            found.append(point)
    return tuple(found)


def draw_pareto(points: Sequence[ParetoPoint], name: str, width: float) -> Svg:
    """Draw the candidates and the line of those that no other one beats."""
    height = 320.0
    across = fit_axis([point.median_ms for point in points], _LEFT, width - _RIGHT, logarithmic=True)
    positive = [point.drift for point in points if point.drift > 0]
    floor = min(positive, default=1e-6) / 3
    ceiling = max(positive, default=1e-4) * 2
    up = Axis(floor, ceiling, height - _BOTTOM, _TOP, logarithmic=True)
    parts = _frame(across, up, (width, height), floor)
    front = pareto_front(points)
    places = [(across.place(point.median_ms), up.place(max(point.drift, floor))) for point in front]
    if len(places) > 1:
        corners = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
        parts.append(element("path", d=corners, class_="front"))
    for point in points:
        parts += _draw_point(point, across.place(point.median_ms), up.place(max(point.drift, floor)))
    summary = "; ".join(
        f"{point.number}, {point.label}: {point.median_ms:.4g} ms, drift {point.drift:.2g}, {point.state}"
        for point in points
    )
    return drawing(name, (width, height), "Drift against time", summary, parts)


def _frame(across: Axis, up: Axis, size: tuple[float, float], floor: float) -> list[Svg]:
    (width, height), parts = size, []
    for value in across.ticks(6 if width > 500 else 4):
        x = across.place(value)
        parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=height - _BOTTOM, class_="grid"))
        parts.append(text(x, height - _BOTTOM + 24, plain_number(value), "tick middle"))
    for value in up.ticks(5):
        y = up.place(value)
        parts.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="grid"))
        if y < height - _BOTTOM - 14:  # the lowest line is zero's
            parts.append(text(_LEFT - 6, y + 4, plain_number(value), "tick end"))
    y = up.place(floor)
    parts.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="base"))
    parts.append(text(_LEFT - 6, y + 4, "0", "tick end"))
    parts.append(text(width - _RIGHT, height - 8, "median, milliseconds", "tick end"))
    parts.append(text(4, 14, "1 - mean Dice to the reference's masks", "tick"))
    return parts


def _draw_point(point: ParetoPoint, x: float, y: float) -> list[Svg]:
    shapes = {
        "passed": element("circle", cx=x, cy=y, r=10, class_="point passed"),
        "failed": element("path", d=_diamond(x, y, 12), class_="point failed"),
        "peer": element("rect", x=x - 9, y=y - 9, width=18, height=18, class_="point peer"),
    }
    return [shapes[point.state], text(x, y + 4, point.number, f"inside {point.state}")]


def _diamond(x: float, y: float, arm: float) -> str:
    arm = arm * math.sqrt(1.2)
    return f"M{x:.1f} {y - arm:.1f}L{x + arm:.1f} {y:.1f}L{x:.1f} {y + arm:.1f}L{x - arm:.1f} {y:.1f}Z"
