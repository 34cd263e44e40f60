"""What a whole run of `unetx-opt segment` makes of the corpus: it must end by itself, with a row for every file."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import unetx_opt
from unetx_bench.bad_input.corpus import make_file

__all__ = ["segment_corpus", "write_corpus"]

_COMMAND = (sys.executable, "-m", "unetx_opt.cli.main", "segment")


def write_corpus(places: Iterable[int], seed: int, folder: Path) -> None:
    """Write files of the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in places:
        file = make_file(place, seed)
        (folder / file.name).write_bytes(file.data)


def segment_corpus(bundle: Path, folder: Path, formats: str, workers: int) -> dict[str, Any]:
    """Segment what `write_corpus` wrote into ``folder / "files"``, with results in ``folder / "results"``.

    Parameters
    ----------
    bundle : pathlib.Path
        Any bundle: what is in question is not its masks.
    folder : pathlib.Path
        Nothing in it but the results may change.
    formats : str
        As for ``--format``.
    workers : int
        Processes.

    Returns
    -------
    dict
        Exit code, counts by status, seconds, and faults: a missing row, a file elsewhere, a worker that broke.
    """
    inputs, results = folder / "files", folder / "results"
    before = _paths(folder, results)
    started = time.perf_counter()
    paths = os.pathsep.join(str(Path(root).parent) for root in unetx_opt.__path__)
    distribution = ("--workers", str(workers))
    done = subprocess.run(
        [*_COMMAND, bundle.absolute(), "files", "-o", "results", "--force", "--format", formats, *distribution],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    rows = _rows(results / "results.csv")
    return {
        "exit_code": done.returncode,
        "statuses": dict(Counter(row["status"] for row in rows)),
        "seconds": round(seconds, 1),
        "faults": _faults(rows, {path.name for path in inputs.iterdir()}, _paths(folder, results) - before, done),
    }


def _faults(
    rows: list[dict[str, str]], names: set[str], elsewhere: set[str], done: subprocess.CompletedProcess[str]
) -> list[str]:
    faults = [f"{path} was written" for path in sorted(elsewhere)]
    if {Path(row["input"]).name for row in rows} != names or len(rows) != len(names):
        faults.append(f"{len(rows)} rows for {len(names)} files")
    for row in rows:
        if (row["status"] == "failed") != bool(row["reason"]):
            faults.append(f"{row['input']} is {row['status']} and its reason is {row['reason']!r}")
        if "broke the process that segmented" in row["reason"]:
            faults.append(f"{row['input']} broke a worker")
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        faults.append(f"exit code {done.returncode}: {done.stderr[-500:]}")
    return faults


def _rows(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _paths(folder: Path, results: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path != results and results not in path.parents}
