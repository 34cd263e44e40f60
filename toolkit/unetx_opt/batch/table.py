"""The results table of a batch: one line for each input, for a spreadsheet or a script."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from unetx_opt.batch.outputs import FILES, OUTPUTS
from unetx_opt.files import staged_file

__all__ = ["TABLE_NAME", "write_table"]

TABLE_NAME: Final = "results.csv"
_TIMES: Final = ("read", "prepare", "infer", "refine", "restore", "total", "write")


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], formats: Sequence[str], labels: Sequence[str]) -> None:
    """Write the table, whole or not at all.

    Parameters
    ----------
    path : pathlib.Path
        Replaced in one step if it exists.
    rows : iterable of mapping
        As `unetx_opt.batch.worker.SegmentWorker.segment` gives them; read one by one.
    formats : sequence of str
        Keys of `OUTPUTS`, of which there are files.
    labels : sequence of str
        Names of the segments, without the background.
    """
    keys = [key for name in formats for key in OUTPUTS[name]]
    columns = [
        *("input", "status", "reason", "forced", "height", "width", "row_spacing_mm", "column_spacing_mm"),
        *(f"{label}_{unit}" for label in labels for unit in ("px", "mm2")),
        *(f"{time}_ms" for time in _TIMES),
        *(column for key in keys for column in (key, f"{key}_sha256")),
        "input_sha256",
    ]
    with (
        staged_file(path) as staging,
        # A name that is no text is shown with its bytes escaped; the journal has it exactly.
        staging.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(_cells(row))


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = {key: row.get(key) for key in ("input", "status", "reason", "height", "width", "input_sha256")}
    cells["forced"] = "; ".join(row.get("forced") or ())
    cells["row_spacing_mm"], cells["column_spacing_mm"] = row.get("spacing_mm") or (None, None)
    for unit in ("px", "mm2"):
        cells |= {f"{label}_{unit}": area for label, area in (row.get(f"areas_{unit}") or {}).items()}
    cells |= {f"{name}_ms": f"{value:.2f}" for name, value in (row.get("timings_ms") or {}).items()}
    for key in FILES:
        file = (row.get("files") or {}).get(key, {})
        cells |= {key: _relative(str(file.get("name", ""))), f"{key}_sha256": file.get("sha256")}
    return cells


def _relative(name: str) -> str:
    """Keep spreadsheets from computing a name; it stays the same path."""
    return f"./{name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name
