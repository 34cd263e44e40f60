"""The evidence of a gate as one page that needs nothing else, and as JSON.

The page holds its style, its plots and its pictures; it loads nothing, runs no script, and every text that came
from outside is escaped.
"""

from __future__ import annotations

import base64
import json
import math
import statistics
from collections.abc import Callable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

from unetx_exporters.gate_cases import DriftCase
from unetx_exporters.gate_evidence import (
    GateReport,
    TargetEvidence,
    collect_evidence,
    report_to_json,
)
from unetx_exporters.gate_figures import case_png, drift_scale, is_outside, scatter_svg, signed
from unetx_opt.files import write_file
from unetx_opt.metrics.gates import GateRow, ImageDrift, get_gate

__all__ = [
    "GateReport",
    "TargetEvidence",
    "collect_evidence",
    "render_gate_html",
    "report_to_json",
    "table_html",
    "write_gate_report",
]

_PICTURES: Final = 4

_COMPARISON: Final[Mapping[str, str]] = MappingProxyType({">=": "≥", ">": ">", "<=": "≤"})


def _percent(value: float) -> str:
    return f"{100.0 * value:.4f}".rstrip("0").rstrip(".") + " %"


def _pixels(value: float) -> str:
    return f"{value:.3g} px" if math.isfinite(value) else "∞ px"


def _count(value: float) -> str:
    return f"{value:.0f}"


#: Rule -> how its value and its limit are written; other rules are written as differences.
_UNITS: Final[Mapping[str, Callable[[float], str]]] = MappingProxyType(
    {"mean_dice_kept": _percent, "hausdorff_shift_px": _pixels, "empty_mask": _count, "non_finite": _count}
)


def write_gate_report(directory: Path, report: GateReport) -> tuple[Path, Path]:
    """Write ``gate.html`` and ``gate.json``.

    Parameters
    ----------
    directory : pathlib.Path
        Usually ``evidence`` in the bundle; made if it is missing.
    report : GateReport
        What to write.

    Returns
    -------
    tuple of pathlib.Path
        The page and the JSON file.
    """
    page, record = directory / "gate.html", directory / "gate.json"
    text = json.dumps(report_to_json(report), indent=1, allow_nan=False)
    write_file(page, render_gate_html(report).encode("utf-8"))
    write_file(record, (text + "\n").encode("ascii"))
    return page, record


def render_gate_html(report: GateReport) -> str:
    """Render the page: the answer, the rules, every image, the worst images.

    Parameters
    ----------
    report : GateReport
        What to render.

    Returns
    -------
    str
        A whole HTML document.
    """
    style = resources.files("unetx_exporters").joinpath("gate_report.css").read_text(encoding="utf-8")
    verdict = _headline(report)
    sections = (
        _answer_section(report),
        _rules_section(report),
        _images_section(report),
        *_case_sections(report),
        _method_section(report),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(verdict)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _headline(report: GateReport) -> str:
    kept = report.kept or report.targets
    passed = sum(target.decision.passed for target in kept)
    if len(kept) == 1:
        return f"{'PASS' if report.passed else 'FAIL'}: {kept[0].name}, gate {report.gate}"
    if report.passed:
        return f"PASS: all {len(kept)} engines, gate {report.gate}"
    return f"FAIL: {len(kept) - passed} of {len(kept)} engines, gate {report.gate}"


def _left_out(report: GateReport) -> str:
    """Name what was tried and is not in the bundle."""
    names = [target.name for target in report.targets if not target.kept]
    if not names:
        return ""
    return f"<p>Tried and left out of the bundle: {escape(', '.join(names))}.</p>\n"


def _answer_section(report: GateReport) -> str:
    images = len(report.images)
    rows = "\n".join(_answer_row(target) for target in report.targets)
    return (
        f"<h1>{escape(_headline(report))}</h1>\n"
        f"<p>Each engine was compared with its reference, {escape(report.reference)}, on {images} images, "
        f"image by image and class by class.</p>\n"
        f'<p class="note">{escape(report.note)}</p>\n'
        + _left_out(report)
        + table_html(
            "The answer for each engine, with the figure of its worst image",
            (
                "Engine",
                "Verdict",
                "Worst image, Dice difference",
                "Boundary shift, worst image",
                "Agreement with the reference, mean and least Dice",
                "One call, median",
            ),
            rows,
        )
    )


def _answer_row(target: TargetEvidence) -> str:
    decision = target.decision
    lowest = min(target.drifts, key=lambda drift: drift.score_difference)
    furthest = max(target.drifts, key=lambda drift: drift.hausdorff_shift_px)
    note = f"<small>{escape(target.note)}</small>" if target.note else ""
    return (
        f'<tr><th scope="row">{escape(target.name)}{note}</th><td>{_verdict(decision.passed)}</td>'
        f"<td>{signed(lowest.score_difference)}{_where(lowest, lowest.score_difference < 0)}</td>"
        f"<td>{_pixels(furthest.hausdorff_shift_px)}{_where(furthest, furthest.hausdorff_shift_px > 0)}</td>"
        f"<td>{decision.mean_agreement:.6f}, {decision.worst_agreement:.6f}</td>"
        f'<td class="number">{statistics.median(target.call_ms):.3g} ms</td></tr>'
    )


def _where(drift: ImageDrift, worth_naming: bool) -> str:
    return f"<small>{escape(drift.name)}</small>" if worth_naming else ""


def _rules_section(report: GateReport) -> str:
    first = report.targets[0].decision
    several = len(first.class_names) > 1
    body = []
    for index, row in enumerate(first.rows):
        shown = f"<small>class {escape(row.class_name)}</small>" if several else ""
        cells = "".join(_rule_cell(target.decision.rows[index]) for target in report.targets)
        body.append(
            f'<tr><th scope="row">{escape(row.description)}{shown}</th>'
            f'<td class="number">{_COMPARISON[row.comparison]} {_value(row, row.limit)}</td>{cells}</tr>'
        )
    scored = (
        "Dice is against the ground truth; the boundary shift is between the engine's mask and the reference's."
        if first.has_truth
        else "There is no ground truth: Dice and boundary shift are between the engine's mask and the reference's."
    )
    names = tuple(target.name for target in report.targets)
    return f"<h2>Rules of the gate {escape(report.gate)}</h2>\n<p>{scored}</p>\n" + table_html(
        "What each rule found, and its limit", ("Rule", "Limit", *names), "\n".join(body)
    )


def _rule_cell(row: GateRow) -> str:
    mark = "✓" if row.passed else "✗ FAIL"
    where = f"<small>{escape(row.worst_image)}</small>" if row.worst_image and not row.passed else ""
    return f'<td class="number{"" if row.passed else " failed"}">{_value(row, row.value)} {mark}{where}</td>'


def _value(row: GateRow, value: float) -> str:
    return _UNITS.get(row.rule, signed)(value)


def _images_section(report: GateReport) -> str:
    scale = drift_scale([drift for target in report.targets for drift in target.drifts], get_gate(report.gate))
    figures = "\n".join(
        f"<figure>{scatter_svg(target.name, target.drifts, scale)}"
        f"<figcaption><strong>{escape(target.name)}</strong> {_verdict(target.decision.passed)} "
        f"{len(target.drifts)} points, {sum(is_outside(drift, scale) for drift in target.drifts)} of them outside "
        "the plot</figcaption></figure>"
        for target in report.targets
    )
    return (
        "<h2>Every image</h2>\n<p>A point is one image and class. Dashed lines are the limits: no image below the "
        "horizontal one, and at most 5 % of the images right of the vertical one. Crosses break a rule that holds "
        "for every single image; what lies outside the plot stands at its border, as a cross or a triangle."
        f'</p>\n<div class="grid-of-figures">\n{figures}\n</div>'
    )


def _case_sections(report: GateReport) -> list[str]:
    """Pictures of those that passed and of those that failed, apart: a failure must not hide what is shipped."""
    if not report.pictures:
        return ["<h2>Worst images</h2>\n<p>Pictures were left out of this page when it was made.</p>"]
    sections = []
    for passed, title in ((True, "Worst images of what passed"), (False, "Worst images of what failed")):
        targets = [target for target in report.targets if target.decision.passed is passed]
        if targets:
            sections.append(_case_section(title, targets))
    return sections


def _case_section(title: str, targets: list[TargetEvidence]) -> str:
    named = [(target.name, case) for target in targets for case in target.cases]
    named.sort(key=lambda pair: pair[1].drift.severity, reverse=True)
    # One picture for each image: engines of one graph differ on the same ones.
    by_image: dict[str, tuple[str, DriftCase]] = {}
    for name, case in named:
        by_image.setdefault(case.drift.name, (name, case))
    shown = list(by_image.values())[:_PICTURES]
    if not shown:
        return f"<h2>{title}</h2>\n<p>Every mask is equal to the reference's, pixel by pixel.</p>"
    key = "".join(
        f'<span class="key" style="background:{color}"></span>{text} '
        for color, text in (
            ("#56b4e9", "contour of the reference,"),
            ("#e69f00", "of the engine,"),
            ("#ffffff", "of both;"),
            ("#f03c96", "pixels in one mask only."),
        )
    )
    figures = "\n".join(_case_figure(name, case) for name, case in shown)
    return (
        f"<h2>{title}</h2>\n<p>{key}Right: the framed window, enlarged.</p>\n"
        f'<div class="grid-of-figures">\n{figures}\n</div>'
    )


def _case_figure(name: str, case: DriftCase) -> str:
    drift = case.drift
    summary = (
        f"Dice difference {signed(drift.score_difference)}, agreement {drift.dice_engine_vs_reference:.6f}, "
        f"boundary shift {_pixels(drift.hausdorff_shift_px)}, {case.differing_px} px differ"
    )
    picture = base64.b64encode(case_png(case)).decode("ascii")
    alt = escape(f"{drift.name}: contours of the reference and of {name}; {summary}")
    return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{picture}">'
        f"<figcaption><strong>{escape(drift.name)}</strong>, {escape(drift.class_name)}, {escape(name)}: "
        f"{summary}.</figcaption></figure>"
    )


def _method_section(report: GateReport) -> str:
    source = report.data if report.split is None else f"{report.data}, split {report.split}"
    entries = (
        ("Reference", report.reference),
        ("Images", f"{len(report.images)} from {source}; gate.json lists them by the SHA-256 of their pixels"),
        ("Boundary shift", "95 % Hausdorff distance; over the images, the value of rank ceil(0.95 (n - 1))"),
        ("Lower bound", "one-sided, percentile bootstrap of the mean difference over whole images, seeded"),
        ("One call", "wall clock of a single call per image, engines in turns: it ranks them, it is no benchmark"),
    )
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries)
    return f"<h2>How this was measured</h2>\n<dl>{items}</dl>"


def _verdict(passed: bool) -> str:
    return '<span class="verdict pass">✓ PASS</span>' if passed else '<span class="verdict fail">✗ FAIL</span>'


def table_html(caption: str, header: tuple[str, ...], body: str) -> str:
    """Make a table that scrolls by itself; `body` is HTML, the other texts are escaped."""
    cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    return (
        f'<div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0">\n<table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table>\n</div>"
    )
