"""Pages of many reports: the history of one machine, and a fleet of machines."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from unetx_bench.history import FleetRow, Trend, device_name
from unetx_bench.report import Report
from unetx_bench.report_page.rendering import both_widths, render_template
from unetx_bench.report_page.trend import TrendPoint, draw_trend

__all__ = ["render_fleet_page", "render_history_page"]


def render_history_page(trends: Sequence[Trend], reports: Sequence[tuple[str, Report]]) -> str:
    """Render the history of one machine.

    Parameters
    ----------
    trends : sequence of Trend
        As from `unetx_bench.history.list_trends`.
    reports : sequence of (str, Report)
        What they were made from.
    """
    runs = sorted(reports, key=lambda row: row[1].created)
    charts = []
    for index, trend in enumerate(trends):
        points = [TrendPoint(row.created, row.ratio, row.disturbed) for row in trend.rows]
        draw = functools.partial(draw_trend, points, f"{trend.key}, time over {trend.peer}'s")
        charts.append((trend, both_widths(f"trend-{index}", draw)))
    content = {"device": device_name(runs[0][1]), "runs": runs, "charts": charts}
    return render_template("history.html.jinja", content)


def render_fleet_page(rows: Sequence[FleetRow]) -> str:
    """Render a fleet: a table for each model, the fastest workstation first.

    Parameters
    ----------
    rows : sequence of FleetRow
        As from `unetx_bench.history.list_fleet`.
    """
    models = [(model, list(group)) for model, group in itertools.groupby(rows, key=lambda row: row.model)]
    count = len({row.workstation for row in rows})
    return render_template("fleet.html.jinja", {"models": models, "count": count})
