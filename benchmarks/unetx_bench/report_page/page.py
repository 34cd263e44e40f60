"""``report.html``: a report as one page, made from ``report.json`` and the pictures beside it."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Final

from unetx_bench.nvml import GpuState
from unetx_bench.report import Candidate, Report
from unetx_bench.report_page.distributions import draw_distributions
from unetx_bench.report_page.figures import (
    distribution_rows,
    gate_table,
    pareto_points,
    roofs,
    scatter_rows,
    speed_rows,
    worst_limit,
)
from unetx_bench.report_page.pareto import draw_pareto
from unetx_bench.report_page.pictures import PictureBudget, embed_cases
from unetx_bench.report_page.rendering import both_widths, render_template
from unetx_bench.report_page.roof import draw_roof
from unetx_bench.report_page.scatter import draw_scatter
from unetx_bench.standings import fastest_standing, passes_gate, runs_on_gpu

__all__ = ["PAGE_NAME", "render_report_page"]

PAGE_NAME: Final = "report.html"


def render_report_page(report: Report, folder: Path) -> str:
    """Render the page of a report.

    Parameters
    ----------
    report : Report
        What was measured.
    folder : pathlib.Path
        Where it lies: the pictures that it names are read from there, and nowhere else.

    Returns
    -------
    str
        A whole HTML document that loads nothing.

    Raises
    ------
    MissingPackageError
        jinja2 is not installed.
    """
    cases, cases_left_out = embed_cases(report, folder, PictureBudget())
    engines = tuple(row for row in report.candidates if row.kind == "engine")
    compared = tuple(row for row in report.candidates if row.drift is not None)
    content: dict[str, Any] = {
        "report": report,
        "standings": [(bundle, fastest_standing(report, bundle.name)) for bundle in report.bundles],
        "speeds": speed_rows(report),
        "several_baselines": len({runs_on_gpu(row) for row in report.candidates}) > 1,
        "engines": engines,
        "compared": compared,
        "passes": passes_gate,
        "gate": gate_table(report),
        "cases": cases,
        "cases_left_out": cases_left_out,
        "points": pareto_points(report),
        "reasons": _reasons(report.candidates),
        "gpu_state": _gpu_state,
        **_charts(report),
    }
    return render_template("report.html.jinja", content)


def _charts(report: Report) -> dict[str, Any]:
    distributions, scatter, points = distribution_rows(report), scatter_rows(report), pareto_points(report)
    limit, held = worst_limit(report), [row for row in roofs(report) if row[1]]
    return {
        "distribution": both_widths("distribution", lambda *at: draw_distributions(distributions, *at)),
        "scatter": both_widths("scatter", lambda *at: draw_scatter(scatter, limit, *at)) if scatter else None,
        "pareto": both_widths("pareto", lambda *at: draw_pareto(points, *at)) if points else None,
        "roofs": [
            (roof, held_points, both_widths(f"roof-{index}", functools.partial(draw_roof, roof, held_points)))
            for index, (roof, held_points) in enumerate(held)
        ],
    }


def _reasons(candidates: tuple[Candidate, ...]) -> list[tuple[str, str, str]]:
    """What was not measured of the engines, and why; equal reasons once, with all who share them."""
    shared: dict[tuple[str, str], list[str]] = {}
    for row in candidates:
        for what, reason in row.why_not.items() if row.kind == "engine" else ():
            shared.setdefault((what, reason), []).append(row.name)
    return [(what.replace("_", " "), reason, ", ".join(names)) for (what, reason), names in shared.items()]


def _gpu_state(state: GpuState) -> list[tuple[str, str]]:
    """What the driver told, without the names that the environment gives."""
    told = []
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if field.name not in {"name", "driver"} and value is not None and value != ():
            words = ", ".join(value) if isinstance(value, tuple) else f"{value}"
            told.append((field.name.replace("_", " "), words))
    return told
