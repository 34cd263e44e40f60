"""Histograms that grow: exact counts, and the same result in whatever order the data comes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetx_exporters.quantize.histogram import Histogram, histogram_of, merge_histograms
from unetx_opt.errors import DataError

LIMIT = 32

values = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32, allow_nan=False, allow_infinity=False)
)
parts = st.lists(values, min_size=1, max_size=6)


def merged(arrays: list[np.ndarray]) -> Histogram:
    found = histogram_of(arrays[0], LIMIT)
    for array in arrays[1:]:
        found = merge_histograms(found, histogram_of(array, LIMIT))
    return found


def same(one: Histogram, other: Histogram) -> bool:
    return (one.exponent, one.first, one.low, one.high) == (
        other.exponent,
        other.first,
        other.low,
        other.high,
    ) and np.array_equal(one.counts, other.counts)


@given(parts, st.randoms(use_true_random=False))
def test_neither_the_order_of_the_parts_nor_their_cut_changes_the_histogram(
    arrays: list[np.ndarray], draw: random.Random
) -> None:
    shuffled = list(arrays)
    draw.shuffle(shuffled)
    whole = histogram_of(np.concatenate(arrays), LIMIT)
    assert same(merged(arrays), merged(shuffled))
    assert same(merged(arrays), whole)


@given(parts)
def test_merging_is_associative(arrays: list[np.ndarray]) -> None:
    middle = len(arrays) // 2
    left, right = arrays[: middle + 1], arrays[middle:]
    assert same(
        merge_histograms(merged(left), merged(right)), merge_histograms(merged(right[::-1]), merged(left[::-1]))
    )


@given(values)
def test_each_bin_counts_what_lies_between_its_edges(array: np.ndarray) -> None:
    found = histogram_of(array, LIMIT)
    assert len(found.counts) <= LIMIT
    for index, count in enumerate(found.counts):
        low = (found.first + index) * found.width
        assert count == sum(low <= float(value) < low + found.width for value in array)
    assert found.total == array.size
    assert (found.low, found.high) == (float(array.min()), float(array.max()))


@given(values)
def test_the_bins_are_as_fine_as_the_limit_allows(array: np.ndarray) -> None:
    found = histogram_of(array, LIMIT)
    half = found.width / 2.0
    bins = math.floor(float(array.max()) / half) - math.floor(float(array.min()) / half) + 1
    magnitude = float(np.abs(array).max())
    assert bins > LIMIT or found.width <= max(magnitude * 2.0**-22, 2.0**-139)


def test_memory_does_not_grow_with_the_data_or_its_range() -> None:
    generator = np.random.default_rng(0)
    found = histogram_of(generator.normal(size=100), 256)
    for scale in (1.0, 1e3, 1e-3, 1e6):
        found = merge_histograms(found, histogram_of(generator.normal(size=1000) * scale, 256))
    assert len(found.counts) <= 256
    assert found.total == 4100


def test_the_extremes_of_the_whole_are_kept_where_only_a_sample_is_counted() -> None:
    found = histogram_of(np.array([1.0, 2.0]), 16, (-5.0, 9.0))
    assert (found.low, found.high, found.total) == (-5.0, 9.0, 2)


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf]], ids=["empty", "nan", "infinite"])
def test_values_that_have_no_range_are_refused(bad: list[float]) -> None:
    with pytest.raises(DataError):
        histogram_of(np.array(bad))
