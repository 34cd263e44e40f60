"""Ranges against brute force: each method does what its name says, on any histogram."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetx_exporters.quantize.grids import SMALLEST_SCALE, Grid
from unetx_exporters.quantize.histogram import histogram_of
from unetx_exporters.quantize.ranges import METHODS, distinct_ranges, range_by, squared_error
from unetx_opt.errors import ExportError

UNSIGNED = Grid(np.dtype(np.uint8), symmetric=False)
SIGNED = Grid(np.dtype(np.int8), symmetric=True)
grids = st.sampled_from([UNSIGNED, SIGNED])
ends = st.floats(-1e4, 1e4, width=32)
samples = hnp.arrays(np.float32, st.integers(20, 300), elements=st.floats(-50, 50, width=32))


def rounded(array: np.ndarray, low: float, high: float, grid: Grid) -> np.ndarray:
    """Quantize and back as the standard says, without the code under test but for scale and zero point."""
    quantizer = grid.fit(low, high)
    codes = np.clip(np.round(array.astype(np.float64) / quantizer.scale) + quantizer.zero_point, *code_limits(grid))
    return (codes - quantizer.zero_point) * quantizer.scale


def code_limits(grid: Grid) -> tuple[int, int]:
    return (-127, 127) if grid.symmetric else (0, 255)


@given(ends, ends, grids)
def test_a_grid_holds_zero_exactly_and_its_range_to_half_a_step(one: float, other: float, grid: Grid) -> None:
    low, high = sorted((one, other))
    quantizer = grid.fit(low, high)
    assert quantizer.dequantize(quantizer.quantize(np.zeros(1, np.float32)))[0] == 0.0
    lowest, highest = quantizer.range
    slack = 0.51 * quantizer.scale
    assert lowest <= min(low, 0.0) + slack
    assert highest >= max(high, 0.0) - slack
    inside = np.linspace(max(low, lowest), min(high, highest), 7).astype(np.float32)
    back = quantizer.dequantize(quantizer.quantize(inside))
    np.testing.assert_allclose(back, inside, atol=slack * 1.01)
    assert quantizer.scale >= SMALLEST_SCALE
    assert not grid.symmetric or quantizer.zero_point == 0


def test_a_rectified_tensor_has_the_zero_point_0_so_that_the_rectifier_can_be_fused() -> None:
    assert UNSIGNED.fit(0.0, 6.0).zero_point == 0
    assert UNSIGNED.fit(0.3, 6.0).zero_point == 0


@pytest.mark.parametrize("limits", [(math.nan, 1.0), (0.0, math.inf), (1.0, 0.0)])
def test_a_range_that_is_none_is_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ExportError, match="cannot be held in 8 bits"):
        UNSIGNED.fit(*limits)


@given(samples, grids)
def test_min_max_is_the_range_of_the_data(array: np.ndarray, grid: Grid) -> None:
    assert range_by("min-max", histogram_of(array), grid) == (float(array.min()), float(array.max()))


@given(samples, grids)
def test_no_method_leaves_the_data(array: np.ndarray, grid: Grid) -> None:
    for method in METHODS:
        low, high = range_by(method, histogram_of(array), grid)
        assert min(0.0, float(array.min())) <= low <= high <= max(0.0, float(array.max()))


def test_the_percentile_is_that_of_the_data_to_a_bin() -> None:
    array = np.random.default_rng(1).exponential(size=200_000).astype(np.float32)
    histogram = histogram_of(array)
    low, high = range_by("percentile", histogram, UNSIGNED)
    assert low == float(array.min())
    assert high == pytest.approx(np.percentile(array, 99.99), abs=1.5 * histogram.width)
    both = histogram_of(array * np.where(np.arange(len(array)) % 2, 1.0, -1.0))
    low, high = range_by("percentile", both, SIGNED)
    assert low == pytest.approx(-np.percentile(array, 99.99), rel=0.1)
    assert high == pytest.approx(np.percentile(array, 99.99), rel=0.1)


@given(samples, grids)
def test_the_squared_error_is_that_of_rounding_the_data(array: np.ndarray, grid: Grid) -> None:
    histogram = histogram_of(array)
    for limits in ((float(array.min()), float(array.max())), (0.5 * float(array.min()), 0.5 * float(array.max()))):
        if limits[0] > limits[1]:
            continue
        power = float(np.sum(array.astype(np.float64) ** 2))
        if power == 0.0:
            continue
        direct = float(np.sum((rounded(array, *limits, grid) - array) ** 2)) / power
        step = grid.fit(*limits).scale
        # A value moves by half a bin at most, and its error by a step at most.
        slack = len(array) * (histogram.width + 1e-6) * (2.0 * step + 2.0 * histogram.width + 1e-6) / power
        slack += 2.0 * math.sqrt(direct * len(array) / power) * (histogram.width + 1e-6)
        assert squared_error(histogram, grid, limits) == pytest.approx(direct, abs=slack + 1e-9)


@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED], ids=["unsigned", "signed"])
@pytest.mark.parametrize("spread", ["normal", "heavy tails", "rectified"])
def test_the_least_squares_range_is_the_best_of_a_fine_search_on_the_data(grid: Grid, spread: str) -> None:
    generator = np.random.default_rng(7)
    array = {
        "normal": generator.normal(size=40_000),
        "heavy tails": generator.standard_t(3, size=40_000),
        "rectified": np.maximum(generator.normal(size=40_000) * generator.exponential(size=40_000), 0.0),
    }[spread].astype(np.float32)
    found = range_by("mse", histogram_of(array), grid)

    def error(limits: tuple[float, float]) -> float:
        return float(np.mean((rounded(array, *limits, grid) - array) ** 2))

    low, high = float(array.min()), float(array.max())
    searched = min(
        error((max(low, -reach), min(high, reach))) for reach in np.linspace(0.02, 1.0, 200) * max(-low, high)
    )
    assert error(found) <= 1.1 * searched
    assert error(found) <= error((low, high))


def direct_divergence(array: np.ndarray, high: float, bins: int) -> float:
    """The definition of the entropy method by loops, for a rectified tensor, 255 steps and no zeros."""
    width = float(array.max()) / bins
    counts = [0.0] * bins
    for value in array:
        counts[min(bins - 1, int(value / width))] += 1.0
    kept = max(1, min(bins, int(high / width)))
    reference = counts[:kept]
    reference[-1] += sum(counts[kept:])
    steps: dict[int, list[int]] = {}
    for index in range(kept):
        steps.setdefault(round((index + 0.5) * width / (high / 255.0)), []).append(index)
    quantized = [0.0] * kept
    for members in steps.values():
        filled = [index for index in members if counts[index] > 0.0]
        for index in filled:
            quantized[index] = sum(counts[i] for i in members) / len(filled)
    p, q = np.array(reference) / sum(reference), np.array(quantized) / sum(quantized)
    return float(sum(a * math.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0.0))


def test_the_entropy_range_diverges_about_as_little_as_the_best_by_its_definition() -> None:
    generator = np.random.default_rng(3)
    array = np.abs(generator.standard_t(2.5, size=20_000)).astype(np.float32)
    array = array[array > 0.02 * array.max() / 2048]
    _, high = range_by("entropy", histogram_of(array), UNSIGNED)
    reaches = np.geomspace(0.05, 1.0, 30) * float(array.max())
    best = min(direct_divergence(array, reach, 2048) for reach in reaches)
    assert direct_divergence(array, high, 2048) <= 1.5 * best + 1e-3
    assert high < float(array.max())


def test_ranges_that_come_to_the_same_are_one_candidate() -> None:
    even = histogram_of(np.linspace(0.0, 1.0, 5000))
    assert list(distinct_ranges(even, UNSIGNED)) == ["min-max"]


def test_a_tensor_of_one_value_has_a_range() -> None:
    for value in (0.0, 3.0, -2.0):
        for method in METHODS:
            low, high = range_by(method, histogram_of(np.full(10, value)), UNSIGNED)
            quantizer = UNSIGNED.fit(low, high)
            back = quantizer.dequantize(quantizer.quantize(np.array([value], np.float32)))
            assert abs(float(back[0]) - value) <= quantizer.scale
