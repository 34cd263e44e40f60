"""``table.md``: the tables and the claims for a reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from unetx_bench.reproduce.article import BASELINE
from unetx_bench.reproduce.record import EngineLatency, Reproduction, VariantRecord
from unetx_bench.reproduce.wording import (
    ABSENT,
    FIGURE_TITLES,
    describe_data,
    describe_finding,
    engine_names,
    find_difference,
    format_interval,
    format_p_value,
    format_score,
    format_spread,
)

__all__ = ["render_markdown"]


def render_markdown(result: Reproduction) -> str:
    """Render the tables and the claims as Markdown."""
    sections = (
        f"# The article's table, measured here\n\n{_preamble(result)}",
        "## Answers\n\n" + _table(("claim", "answer", "decided by"), _claim_rows(result)),
        "## Accuracy\n\n" + _table(_ACCURACY_HEADER, _accuracy_rows(result)),
        f"## Differences to `{BASELINE}`, paired by image\n\n" + _table(_DIFFERENCE_HEADER, _difference_rows(result)),
        "## Time of one image\n\n" + _table(_time_header(result), _time_rows(result)),
        "## Graphs\n\n" + _table(_GRAPH_HEADER, _graph_rows(result)),
        "## Claims in full\n\n" + "\n\n".join(_claim_section(result)),
    )
    return "\n\n".join(sections) + "\n"


def _preamble(result: Reproduction) -> str:
    settings = result.settings
    lines = [
        f"- Data: {describe_data(result)}. {result.data.note}",
        f"- Device: {result.device}.",
        f"- Networks: input {settings.size_px} x {settings.size_px} pixels, batch 1; {_widths(result)}.",
        f"- Time: median of one inference, {settings.clock}. {settings.stopped.capitalize()}.",
        f"- Made by {result.program} {result.version} on {result.created}; last part {result.seconds:.0f} s.",
    ]
    lines += [f"- Left out by --quick: {'; '.join(settings.cut)}."] if settings.cut else []
    lines += [f"- The machine was disturbed: {'; '.join(result.disturbances)}."] if result.disturbances else []
    return "\n".join(lines)


def _widths(result: Reproduction) -> str:
    widths = sorted({row.graph.width for row in result.variants if row.graph is not None})
    return "first-stage width " + " and ".join(map(str, widths))


_ACCURACY_HEADER: Final = (
    "variant",
    "printed accuracy",
    "measured accuracy",
    "printed mIoU",
    "measured mIoU",
    "Dice",
    "class-balanced accuracy",
    "seeds: accuracy",
)


def _accuracy_rows(result: Reproduction) -> Iterable[Sequence[str]]:
    for row in result.variants:
        printed = row.printed
        accuracy = ABSENT if printed is None else f"{printed.accuracy:.3f} +/- {printed.accuracy_spread:.3f}"
        miou = ABSENT if printed is None else f"{printed.miou:.3f} +/- {printed.miou_spread:.3f}"
        measured = [format_score(row.scores.get(figure)) for figure in FIGURE_TITLES]
        if row.missing is not None:
            measured = [f"not measured: {row.missing}", ABSENT, ABSENT, ABSENT]
        yield (
            f"`{row.name}`",
            accuracy,
            measured[0],
            miou,
            measured[2],
            measured[3],
            measured[1],
            _seeds(row, "accuracy"),
        )


def _seeds(row: VariantRecord, figure: str) -> str:
    values = list(row.seeds.figures.get(figure, {}).values()) if row.seeds is not None else []
    return f"{format_spread(values)} ({len(values)})" if values else ABSENT


_DIFFERENCE_HEADER: Final = ("variant", "figure", "difference", "95 % interval", "p", "p (Holm)", "images")


def _difference_rows(result: Reproduction) -> Iterable[Sequence[str]]:
    for row in result.variants:
        for figure, title in FIGURE_TITLES.items():
            found = find_difference(row, figure)
            if found is not None:
                holm = ABSENT if found.p_holm is None else format_p_value(found.p_holm)
                interval = f"{found.low:+.5f} to {found.high:+.5f}"
                yield (
                    f"`{row.name}`",
                    title,
                    f"{found.mean:+.5f}",
                    interval,
                    format_p_value(found.p_value),
                    holm,
                    str(found.n),
                )


def _time_header(result: Reproduction) -> Sequence[str]:
    return ("engine", *(f"`{row.name}`" for row in result.variants if row.missing is None))


def _time_rows(result: Reproduction) -> Iterable[Sequence[str]]:
    shown = [row for row in result.variants if row.missing is None]
    yield (
        "printed, device unknown",
        *(ABSENT if row.printed is None else f"{row.printed.latency_ms:.1f} ms" for row in shown),
    )
    for engine in engine_names(result):
        found = [next((one for one in row.latencies if one.engine == engine), None) for row in shown]
        yield (engine, *(_latency_cell(latency) for latency in found))
    if any(row.step for row in shown):
        steps = (ABSENT if row.step is None else f"{format_interval(row.step.ms, 'ms')}" for row in shown)
        yield ("the step alone (in the figures above)", *steps)


def _latency_cell(latency: EngineLatency | None) -> str:
    if latency is None:
        return ABSENT
    ms = latency.ms_with_step or latency.ms
    ratio = latency.ratio_with_step or latency.ratio
    return format_interval(ms, "ms") + ("" if ratio is None else f", x {format_interval(ratio, 'ratio')}")


_GRAPH_HEADER: Final = ("variant", "GFLOP", "to unet", "MB moved", "to unet", "parameters", "structure SHA-256")


def _graph_rows(result: Reproduction) -> Iterable[Sequence[str]]:
    for row in result.variants:
        graph = row.graph
        if graph is None:
            continue
        yield (
            f"`{row.name}`",
            f"{graph.flop / 1e9:.3f}",
            _ratio(graph.flop_ratio),
            f"{graph.bytes_moved / 1e6:.1f}",
            _ratio(graph.bytes_ratio),
            f"{graph.parameters:,}",
            graph.structure_sha256[:16],
        )


def _ratio(value: float | None) -> str:
    return ABSENT if value is None else f"x {value:.3f}"


def _claim_rows(result: Reproduction) -> Iterable[Sequence[str]]:
    for claim in result.claims:
        yield (f"{claim.id} {claim.claim}", f"**{claim.verdict}**", claim.reason)


def _claim_section(result: Reproduction) -> Iterable[str]:
    for claim in result.claims:
        lines = [
            f"### {claim.id}: {claim.verdict}",
            f"{claim.claim} {claim.remark}",
            f"Rule: {claim.rule}",
            _table(("what", "measured", "answer"), ((f.subject, *describe_finding(f)) for f in claim.findings)),
        ]
        yield "\n\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *(line(row) for row in rows)])
