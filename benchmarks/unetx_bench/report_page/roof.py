"""The roofline chart: the arithmetic that memory and processor allow, the layers on it, the engines below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from unetx_bench.report_page.axis import Axis, fit_axis, plain_number
from unetx_bench.report_page.svg import Svg, drawing, element, text

__all__ = ["Roof", "RoofPoint", "draw_roof"]

_LEFT: Final = 56
_RIGHT: Final = 16
_TOP: Final = 26
_BOTTOM: Final = 42


@dataclass(frozen=True, slots=True)
class RoofPoint:
    """One engine: what it achieved, and the layers of its graph.

    Attributes
    ----------
    number : int
        What it is called in the chart.
    label : str
        What it is called beside it.
    dtype : str
        Type of its arithmetic.
    intensity : float
        Operations per byte of the whole graph.
    flop_per_s : float
        Operations over its median time.
    layers : tuple of float
        Operations per byte of each layer.
    """

    number: int
    label: str
    dtype: str
    intensity: float
    flop_per_s: float
    layers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Roof:
    """Limits of one device: operations per second by type, bytes per second."""

    device: str
    flop_per_s: Mapping[str, float]
    bytes_per_s: float

    def reach(self, dtype: str, intensity: float) -> float:
        """Operations per second that are possible at an intensity."""
        return min(self.flop_per_s[dtype], intensity * self.bytes_per_s)


def draw_roof(roof: Roof, points: Sequence[RoofPoint], name: str, width: float) -> Svg:
    """Draw the roofs of the types that engines compute in, layers as ticks on them, engines as numbered points."""
    height = 340.0
    dtypes = [dtype for dtype in roof.flop_per_s if any(point.dtype == dtype for point in points)]
    layers = [(point.dtype, value) for point in points for value in point.layers if value > 0]
    across = fit_axis(
        [value for _, value in layers] + [point.intensity for point in points],
        *(_LEFT, width - _RIGHT),
        logarithmic=True,
    )
    values = [roof.flop_per_s[dtype] for dtype in dtypes] + [point.flop_per_s for point in points]
    values += [roof.reach(dtype, value) for dtype, value in layers]
    up = fit_axis([value / 1e9 for value in values], height - _BOTTOM, _TOP, logarithmic=True)
    parts = _frame(across, up, (width, height))
    for index, dtype in enumerate(dtypes):
        parts += _draw_roof(roof, dtype, (across, up), index)
    for dtype, value in dict.fromkeys(layers):
        x, y = across.place(value), up.place(roof.reach(dtype, value) / 1e9)
        parts.append(element("line", x1=x, x2=x, y1=y - 4, y2=y + 4, class_="layer"))
    for point in points:
        x, y = across.place(point.intensity), up.place(point.flop_per_s / 1e9)
        parts.append(element("circle", cx=x, cy=y, r=10, class_="point engine"))
        parts.append(text(x, y + 4, point.number, "inside engine"))
    summary = "; ".join(
        f"{point.number}, {point.label}: {point.flop_per_s / 1e9:.3g} GFLOP/s of "
        f"{roof.reach(point.dtype, point.intensity) / 1e9:.3g} in {point.dtype}"
        for point in points
    )
    return drawing(name, (width, height), f"Roofline of {roof.device}", summary, parts)


def _draw_roof(roof: Roof, dtype: str, axes: tuple[Axis, Axis], index: int) -> list[Svg]:
    across, up = axes
    peak = roof.flop_per_s[dtype]
    # The ridge between memory and arithmetic, and where the slope enters the drawing from below.
    ridge = min(max(peak / roof.bytes_per_s, across.low), across.high)
    enters = min(max(across.low, up.low * 1e9 / roof.bytes_per_s), ridge)
    corners = [
        (across.place(value), up.place(roof.reach(dtype, value) / 1e9)) for value in (enters, ridge, across.high)
    ]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    label = text(across.end_px, corners[-1][1] - 6, f"{dtype}, {peak / 1e9:.3g} GFLOP/s", "tick end")
    return [element("path", d=path, class_=f"roof roof-{index % 4}"), label]


def _frame(across: Axis, up: Axis, size: tuple[float, float]) -> list[Svg]:
    (width, height), parts = size, []
    for value in across.ticks(7 if width > 500 else 4):
        x = across.place(value)
        parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=height - _BOTTOM, class_="grid"))
        parts.append(text(x, height - _BOTTOM + 16, plain_number(value), "tick middle"))
    for value in up.ticks(6):
        y = up.place(value)
        parts.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(text(_LEFT - 6, y + 4, plain_number(value), "tick end"))
    parts.append(text(width - _RIGHT, height - 8, "operations per byte moved", "tick end"))
    parts.append(text(4, 14, "GFLOP/s (GOP/s in int8)", "tick"))
    return parts
