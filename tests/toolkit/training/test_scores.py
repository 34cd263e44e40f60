"""Scores of a model on a data set, on the grid of the source images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.scores import ImageScore, score_model, summarize_scores

torch = pytest.importorskip("torch", reason="scoring needs torch: pip install 'unetx-opt[train]'")


class _Darkness(torch.nn.Module):
    """Says foreground where a pixel is dark; the padding (0) does not matter, because it is cut off."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 0.35 - image


def test_scores_are_taken_on_the_source_grid(ellipse_folder: Path) -> None:
    dataset = FolderDataset.open(ellipse_folder, "test")
    scores = score_model(_Darkness(), dataset, 64)  # type: ignore[arg-type]
    assert [score.name for score in scores] == list(dataset.names)
    for score in scores:
        assert 0.9 < score.dice <= 1.0
        assert score.iou == pytest.approx(score.dice / (2 - score.dice))
        assert 0.9 < score.accuracy <= 1.0


def test_a_summary_gives_mean_spread_and_minimum() -> None:
    scores = [ImageScore("a", 0.9, 0.8, 0.95), ImageScore("b", 0.7, 0.6, 0.85)]
    summary = summarize_scores(scores)
    assert summary["n"] == 2
    assert summary["dice"]["mean"] == pytest.approx(0.8)
    assert summary["dice"]["std"] == pytest.approx(np.std([0.9, 0.7], ddof=1))
    assert summary["dice"]["min"] == 0.7
    assert summarize_scores(scores[:1])["iou"]["std"] is None
