"""Intervals against exact probabilities, other implementations, and simulations with a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unetx_bench.errors import MeasurementError
from unetx_bench.noise import NOISES, error_rates, simulate_pair
from unetx_bench.statistics import (
    dependence_time,
    minimum_count,
    quantile_interval,
    ratio_interval,
    same_or_different,
)

latencies = st.lists(st.floats(0.01, 1e4), min_size=64, max_size=200)


@pytest.mark.parametrize(("q", "count"), [(0.9, 64), (0.99, 662), (0.1, 64), (0.5, 11)])
def test_minimum_counts_are_those_of_mlperf(q: float, count: int) -> None:
    assert minimum_count(q) == count
    beyond = min(q, 1 - q)
    assert stats.binom.cdf(1, count, beyond) <= 0.01 < stats.binom.cdf(1, count - 1, beyond)


def test_a_percentile_with_one_sample_too_few_is_refused() -> None:
    samples = np.arange(1.0, 663.0)
    assert quantile_interval(samples[:-1], 0.99, independent=True) is None
    assert quantile_interval(samples, 0.99, independent=True) is not None


@pytest.mark.parametrize("count", [11, 30, 100, 1001])
@pytest.mark.parametrize("q", [0.5, 0.9])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_order_statistics_enclose_the_quantile_with_the_stated_probability(
    count: int, q: float, confidence: float
) -> None:
    found = quantile_interval(np.arange(1.0, count + 1), q, confidence, independent=True)
    if found is None:
        assert count < minimum_count(q)
        return
    low, high = int(found.low), int(found.high)  # the samples are their own ranks
    below = stats.binom(count, q)
    covered = below.cdf(high - 1) - below.cdf(low - 1)
    assert covered >= confidence
    # No closer ranks do, on either side.
    assert below.cdf(low) > (1 - confidence) / 2
    assert below.sf(high - 2) > (1 - confidence) / 2


def test_the_interval_of_a_median_is_that_of_the_sign_test() -> None:
    samples = np.random.default_rng(3).normal(10, 1, 40)
    found = quantile_interval(samples, 0.5, 0.95, independent=True)
    assert found is not None
    for inside, value in ((True, found.low + 1e-9), (True, found.high - 1e-9), (False, found.low - 1e-9)):
        p_value = stats.binomtest(int((samples < value).sum()), 40).pvalue
        assert (p_value > 0.05) == inside


@given(latencies)
def test_the_value_lies_in_its_interval_and_the_interval_among_the_samples(samples: list[float]) -> None:
    found = quantile_interval(samples)
    if found is not None:
        assert min(samples) <= found.low <= found.value <= found.high <= max(samples)


@given(latencies)
def test_dependence_never_narrows_an_interval(samples: list[float]) -> None:
    alone, dependent = quantile_interval(samples, independent=True), quantile_interval(samples)
    assert alone is not None
    if dependent is not None:
        assert dependent.low <= alone.low
        assert dependent.high >= alone.high


def test_dependence_time_of_an_autoregressive_series_is_that_of_theory() -> None:
    generator = np.random.default_rng(0)
    values = np.zeros(40_000)
    for index, step in enumerate(generator.normal(size=len(values) - 1)):
        values[index + 1] = 0.8 * values[index] + step
    assert dependence_time(values) == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.2)
    assert dependence_time(generator.permutation(values)) < 1.3


def test_a_median_of_dependent_samples_is_covered_as_often_as_stated() -> None:
    generator = np.random.default_rng(1)
    covered = {True: 0, False: 0}
    for _ in range(200):
        values = np.zeros(500)
        for index, step in enumerate(generator.normal(size=499)):
            values[index + 1] = 0.9 * values[index] + step
        for independent in covered:
            found = quantile_interval(values, independent=independent)
            covered[independent] += found is not None and found.low <= 0 <= found.high
    # Taken as independent the interval is far too narrow; the estimated dependence nearly mends it.
    assert covered[True] < 150
    assert covered[False] >= 180


def test_a_ratio_is_exact_where_every_round_has_it() -> None:
    plain = np.random.default_rng(0).uniform(1, 100, 50)
    found = ratio_interval(1.25 * plain, plain)
    assert (found.value, found.low, found.high) == pytest.approx((1.25, 1.25, 1.25))


@given(latencies, st.floats(0.1, 10))
def test_a_ratio_turns_over_with_its_contenders(samples: list[float], factor: float) -> None:
    plain = np.asarray(samples)
    other = factor * plain[::-1]
    there, back = ratio_interval(other, plain), ratio_interval(plain, other)
    assert there.value == pytest.approx(1 / back.value)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low))


def test_a_ratio_that_is_not_paired_is_refused() -> None:
    with pytest.raises(MeasurementError, match="got 12 and 13 samples"):
        ratio_interval(np.ones(12), np.ones(13))


def test_too_few_rounds_give_no_ratio() -> None:
    with pytest.raises(MeasurementError, match="10 rounds give no ratio"):
        ratio_interval(np.ones(10), np.ones(10))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_sample_that_is_no_duration_is_refused(value: float) -> None:
    with pytest.raises(MeasurementError):
        ratio_interval(np.full(20, 1.0), np.full(20, value))


@pytest.fixture(scope="module")
def simulated() -> dict[str, dict[str, int]]:
    return error_rates(rounds=150, trials=200)


@pytest.mark.parametrize("noise", NOISES)
def test_decisions_are_right_as_often_as_stated_under_every_noise(
    noise: str, simulated: dict[str, dict[str, int]]
) -> None:
    # Fixed seeds: of 200 trials, no more are wrong than the stated confidence allows, with room for chance.
    counts = simulated[noise]
    assert counts["equal_called_same"] >= 195
    assert counts["slowdown_found"] >= 180
    assert counts["interval_covers"] >= 194


def test_pairing_by_round_takes_a_drift_of_the_machine_out_of_the_ratio() -> None:
    slower, plain = simulate_pair("drift", 150, 0.05, 4)
    shuffled = np.random.default_rng(0).permutation(plain)
    paired, unpaired = same_or_different(slower, plain), same_or_different(slower, shuffled)
    assert paired.verdict == "slower"
    assert paired.resolution < unpaired.resolution


def test_no_difference_says_what_it_would_have_found() -> None:
    generator = np.random.default_rng(2)
    plain, other = (np.exp(generator.normal(0, 0.2, 100)) for _ in range(2))
    found = same_or_different(other, plain)
    assert found.verdict == "no difference"
    assert same_or_different(other * (1 + found.resolution) / found.ratio.value * 1.001, plain).verdict == "slower"


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(MeasurementError, match="confidence"):
        quantile_interval(np.ones(20), 0.5, confidence)
