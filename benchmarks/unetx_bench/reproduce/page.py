"""``page.html``: one page that needs nothing else, for a screen, for paper, by day and by night.

It loads nothing and runs no script; every text is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.interval_plot import interval_svg, shared_scale
from unetx_bench.reproduce.record import ClaimRecord, EngineLatency, Finding, Interval, Reproduction, VariantRecord
from unetx_bench.reproduce.wording import (
    ABSENT,
    FIGURE_TITLES,
    describe_data,
    describe_finding,
    engine_names,
    find_difference,
    format_interval,
    format_p_value,
    format_spread,
    headline_engine,
)
from unetx_opt.optional import require

__all__ = ["render_page"]

_PACKAGE: Final = "unetx_bench.reproduce"
_PURPOSE: Final = "rendering the page of a reproduction"

#: Verdict -> the sign before it, so that it is told without colour.
_SIGNS: Final[Mapping[str, str]] = MappingProxyType(
    {"reproduced": "✓", "not reproduced": "✗", "not decidable": "?", "shown only": "·"}
)
#: Figures whose differences are drawn, in this order.
_COMPARED: Final = ("accuracy", "miou", "dice")


@dataclass(frozen=True, slots=True)
class _FindingRow:
    """A line of a claim's table."""

    subject: str
    words: str
    answer: str
    plot: str


def render_page(result: Reproduction) -> str:
    """Render the page.

    Parameters
    ----------
    result : Reproduction
        What was measured.

    Returns
    -------
    str
        A whole HTML document.

    Raises
    ------
    MissingPackageError
        jinja2 is not installed.
    """
    jinja2 = require("jinja2", purpose=_PURPOSE)
    files = resources.files(_PACKAGE)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        {
            "ms": lambda interval: "" if interval is None else format_interval(interval, "ms"),
            "ratio": lambda interval: "" if interval is None else format_interval(interval, "ratio"),
            "p_value": format_p_value,
            "sign": _SIGNS.__getitem__,
            "slug": lambda verdict: str(verdict).replace(" ", "-"),
        }
    )
    template = environment.from_string(files.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    text: str = template.render(_content(result) | {"style": jinja2.utils.markupsafe.Markup(style)})
    return text


def _content(result: Reproduction) -> dict[str, Any]:
    shown = tuple(row for row in result.variants if row.missing is None)
    return {
        "result": result,
        "baseline": BASELINE,
        "data": describe_data(result),
        "titles": FIGURE_TITLES,
        "shown": shown,
        "headline": headline_engine(result),
        "latencies": {row.name: {one.engine: one for one in row.latencies} for row in shown},
        "engines": engine_names(result),
        "steps": any(row.step is not None for row in shown),
        "comparisons": [(FIGURE_TITLES[figure], _difference_rows(shown, figure)) for figure in _COMPARED],
        "claims": [(claim, _finding_rows(claim)) for claim in result.claims],
        "seeds": [(row, _seed_cells(row)) for row in result.variants if row.seeds is not None],
        "several": len({precision for row in shown for precision in row.scores_by_precision}) > 1,
        "scored": next((name for row in shown if row.name == BASELINE for name in row.scores_by_precision), "first"),
        "packages": _packages(result.environment),
        "whole": _whole,
    }


def _whole(latency: EngineLatency) -> tuple[Interval, Interval | None]:
    """Time and ratio with the step behind the network, where there is one."""
    return latency.ms_with_step or latency.ms, latency.ratio_with_step or latency.ratio


def _difference_rows(shown: Sequence[VariantRecord], figure: str) -> list[tuple[VariantRecord, Any, str]]:
    found = [(row, find_difference(row, figure)) for row in shown]
    present = [(row, one) for row, one in found if one is not None]
    intervals = [Interval(value=one.mean, low=one.low, high=one.high) for _, one in present]
    scale = shared_scale(intervals, [0.0])
    return [
        (row, one, _markup(interval_svg(interval, scale, 0.0, None)))
        for (row, one), interval in zip(present, intervals, strict=True)
    ]


def _finding_rows(claim: ClaimRecord) -> list[_FindingRow]:
    rows = []
    for finding in claim.findings:
        words, answer = describe_finding(finding)
        rows.append(_FindingRow(finding.subject, words, answer, _markup(_plot(finding, claim.findings))))
    return rows


def _plot(finding: Finding, siblings: Sequence[Finding]) -> str:
    """Draw a finding on the scale of all findings of its unit; nothing where it has no figure."""
    if finding.estimate is None or finding.null is None:
        return ""
    alike = [one for one in siblings if one.unit == finding.unit and one.estimate is not None]
    marks = [value for one in alike for value in (one.null, one.printed) if value is not None]
    scale = shared_scale([one.estimate for one in alike if one.estimate is not None], marks)
    return interval_svg(finding.estimate, scale, finding.null, finding.printed)


def _seed_cells(row: VariantRecord) -> list[tuple[str, list[tuple[str, float]]]]:
    """Give each figure's spread and seeds, in the order of `FIGURE_TITLES`; nothing where none was given."""
    figures = row.seeds.figures if row.seeds is not None else {}
    cells = [sorted(figures.get(name, {}).items()) for name in FIGURE_TITLES]
    spreads = [format_spread([value for _, value in cell]) if cell else ABSENT for cell in cells]
    return [(spread.replace("+/-", "±"), cell) for spread, cell in zip(spreads, cells, strict=True)]


def _packages(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    wanted = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "numba", "numpy")
    packages = environment.get("packages", {})
    return [(name, packages[name]) for name in wanted if name in packages]


def _markup(svg: str) -> Any:
    """Mark a drawing as HTML: it is made of numbers alone."""
    return require("jinja2", purpose=_PURPOSE).utils.markupsafe.Markup(svg)
