"""The resampling filter against its definition, tap by tap."""

from __future__ import annotations

import numpy as np
import pytest

from unetx_opt.imaging.resize import resize_plane


def filter_rows(plane: np.ndarray, width: int) -> np.ndarray:
    source = plane.shape[1]
    scale = source / width
    reach = max(1.0, scale)
    narrowing = 1 / reach
    result = np.empty((plane.shape[0], width), np.float32)
    for i in range(width):
        center = (i + 0.5) * scale
        taps = range(max(0, int(center - reach + 0.5)), min(source, int(center + reach + 0.5)))
        weights = [max(0.0, 1 - abs((j - center + 0.5) * narrowing)) for j in taps]
        total = np.zeros(plane.shape[0])
        for j, weight in zip(taps, weights, strict=True):
            total += plane[:, j].astype(np.float64) * (weight / sum(weights))
        result[:, i] = total
    return result


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((65, 63), (64, 64)),  # for these two less work is done where columns come first
        ((200, 19), (64, 6)),
        ((63, 65), (64, 64)),
        ((64, 62), (65, 63)),
        ((40, 70), (90, 70)),
        ((40, 70), (40, 33)),
    ],
    ids=str,
)
def test_rows_are_resampled_before_columns_in_double_precision(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    plane = np.random.default_rng(1).random(source, dtype=np.float32)
    expected = plane if target[1] == source[1] else filter_rows(plane, target[1])
    expected = expected if target[0] == source[0] else filter_rows(expected.T, target[0]).T
    assert np.array_equal(resize_plane(plane, *target), expected)
