"""``table.csv``: one line for each variant and engine, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from typing import Any, Final

from unetx_bench.reproduce.record import EngineLatency, Reproduction, VariantRecord
from unetx_bench.reproduce.wording import FIGURE_TITLES, find_difference

__all__ = ["render_csv"]

_CSV_COLUMNS: Final = (
    *("variant", "missing", "engine", "precision", "target", "compute_dtype"),
    *("printed_accuracy", "printed_miou", "printed_ms"),
    *(f"{figure}{end}" for figure in FIGURE_TITLES for end in ("", "_low", "_high")),
    *("accuracy_minus_unet", "accuracy_minus_unet_low", "accuracy_minus_unet_high", "accuracy_p"),
    *("ms", "ms_low", "ms_high", "ratio", "ratio_low", "ratio_high", "step_ms", "ms_with_step", "ratio_with_step"),
    *("rounds", "flop", "flop_ratio", "bytes_moved", "parameters", "structure_sha256"),
)


def render_csv(result: Reproduction) -> str:
    """Render one line for each variant and engine; figures that do not exist are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in result.variants:
        shared = _csv_variant(row)
        for latency in row.latencies:
            writer.writerow(shared | _csv_engine(latency))
        if not row.latencies:
            writer.writerow(shared)
    return text.getvalue()


def _csv_variant(row: VariantRecord) -> dict[str, Any]:
    cells: dict[str, Any] = {"variant": row.name, "missing": row.missing or ""}
    if row.printed is not None:
        cells["printed_accuracy"], cells["printed_miou"] = row.printed.accuracy, row.printed.miou
        cells["printed_ms"] = row.printed.latency_ms
    for figure, score in row.scores.items():
        cells |= {figure: score.mean, f"{figure}_low": score.low, f"{figure}_high": score.high}
    if (found := find_difference(row, "accuracy")) is not None:
        name = "accuracy_minus_unet"
        cells |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        cells["accuracy_p"] = found.p_value
    if row.graph is not None:
        fields = ("flop", "flop_ratio", "bytes_moved", "parameters", "structure_sha256")
        cells |= {field: getattr(row.graph, field) for field in fields}
    cells["step_ms"] = "" if row.step is None else row.step.ms.value
    return cells


def _csv_engine(latency: EngineLatency) -> dict[str, Any]:
    cells: dict[str, Any] = {
        name: getattr(latency, name) for name in ("engine", "precision", "target", "compute_dtype", "rounds")
    }
    for name, interval in (("ms", latency.ms), ("ratio", latency.ratio)):
        if interval is not None:
            cells |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    for name in ("ms_with_step", "ratio_with_step"):
        interval = getattr(latency, name)
        cells[name] = "" if interval is None else interval.value
    return cells
