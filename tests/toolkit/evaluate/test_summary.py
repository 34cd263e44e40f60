"""Figures of images and their summary against scikit-learn, MONAI and hand-made cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unetx_opt.errors import DataError
from unetx_opt.metrics.summary import METRICS, balanced_accuracy, score_mask, summarize

LUNGS = ("background", "lungs")
ORGANS = ("background", "left lung", "right lung", "heart")
Labels = arrays(np.uint8, (6, 7), elements=st.integers(0, 3))


@given(Labels, Labels)
def test_balanced_accuracy_is_the_mean_recall_of_the_true_classes(found: Any, truth: Any) -> None:
    recalls = [np.mean(found[truth == label] == label) for label in np.unique(truth)]
    assert balanced_accuracy(found, truth) == pytest.approx(np.mean(recalls), abs=1e-12)


@given(Labels, Labels)
def test_overlaps_equal_scikit_learn(found: Any, truth: Any) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    score = score_mask("a.png", found, truth, ORGANS)
    flat = truth.ravel(), found.ravel()
    options = {"labels": range(4), "average": None, "zero_division": 1.0}
    assert score.accuracy == pytest.approx(metrics.accuracy_score(*flat), abs=1e-12)
    assert score.miou == pytest.approx(metrics.jaccard_score(*flat, **options).mean(), abs=1e-12)
    assert score.dice == pytest.approx(metrics.f1_score(*flat, **options)[1:].mean(), abs=1e-12)


def test_a_class_in_one_mask_alone_has_no_distance_and_is_counted_out_of_the_mean() -> None:
    truth = np.zeros((8, 8), dtype=np.uint8)
    truth[2:5, 2:5] = 1
    shifted = np.roll(truth, 1, axis=1)
    scores = [
        score_mask(name, found, truth, LUNGS) for name, found in (("a", shifted), ("b", truth * 0), ("c", truth))
    ]
    assert math.isinf(scores[1].hd95_px)
    assert scores[1].dice == 0.0
    assert scores[1].to_json()["hd95_px"] is None
    row = summarize(scores)["metrics"]["hd95_px"]
    assert row["n"] == 2
    assert row["mean"] == pytest.approx(0.5)
    assert summarize(scores)["metrics"]["dice"]["n"] == 3


def test_a_class_in_neither_mask_agrees() -> None:
    empty = np.zeros((4, 4), dtype=np.uint8)
    score = score_mask("a", empty, empty, ORGANS)
    assert (score.miou, score.dice, score.hd95_px, score.assd_px) == (1.0, 1.0, 0.0, 0.0)


def test_summaries_are_the_mean_spread_and_interval_over_images() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (30, 8, 8)).astype(np.uint8)
    found = np.where(random.random(truth.shape) < 0.2, 1 - truth, truth).astype(np.uint8)
    scores = [score_mask(str(i), found[i], truth[i], LUNGS) for i in range(30)]
    for metric, row in summarize(scores)["metrics"].items():
        values = np.array([getattr(score, metric) for score in scores])
        assert row["mean"] == pytest.approx(values.mean(), abs=1e-12)
        assert row["std"] == pytest.approx(values.std(ddof=1), abs=1e-12)
        low, high = row["ci95"]
        assert low < row["mean"] < high
        # The normal approximation has about the same width: 30 values without outliers.
        assert high - low == pytest.approx(2 * 1.96 * row["std"] / math.sqrt(30), rel=0.15)


def test_one_image_has_no_spread_and_none_is_an_error() -> None:
    mask = np.eye(5, dtype=np.uint8)
    summary = summarize([score_mask("a", mask, mask, LUNGS)])
    assert list(summary["metrics"]) == [key for key in METRICS if not key.endswith("_mm")]
    assert summary["metrics"]["dice"] == {"mean": 1.0, "std": None, "ci95": None, "n": 1}
    with pytest.raises(DataError, match="no image"):
        summarize([])


def test_labels_without_a_name_and_other_sizes_are_refused() -> None:
    mask = np.full((4, 4), 2, dtype=np.uint8)
    with pytest.raises(DataError, match="labels"):
        score_mask("a", mask, mask, LUNGS)
    with pytest.raises(DataError, match="shapes"):
        score_mask("a", mask, mask[:3], ORGANS)
