"""The commands `unetx-opt history` and `unetx-opt fleet`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from unetx_bench.history import FleetRow, Trend

__all__ = ["fleet", "history"]

_REPORTS: Final = click.argument(
    "reports", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="REPORT..."
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON."),
        click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Page to write."),
    ):
        command = option(command)
    return _REPORTS(command)


@click.command("history")
@_options
def history(reports: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Follow the engines of one machine over many REPORTs (report.json files, or folders that hold one).

    Shown are ratios to a peer that took turns with the engine in each run: those of different runs can be compared.
    """
    from unetx_bench.history import list_trends, read_reports

    read = read_reports(reports)
    trends = list_trends(read)
    if output is not None:
        from unetx_bench.report_page.many import render_history_page
        from unetx_opt.files import write_file

        write_file(output, render_history_page(trends, read).encode())
    _print(trends, as_json, _trend_line, output)


@click.command("fleet")
@_options
def fleet(reports: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Put workstations side by side, each by its REPORT (report.json files, or folders that hold one).

    A workstation is called by the name of its report or folder; reports hold no host names.
    """
    from unetx_bench.history import list_fleet, read_reports

    rows = list_fleet(read_reports(reports))
    if output is not None:
        from unetx_bench.report_page.many import render_fleet_page
        from unetx_opt.files import write_file

        write_file(output, render_fleet_page(rows).encode())
    _print(rows, as_json, _fleet_line, output)


def _print(rows: tuple[Any, ...], as_json: bool, line: Callable[[Any], str], output: Path | None) -> None:
    from unetx_bench.lines import echo_line
    from unetx_opt.cli.output import echo_json

    if as_json:
        echo_json(rows)
        return
    for row in rows:
        echo_line(line(row))
    if output is not None:
        click.echo(f"page: {output}")


def _trend_line(trend: Trend) -> str:
    last = trend.rows[-1].ratio
    count = f"{len(trend.rows)} run{'s' if len(trend.rows) != 1 else ''}"
    text = f"{trend.key}: {last.value:.3f} of {trend.peer} ({last.low:.3f} to {last.high:.3f}), {count}"
    if trend.change is None:
        return text
    change = trend.change
    return f"{text}; since the first x {change.value:.3f} ({change.low:.3f} to {change.high:.3f})"


def _fleet_line(row: FleetRow) -> str:
    place = f"{row.model}: {row.workstation} ({row.device})"
    if row.standing is None:
        return f"{place}: no engine both passed the drift gate and was measured long enough"
    best = row.standing
    median = f"{best.median_ms.value:.4g} ms ({best.median_ms.low:.4g} to {best.median_ms.high:.4g})"
    speed = "" if best.speedup is None else f", {best.speedup.value:.2f} times as fast as {best.baseline}"
    return f"{place}: {best.candidate.name}, {median}{speed}{', disturbed' if row.disturbed else ''}"
