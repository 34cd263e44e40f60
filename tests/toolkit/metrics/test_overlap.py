"""Overlap figures against scikit-learn, MONAI and their own algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from unetx_opt.errors import DataError
from unetx_opt.metrics.overlap import class_mask, dice, iou, mean_iou, pixel_accuracy


def label_pairs(class_count: int = 2) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
    return shapes.flatmap(
        lambda shape: st.tuples(
            *[hnp.arrays(np.uint8, shape, elements=st.integers(0, class_count - 1)) for _ in range(2)]
        )
    )


@given(label_pairs())
def test_dice_and_iou_are_those_of_scikit_learn(pair):
    first, second = pair
    options = {"zero_division": 1.0}
    assert dice(first, second) == pytest.approx(f1_score(first.ravel(), second.ravel(), **options))
    assert iou(first, second) == pytest.approx(jaccard_score(first.ravel(), second.ravel(), **options))
    assert pixel_accuracy(first, second) == pytest.approx(accuracy_score(first.ravel(), second.ravel()))


@given(label_pairs(class_count=4))
def test_each_class_is_compared_against_all_others(pair):
    first, second = pair
    for index in range(4):
        one, other = (first == index).ravel(), (second == index).ravel()
        assert dice(first, second, index) == pytest.approx(f1_score(one, other, zero_division=1.0))
        assert pixel_accuracy(first, second, index) == pytest.approx(accuracy_score(one, other))
    expected = jaccard_score(first.ravel(), second.ravel(), labels=range(4), average=None, zero_division=1.0).mean()
    assert mean_iou(first, second, 4) == pytest.approx(expected)


@given(label_pairs(), st.integers(0, 3))
def test_overlap_is_symmetric_bounded_and_blind_to_rotation(pair, turns):
    first, second = pair
    for figure in (dice, iou, pixel_accuracy):
        value = figure(first, second)
        assert 0.0 <= value <= 1.0
        assert figure(second, first) == value
        assert figure(np.rot90(first, turns), np.rot90(second, turns)) == value
        assert figure(first, first) == 1.0
    assert iou(first, second) == pytest.approx(dice(first, second) / (2.0 - dice(first, second)))


def test_monai_gives_the_same_dice_and_iou():
    metrics = pytest.importorskip("monai.metrics", reason="the comparison needs monai")
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(3)
    first, second = (generator.random((40, 50)) < 0.3 for _ in range(2))
    one, other = (torch.from_numpy(mask.astype(np.uint8))[None, None] for mask in (first, second))
    assert dice(first, second) == pytest.approx(float(metrics.compute_dice(one, other)[0, 0]))
    assert iou(first, second) == pytest.approx(float(metrics.compute_iou(one, other)[0, 0]))


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty, blob = np.zeros((4, 4), np.uint8), np.eye(4, dtype=np.uint8)
    assert (dice(empty, empty), iou(empty, empty)) == (1.0, 1.0)
    assert (dice(empty, blob), iou(blob, empty)) == (0.0, 0.0)


def test_what_is_not_zero_is_foreground_whatever_its_value():
    mask = np.eye(5, dtype=np.uint8)
    assert dice(mask, mask * 255) == dice(mask.astype(bool), mask.astype(np.int64)) == 1.0


def test_probabilities_are_refused():
    with pytest.raises(DataError, match="float32, expected integer or bool labels: apply a threshold"):
        dice(np.ones((2, 2), np.float32), np.ones((2, 2), np.uint8))
    with pytest.raises(DataError, match="float64"):
        class_mask(np.ones(3))


def test_different_grids_are_refused():
    with pytest.raises(DataError, match=r"\(2, 2\) and \(2, 3\), expected the same grid"):
        iou(np.ones((2, 2), bool), np.ones((2, 3), bool))


def test_no_pixels_and_unknown_labels_are_refused():
    with pytest.raises(DataError, match="at least one pixel"):
        pixel_accuracy(np.ones((0, 2), bool), np.ones((0, 2), bool))
    with pytest.raises(DataError, match="labels 0 to 7, expected 0 to 1"):
        mean_iou(np.array([[0, 7]]), np.array([[0, 1]]), 2)
