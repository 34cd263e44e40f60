"""Writes golden/report.json anew: the hand-made report, as a benchmark would write it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from unetx_bench.report import serialize_report

HERE = Path(__file__).parent

if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("hand_made", HERE / "hand_made.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (HERE / "golden").mkdir(exist_ok=True)
    (HERE / "golden" / "report.json").write_bytes(serialize_report(module.make_report()))
