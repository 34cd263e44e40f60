"""A report as tables: CSV for spreadsheets, Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from unetx_bench.report import Candidate, Report
from unetx_bench.statistics import Estimate

__all__ = ["latency_csv", "samples_csv", "summary_markdown"]


def latency_csv(report: Report) -> str:
    """One line for each contender; an empty field is a figure that was refused or not measured."""
    header = ["contender", "candidate", "span", "batch", "clock", "samples"]
    for name in ("median", "p90", "p99"):
        header += [f"{name}_ms", f"{name}_low_ms", f"{name}_high_ms"]
    rows: list[Sequence[object]] = [[*header, "least_ms", "mean_ms", "first_call_ms", "disturbed"]]
    for row in report.latencies:
        figures: list[object] = [row.contender, row.candidate, row.span, row.batch, row.clock, len(row.samples_ms)]
        for estimate in (row.median_ms, row.p90_ms, row.p99_ms):
            figures += ["", "", ""] if estimate is None else [estimate.value, estimate.low, estimate.high]
        rows.append([*figures, row.least_ms, row.mean_ms, row.first_call_ms, int(report.run.disturbed)])
    return _csv(rows)


def samples_csv(report: Report) -> str:
    """Every sample in ms: one line for each round, one column for each contender."""
    names = [row.contender for row in report.latencies]
    rounds = zip(*(row.samples_ms for row in report.latencies), strict=True)
    started = enumerate(report.run.started_s)
    lines = [[index, start_s, *row] for (index, start_s), row in zip(started, rounds, strict=True)]
    return _csv([["round", "started_s", *names], *lines])


def summary_markdown(report: Report) -> str:
    """The answer, the latencies, the drift, and what was not measured, on one page."""
    host, run = report.environment, report.run
    parts = ["# Benchmark", *(f"- {sentence}" for sentence in report.answer)]
    parts += [
        f"\n{', '.join(filter(None, (host.cpu, f'{host.cores} processors', host.gpu)))}; "
        f"{report.product}, {report.created}; "
        f"image {report.image.name}, {report.image.height_px} x {report.image.width_px} px; {run.rounds} rounds, "
        f"stopped by {run.stopped}. Intervals: {report.method.confidence:.0%}.",
        "\n## Latency\n",
        _table(
            ("contender", "median ms", "p90 ms", "p99 ms", "samples"),
            [
                (row.contender, *map(_interval, (row.median_ms, row.p90_ms, row.p99_ms)), str(len(row.samples_ms)))
                for row in report.latencies
            ],
        ),
        "\nA dash: refused, because there are too few (independent) samples.",
    ]
    parts += _engine_tables(report)
    if report.not_measured:
        parts += ["\n## Not measured\n", _table(("what", "why"), sorted(report.not_measured.items()))]
    return "\n".join(parts) + "\n"


def _engine_tables(report: Report) -> list[str]:
    data = report.drift_data
    source = data.data if data.split is None else f"{data.data}, split {data.split}"
    title = f"\n## Drift and limits\n\nDrift: {source}, {data.count} images, gate {data.gate}. {data.note}\n"
    if data.data is None:
        title = f"\n## Drift and limits\n\n{data.note}.\n"
    columns = ("candidate", "gate", "mean agreement", "of the limit", "of the arithmetic", "load ms", "peak MiB")
    return [title, _table(columns, [_engine_row(row) for row in report.candidates])]


def _engine_row(row: Candidate) -> tuple[str, ...]:
    verdict, agreement = "-", "-"
    if row.drift is not None:
        verdict = "passed" if row.drift.decision["passed"] else "failed"
        agreement = f"{row.drift.decision['mean_agreement']:.5f}"
    cold = row.cold_start
    peak = "-" if cold is None or cold.host_peak_bytes is None else f"{cold.host_peak_bytes / 2**20:.0f}"
    parts = (row.fraction_of_limit, row.fraction_of_arithmetic)
    fractions = ("-" if part is None else f"{part:.0%}" for part in parts)
    return row.name, verdict, agreement, *fractions, "-" if row.load_ms is None else f"{row.load_ms:.0f}", peak


def _interval(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
