"""From stages to the record: what may stand side by side, and what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_bench.environment import capture_environment
from unetx_bench.reproduce.accuracy import FIGURES, Scores
from unetx_bench.reproduce.assembly import Measured, assemble
from unetx_bench.reproduce.latency import TimedRun
from unetx_bench.reproduce.page import render_page
from unetx_bench.reproduce.plan import ReproduceOptions, make_plan
from unetx_bench.reproduce.record import Reproduction
from unetx_bench.reproduce.spreadsheet import render_csv
from unetx_bench.reproduce.tables import render_markdown
from unetx_opt.optional import find
from unetx_opt.runtime.host import probe_host

pytestmark = [
    pytest.mark.skipif(not find(name), reason=f"needs {name}") for name in ("onnxruntime", "psutil", "jinja2")
]


def _scores(mean: float) -> Scores:
    noise = np.random.default_rng(int(1e6 * mean)).normal(0, 0.0002, 30)
    row = {f"{index}.png": float(mean + value) for index, value in enumerate(noise)}
    return dict.fromkeys(FIGURES, row)


def _assemble(made: Any, scores: dict[str, dict[str, Scores]]) -> Reproduction:
    plan = make_plan(ReproduceOptions(Path("out"), variants=tuple(scores)), probe_host())
    measured = Measured(
        plan=plan,
        size_px=32,
        data=made.data(images=30),
        environment=capture_environment(),
        weights={},
        missing={},
        graphs={name: made.graph() for name in scores},
        scores=scores,
        steps=dict.fromkeys(scores),
        left_out={name: {} for name in scores},
        run=TimedRun({name: {} for name in scores}, {}, {}, (), "time"),
        seeds={},
    )
    return assemble(measured, 1.0)


def test_only_scores_of_one_precision_are_compared_and_the_others_say_why_not(made: Any) -> None:
    result = _assemble(
        made,
        {
            "unet": {"fp32": _scores(0.98), "fp16": _scores(0.97)},
            "focal": {"fp16": _scores(0.99)},
            "dilated": {"fp16": _scores(0.96), "fp32": _scores(0.981)},
        },
    )
    rows = {row.name: row for row in result.variants}
    assert rows["focal"].differences == ()
    assert rows["focal"].scores == {}
    assert rows["focal"].scores_by_precision["fp16"]["accuracy"].mean == pytest.approx(0.99, abs=2e-4)
    assert rows["focal"].left_out["accuracy"] == "scored at fp16 and unet at fp32: accuracies are not compared"
    found = next(row for row in rows["dilated"].differences if row.figure == "accuracy")
    assert found.mean == pytest.approx(0.001, abs=2e-4)
    assert rows["dilated"].scores["accuracy"].mean == pytest.approx(0.981, abs=2e-4)
    first = next(claim for claim in result.claims if claim.id == "C1")
    assert first.verdict.value == "not decidable"
    assert "focal was scored at fp16 and unet at fp32" in first.reason


def test_a_row_without_a_score_at_the_common_precision_is_rendered(made: Any) -> None:
    result = _assemble(made, {"unet": {"fp16": _scores(0.98)}, "focal": {"fp32": _scores(0.99)}})
    page = render_page(result)
    assert "of the fp16 bundle" in page
    assert "Accuracy at each precision" in page
    for text in (page, render_markdown(result), render_csv(result)):
        assert "0.98" in text
    assert "accuracies are not compared" in page
