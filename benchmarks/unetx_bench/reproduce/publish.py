"""The files of a reproduction: each appears whole; table.json comes last and says that the others are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from unetx_bench.reproduce.engines import discard_bundles
from unetx_bench.reproduce.latency import TimedRun
from unetx_bench.reproduce.page import render_page
from unetx_bench.reproduce.record import Reproduction
from unetx_bench.reproduce.spreadsheet import render_csv
from unetx_bench.reproduce.stages import WORK_NAME, Workplace
from unetx_bench.reproduce.tables import render_markdown
from unetx_opt.files import write_file

__all__ = ["TABLE_NAME", "discard_work", "publish"]

TABLE_NAME: Final = "table.json"


def publish(output: Path, result: Reproduction, run: TimedRun) -> None:
    """Write the page, the tables and the samples.

    Parameters
    ----------
    output : pathlib.Path
        Folder; made where it is missing.
    result : Reproduction
        What to show.
    run : TimedRun
        Its samples, kept as they are in milliseconds: variant -> engine -> one number a round.
    """
    samples = {
        variant: {engine: row.tolist() for engine, row in rows.items()} for variant, rows in run.samples_ms.items()
    }
    timing = {"unit": "ms", "clock": result.settings.clock, "stopped": run.stopped, "samples": samples}
    texts = {
        "timing.json": json.dumps(timing, allow_nan=False) + "\n",
        "page.html": render_page(result),
        "table.csv": render_csv(result),
        "table.md": render_markdown(result),
        TABLE_NAME: result.model_dump_json(indent=1) + "\n",
    }
    for name, text in texts.items():
        write_file(output / name, text.encode("utf-8"))


def discard_work(output: Path) -> None:
    """Remove what an earlier run measured, the table first: it says that the rest is there.

    Trained weights stay, and so does every file that no reproduction wrote.

    Parameters
    ----------
    output : pathlib.Path
        Its folder.
    """
    (output / TABLE_NAME).unlink(missing_ok=True)
    Workplace(output / WORK_NAME).discard()
    discard_bundles(output)
