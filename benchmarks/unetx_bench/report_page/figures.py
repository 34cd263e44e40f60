"""From a report to what its page's charts and tables show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unetx_bench.report import Candidate, Latency, Report
from unetx_bench.report_page.distributions import DistributionRow
from unetx_bench.report_page.pareto import ParetoPoint
from unetx_bench.report_page.roof import Roof, RoofPoint
from unetx_bench.report_page.scatter import ScatterRow
from unetx_bench.standings import find_baseline, find_ratio, invert, passes_gate, plain_latency, runs_on_gpu
from unetx_bench.statistics import Estimate

__all__ = [
    "GateTable",
    "SpeedRow",
    "distribution_rows",
    "gate_table",
    "pareto_points",
    "roofs",
    "scatter_rows",
    "speed_rows",
    "worst_limit",
]


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """A candidate beside the others: its time, and how many times as fast as the baseline it is."""

    candidate: Candidate
    latency: Latency
    baseline: str | None
    speedup: Estimate | None
    state: str


@dataclass(frozen=True, slots=True)
class GateTable:
    """The gate's rules across, with their limits; candidates down, once for each class.

    Attributes
    ----------
    rules : tuple of (str, str)
        Each rule in words, and its limit.
    lines : tuple of (Candidate, str, tuple)
        Candidate, class, and the row of the decision under each rule, or None.
    """

    rules: tuple[tuple[str, str], ...]
    lines: tuple[tuple[Candidate, str, tuple[dict[str, Any] | None, ...]], ...]


def state_of(candidate: Candidate) -> str:
    """Whether a candidate is a peer, or an engine that passed or failed (or was not held against) the gate."""
    if candidate.kind == "peer":
        return "peer"
    return "passed" if passes_gate(candidate) else "failed"


def speed_rows(report: Report) -> tuple[SpeedRow, ...]:
    """Candidates by the clock span "engine", the fastest first; those without a median at the end."""
    rows = []
    for candidate in report.candidates:
        latency = plain_latency(report, candidate.name)
        if latency is None:
            continue
        base = find_baseline(report, candidate)
        ratio = None
        if base is not None and base.candidate != candidate.name:
            ratio = find_ratio(report, latency, base)
        speedup = None if ratio is None else invert(ratio)
        rows.append(
            SpeedRow(candidate, latency, None if base is None else base.candidate, speedup, state_of(candidate))
        )
    return tuple(sorted(rows, key=lambda row: _sort_key(row.latency)))


def distribution_rows(report: Report) -> tuple[DistributionRow, ...]:
    """All contenders of the span "engine", or of every span where that one was not measured; the fastest first."""
    kinds = {row.name: "engine" if row.kind == "engine" else "peer" for row in report.candidates}
    plain = [row for row in report.latencies if row.span == "engine"] or list(report.latencies)
    return tuple(
        DistributionRow(
            row.contender, kinds.get(row.candidate, "peer"), row.samples_ms, row.median_ms, row.p90_ms, row.p99_ms
        )
        for row in sorted(plain, key=_sort_key)
    )


def pareto_points(report: Report) -> tuple[ParetoPoint, ...]:
    """Candidates with a median and a drift, the fastest first."""
    points: list[ParetoPoint] = []
    for row in speed_rows(report):
        drift, median = row.candidate.drift, row.latency.median_ms
        agreement = None if drift is None else drift.decision.get("mean_agreement")
        if median is not None and isinstance(agreement, int | float):
            value = max(0.0, 1.0 - agreement)
            points.append(ParetoPoint(len(points) + 1, row.candidate.name, median.value, value, row.state))
    return tuple(points)


def scatter_rows(report: Report) -> tuple[ScatterRow, ...]:
    """Differences of every image, one row for each candidate with drift."""
    return tuple(
        ScatterRow(row.name, state_of(row), tuple(_numbers(row, "score_difference")))
        for row in report.candidates
        if row.drift is not None and row.drift.images
    )


def worst_limit(report: Report) -> float | None:
    """The gate's limit for the worst single image, where a decision names it."""
    for candidate in report.candidates:
        for row in () if candidate.drift is None else candidate.drift.decision.get("rows", ()):
            if row["rule"] == "worst_dice_difference":
                return float(row["limit"])
    return None


def gate_table(report: Report) -> GateTable:
    """Lay out the gate's decisions on all candidates whose drift was measured."""
    rules: dict[str, tuple[str, str]] = {}
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    candidates = {row.name: row for row in report.candidates if row.drift is not None}
    for name, candidate in candidates.items():
        for row in () if candidate.drift is None else candidate.drift.decision.get("rows", ()):
            rules.setdefault(row["rule"], (str(row["description"]), f"{row['comparison']} {row['limit']:g}"))
            lines.setdefault((name, row["class_name"]), {})[row["rule"]] = row
    return GateTable(
        tuple(rules.values()),
        tuple(
            (candidates[name], class_name, tuple(cells.get(rule) for rule in rules))
            for (name, class_name), cells in lines.items()
        ),
    )


def roofs(report: Report) -> tuple[tuple[Roof, tuple[RoofPoint, ...]], ...]:
    """For each device its limits and the engines that were held against them."""
    found = []
    for limits in report.ceilings:
        points = [
            RoofPoint(0, row.name, roof.dtype, roof.flop / max(roof.bytes_moved, 1), roof.flop / seconds, intensities)
            for row, roof, seconds, intensities in _held_against_limits(report, limits.device)
            if roof.dtype in limits.flop_per_s
        ]
        points.sort(key=lambda point: -point.flop_per_s)
        numbered = tuple(
            RoofPoint(index + 1, p.label, p.dtype, p.intensity, p.flop_per_s, p.layers)
            for index, p in enumerate(points)
        )
        found.append((Roof(limits.device, dict(limits.flop_per_s), limits.bytes_per_s), numbered))
    return tuple(found)


def _held_against_limits(report: Report, device: str) -> Iterator[tuple[Candidate, Any, float, tuple[float, ...]]]:
    for row in report.candidates:
        latency = plain_latency(report, row.name)
        if row.roofline is None or latency is None or latency.median_ms is None:
            continue
        if ("cuda" if runs_on_gpu(row) else "cpu") == device:
            intensities = tuple(point.intensity for point in row.roofline.points if point.limit_ms > 0)
            yield row, row.roofline, latency.median_ms.value / 1e3, intensities


def _numbers(row: Candidate, key: str) -> Iterator[float]:
    for image in () if row.drift is None else row.drift.images:
        value = image.get(key)
        if isinstance(value, int | float):
            yield float(value)


def _sort_key(latency: Latency) -> tuple[bool, float]:
    return latency.median_ms is None, latency.mean_ms if latency.median_ms is None else latency.median_ms.value
