"""Drift against time of the plans that a search went through, as data and as a picture."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from unetx_exporters.gate import DriftMeasurement
from unetx_exporters.quantize.candidates import LayerGroup, Plan, Scheme, plan_cost
from unetx_exporters.quantize.search import SearchResult
from unetx_exporters.quantize.sensitivity import rank_groups

__all__ = ["ParetoPoint", "choose_plans", "pareto_points", "pareto_svg", "pareto_to_json"]

_MOST_PLANS: Final = 8
_RAISED: Final = (1, 2, 4, 8, 16)
#: Whether times are those of an imitation -> what the axis is called.
_TIMES: Final = {
    False: "median of one call, ms",
    True: "nominal time, ms (the graph is only emulated on the machine of the build)",
}
_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 24, 20, 50
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#333}.axis{stroke:#888}.front{fill:#0072b2}.beaten{fill:#fff;stroke:#888}"
    ".chosen{fill:none;stroke:#d55e00;stroke-width:2}.curve{fill:none;stroke:#0072b2}"
)


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One plan.

    Attributes
    ----------
    name : str
        What it is.
    disagreement : float
        Mean of 1 minus the Dice coefficient against the FP32 reference, on the images that rank plans.
    median_ms : float
        Median time of one call on the machine of the build, in turns with the other plans.
    nominal_s : float
        Cost by operations and bytes, see `SCHEMES`.
    int8_share : float
        Share of the operations in int8.
    chosen : bool
        Whether the search chose it.
    best : bool
        Whether no other plan is both faster and nearer to the reference.
    emulated : bool
        Whether `median_ms` is the time of an imitation, so that `nominal_s` takes its place.
    """

    name: str
    disagreement: float
    median_ms: float
    nominal_s: float
    int8_share: float
    chosen: bool
    best: bool
    emulated: bool = False

    @property
    def time_ms(self) -> float:
        """Time by which plans are compared."""
        return 1e3 * self.nominal_s if self.emulated else self.median_ms


def choose_plans(result: SearchResult, groups: Sequence[LayerGroup]) -> dict[str, Plan]:
    """Choose the plans to draw: all narrow, the one found, all wide, and some of the way between.

    Parameters
    ----------
    result : SearchResult
        A finished search.
    groups : sequence of LayerGroup
        Its groups.

    Returns
    -------
    mapping of str to Plan
        Name to plan, at most eight, none twice.
    """
    chosen = {
        "chosen": result.plan,
        "every layer in its narrowest type": Plan.narrowest(groups),
        "every layer in its widest type": Plan.widest(groups),
    }
    between = [step for step in result.steps if step.plan not in chosen.values()]
    room = _MOST_PLANS // 2
    if between:
        stride = max(1, math.ceil(len(between) / room))
        chosen |= {step.action: step.plan for step in between[::stride]}
    # A search that ends early has few steps: the curve goes on where it would have gone.
    plan = Plan.narrowest(groups)
    for rank, index in enumerate(rank_groups(result.sensitivities), start=1):
        plan = plan.changed(index, groups[index].types[-1])
        if rank in _RAISED:
            chosen.setdefault(f"the {rank} most sensitive in their widest type", plan)
    unique: dict[Plan, str] = {}
    for name, plan in chosen.items():
        unique.setdefault(plan, name)
    return {name: plan for plan, name in list(unique.items())[:_MOST_PLANS]}


def pareto_points(
    plans: Mapping[str, Plan],
    measured: DriftMeasurement,
    groups: Sequence[LayerGroup],
    scheme: Scheme,
    chosen: Plan,
) -> tuple[ParetoPoint, ...]:
    """Put measured plans together, the fastest first: by nominal time where the scheme is only emulated here.

    Parameters
    ----------
    plans : mapping of str to Plan
        By name.
    measured : DriftMeasurement
        Of the same names, in turns.
    groups, scheme
        Of the search.
    chosen : Plan
        What the search found.
    """
    points = [
        ParetoPoint(
            name=name,
            disagreement=statistics.fmean(1.0 - drift.dice_engine_vs_reference for drift in measured.drifts[name]),
            median_ms=statistics.median(measured.call_ms[name]),
            nominal_s=plan_cost(plan, groups, scheme),
            int8_share=plan.int8_share(groups),
            chosen=plan == chosen,
            best=True,
            emulated=scheme.emulated,
        )
        for name, plan in plans.items()
    ]
    judged = [dataclasses.replace(point, best=not any(_beats(other, point) for other in points)) for point in points]
    return tuple(sorted(judged, key=lambda point: point.time_ms))


def pareto_to_json(points: Sequence[ParetoPoint]) -> list[dict[str, Any]]:
    """Turn points into plain JSON types."""
    return [
        {
            "name": point.name,
            "disagreement": point.disagreement,
            "median_ms": round(point.median_ms, 3),
            "emulated": point.emulated,
            "nominal_s": point.nominal_s,
            "int8_share": round(point.int8_share, 4),
            "chosen": point.chosen,
            "best": point.best,
        }
        for point in points
    ]


def pareto_svg(points: Sequence[ParetoPoint], title: str) -> str:
    """Draw drift against time: filled where no other plan is better in both, ringed where the search chose it.

    Parameters
    ----------
    points : sequence of ParetoPoint
        At least one.
    title : str
        For readers who cannot see the picture.

    Returns
    -------
    str
        A standalone SVG document that loads nothing; every text in it is escaped.
    """
    slowest = 1.1 * max(point.time_ms for point in points)
    furthest = 1.1 * max(point.disagreement for point in points) or 1.0
    places = [(_x(point.time_ms / slowest), _y(point.disagreement / furthest)) for point in points]
    curve = " ".join(f"{x},{y}" for (x, y), point in zip(places, points, strict=True) if point.best)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        *_axes(slowest, furthest, _TIMES[points[0].emulated]),
        f'<polyline class="curve" points="{curve}"/>',
    ]
    for (x, y), point in zip(places, points, strict=True):
        label = f"{point.name}: {point.time_ms:.3g} ms, 1 - Dice {point.disagreement:.2g}"
        kind = "front" if point.best else "beaten"
        parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="5"><title>{escape(label)}</title></circle>')
        if point.chosen:
            parts.append(f'<circle class="chosen" cx="{x}" cy="{y}" r="9"/>')
    return "".join([*parts, "</svg>"])


def _beats(other: ParetoPoint, point: ParetoPoint) -> bool:
    found, figure = (other.disagreement, other.time_ms), (point.disagreement, point.time_ms)
    return found != figure and found[0] <= figure[0] and found[1] <= figure[1]


def _x(share: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * share, 1)


def _y(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share, 1)


def _axes(slowest: float, furthest: float, times: str) -> list[str]:
    parts = [
        f'<path class="axis" fill="none" d="M{_x(0)} {_y(1)}V{_y(0)}H{_x(1)}"/>',
        f'<text x="{_x(0.5)}" y="{_HEIGHT - 12}" text-anchor="middle">{times}</text>',
        f'<text x="16" y="{_y(0.5)}" text-anchor="middle" transform="rotate(-90 16 {_y(0.5)})">'
        "1 \N{MINUS SIGN} Dice against FP32</text>",
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _x(share), _y(share)
        parts.append(f'<text x="{x}" y="{_y(0) + 18}" text-anchor="middle">{share * slowest:.3g}</text>')
        parts.append(f'<text x="{_x(0) - 8}" y="{y + 4}" text-anchor="end">{share * furthest:.2g}</text>')
    return parts
