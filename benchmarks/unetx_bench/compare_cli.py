"""The command `unetx-opt compare`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from unetx_bench.compare import ContenderChange, ReportComparison

__all__ = ["compare", "describe_comparison"]

_REGRESSION: Final = 3


class _Fraction(click.ParamType[float]):
    """A fraction, as "5%" or as "0.05"."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            fraction = -1.0
        if not 0 < fraction < 1:
            self.fail(f"{value!r} is no fraction above 0 and below 1, such as 5% or 0.05", param, ctx)
        return fraction


@click.command("compare")
@click.argument("before", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("after", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--bound", type=_Fraction(), default="5%", show_default=True, help="A slowdown beyond it exits 3.")
@click.option("--peer", metavar="NAME", help="What both are held against.  [PyTorch as it is, or the first in both]")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(before: Path, after: Path, bound: float, peer: str | None, as_json: bool) -> None:
    """Say what changed between two report.json of one device: BEFORE and AFTER.

    Compared are ratios to a peer that took turns with the contender in both runs, never latencies of different runs.
    Intervals are about the rounds of these two runs; leave room in the bound for what differs from start to start.
    Exits 3 if an engine is slower beyond the bound for sure, fails a gate that it passed, or no longer runs.
    """
    from unetx_bench.compare import compare_reports
    from unetx_bench.lines import echo_line
    from unetx_bench.report import read_report
    from unetx_opt.cli.output import echo_json

    found = compare_reports(read_report(before), read_report(after), bound, peer)
    if as_json:
        echo_json(found)
    else:
        for line in describe_comparison(found):
            echo_line(line)
    if found.regressions:
        raise click.exceptions.Exit(_REGRESSION)


def describe_comparison(found: ReportComparison) -> Iterator[str]:
    """Say a comparison in lines, the outcome first."""
    if found.regressions:
        yield f"{len(found.regressions)} regression{'s' if len(found.regressions) > 1 else ''}:"
        yield from (f"  {line}" for line in found.regressions)
    else:
        yield f"no regression beyond {found.bound:.3g} was found"
    unsure = sum(row.verdict == "not decidable" and row.kind == "engine" for row in found.contenders)
    if unsure:
        yield f"{unsure} of the engines' contenders cannot be decided: measure longer, or on a quieter machine"
    yield from (f"note: {line}" for line in found.notes)
    yield f"change of the time over the peer's, intervals of at least {found.confidence:.0%}:"
    yield from (f"  {_contender_line(row)}" for row in found.contenders)
    for row in found.drifts:
        if row.is_change:
            images = "" if row.same_images else ", on different images"
            words = (_gate_words(row.passed_before), _gate_words(row.passed_after))
            agreement = f"{_figure(row.agreement_before)} -> {_figure(row.agreement_after)}"
            yield f"drift: {row.engine}: {words[0]} -> {words[1]}, mean agreement {agreement}{images}"
    for change in found.environment:
        yield f"environment: {change.what}: {change.before or 'unknown'} -> {change.after or 'unknown'}"
    yield from (f"only before: {name}" for name in found.only_before)
    yield from (f"only after: {name}" for name in found.only_after)


def _contender_line(row: ContenderChange) -> str:
    medians = f"median {_median(row.median_before_ms)} and {_median(row.median_after_ms)} ms"
    if row.change is None:
        return f"{row.contender}: {row.verdict}{f' ({row.remark})' if row.remark else ''}; {medians}"
    interval = f"x {row.change.value:.3f} ({row.change.low:.3f} to {row.change.high:.3f})"
    ratios = " -> ".join("?" if one is None else f"{one.value:.3f}" for one in (row.ratio_before, row.ratio_after))
    return f"{row.contender}: {row.verdict}, {interval}; {ratios} of {row.peer}; {medians}"


def _median(estimate: object) -> str:
    return "?" if estimate is None else f"{getattr(estimate, 'value', 0.0):.4g}"


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.5f}"


def _gate_words(passed: bool | None) -> str:
    return {None: "not measured", True: "passed", False: "failed"}[passed]
