"""Paired differences against SciPy, against counting by hand, and by their symmetries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.errors import DataError
from unetx_opt.metrics.bootstrap import mean_interval
from unetx_opt.metrics.paired import PairedOptions, adjust_holm, paired_difference, sign_flip_test

QUICK = PairedOptions(resamples=1000, flips=999)

Scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40)


def named(values):
    return {f"{index:03}.png": float(value) for index, value in enumerate(values)}


def two_models(count, seed=0, shift=0.01):
    random = np.random.default_rng(seed)
    second = random.beta(20, 2, count)
    return second + random.normal(shift, 0.02, count), second


@pytest.mark.parametrize("count", [2, 5, 9, 12])
def test_the_exact_p_value_is_that_of_scipy(count):
    stats = pytest.importorskip("scipy.stats")
    first, second = two_models(count, seed=count)
    expected = stats.permutation_test(
        (first - second,), np.mean, permutation_type="samples", n_resamples=np.inf, axis=-1, vectorized=True
    )
    found = paired_difference(named(first), named(second))
    assert found.is_exact
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12)
    assert found.mean == pytest.approx(np.mean(first - second), abs=1e-15)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_exact_p_value_counts_every_assignment_of_signs(values):
    # Whole numbers tie often; their sums have no rounding that could hide a tie that is not counted.
    observed = abs(sum(values))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    p_value, is_exact = sign_flip_test(np.array(values, dtype=np.float64), PairedOptions())
    assert is_exact
    assert p_value == pytest.approx(sum(total >= observed for total in sums) / len(sums), abs=1e-12)


def test_ties_count_although_sums_round():
    # 0.1 + 0.2 and 0.3 differ in their last bit: the assignment that swaps them is as extreme as the observed one.
    differences = np.array([0.1, 0.2, -0.3, 0.4])
    p_value, _ = sign_flip_test(differences, PairedOptions())
    in_tenths, _ = sign_flip_test(np.array([1.0, 2.0, -3.0, 4.0]), PairedOptions())
    assert p_value == in_tenths


@pytest.mark.parametrize("shift", [0.0, 0.004, 0.008])
def test_drawn_signs_come_close_to_the_exact_p_value_and_to_scipys(shift):
    stats = pytest.importorskip("scipy.stats")
    first, second = two_models(18, seed=1, shift=shift)
    differences = first - second
    exact, _ = sign_flip_test(differences, PairedOptions())
    drawn, is_exact = sign_flip_test(differences, PairedOptions(exact_up_to=0))
    scipys = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, axis=-1, vectorized=True, rng=3
    ).pvalue
    error = math.sqrt(exact * (1 - exact) / 99_999)
    assert not is_exact
    assert drawn == pytest.approx(exact, abs=5 * error + 2e-5)
    assert scipys == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 20_000) + 2e-4)


def test_a_clear_difference_has_the_smallest_p_value_that_can_be_drawn_and_never_zero():
    differences = np.full(200, 0.25) + np.arange(200) * 1e-4
    assert sign_flip_test(differences, QUICK) == (1 / 1000, False)


def test_under_no_difference_small_p_values_are_as_rare_as_they_claim():
    random = np.random.default_rng(5)
    p_values = [sign_flip_test(random.standard_t(3, 14), PairedOptions())[0] for _ in range(400)]
    rejected = np.mean(np.array(p_values) <= 0.05)
    assert rejected <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)
    assert rejected >= 0.01


def test_the_interval_is_the_percentile_bootstrap_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    first, second = two_models(60, seed=2)
    expected = stats.bootstrap(
        (first - second,), np.mean, method="percentile", n_resamples=10_000, confidence_level=0.95, rng=8
    ).confidence_interval
    found = paired_difference(named(first), named(second))
    # Two sets of random resamples: their percentiles differ by a small part of the width.
    slack = 0.03 * (expected.high - expected.low)
    assert found.lower == pytest.approx(expected.low, abs=slack)
    assert found.upper == pytest.approx(expected.high, abs=slack)
    # Not the interval of two independent samples, which would be many times wider here.
    assert found.upper - found.lower < 0.5 * (mean_interval(second).upper - mean_interval(second).lower)


@given(Scores)
def test_swapping_the_sides_negates_the_difference_exactly(pairs):
    first, second = (named(side) for side in zip(*pairs, strict=True))
    there, back = paired_difference(first, second, QUICK), paired_difference(second, first, QUICK)
    assert (back.mean, back.lower, back.upper) == (-there.mean, -there.upper, -there.lower)
    assert back.p_value == there.p_value
    assert 0.0 < there.p_value <= 1.0
    assert there.count == len(pairs)


@given(Scores, st.randoms(use_true_random=False))
def test_the_order_of_the_images_changes_nothing(pairs, random):
    first, second = (named(side) for side in zip(*pairs, strict=True))
    names = list(first)
    random.shuffle(names)
    assert paired_difference({n: first[n] for n in names}, second, QUICK) == paired_difference(first, second, QUICK)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_identical_sets_differ_by_nothing_with_p_one(values):
    found = paired_difference(named(values), named(values), QUICK)
    assert (found.mean, found.lower, found.upper, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_images_that_agree_leave_the_test_exact():
    differences = np.array([0.0] * 500 + [0.1, 0.2, 0.3])
    assert sign_flip_test(differences, PairedOptions()) == (2 / 8, True)


def test_thousands_of_images_are_drawn_in_blocks_and_fewer_flips():
    random = np.random.default_rng(0)
    differences = random.normal(0.0, 1.0, 25_000)
    p_value, is_exact = sign_flip_test(differences, PairedOptions(flips=99_999))
    assert not is_exact
    stats = pytest.importorskip("scipy.stats")
    assert p_value == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=0.03)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1.0, "b": 1.0}, {"a": 1.0}, "b missing from the second set"),
        ({"a": 1.0}, {"a": 1.0, "c": 1.0, "b": 1.0}, "b, c missing from the first set"),
        (named(range(9)), {}, r"000.png, 001.png, 002.png and 6 more missing from the second"),
        ({"a": 1.0, "b": math.inf}, {"a": 1.0, "b": 2.0}, "b have no finite difference"),
        ({"a": 1.0, "b": math.inf}, {"a": 1.0, "b": math.inf}, "b have no finite difference"),
        ({"a": 1.0, "b": 1.0}, {"a": math.nan, "b": 2.0}, "a have no finite difference"),
        ({"a": 1.0}, {"a": 1.0}, "got 1 images, expected at least 2"),
        ({}, {}, "got 0 images"),
    ],
)
def test_images_without_a_partner_or_a_figure_are_named(first, second, message):
    with pytest.raises(DataError, match=message):
        paired_difference(first, second)


@pytest.mark.parametrize(
    "options", [{"confidence": 1.0}, {"resamples": 10}, {"flips": 10}, {"exact_up_to": 40}, {"confidence": 0.2}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(DataError, match="expected"):
        PairedOptions(**options)


def test_holm_is_its_textbook_example():
    # Holm 1979: sorted 0.01, 0.02, 0.03, 0.04 are multiplied by 4, 3, 2, 1 and never fall.
    assert adjust_holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02}) == pytest.approx(
        {"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06}
    )
    assert adjust_holm({"only": 0.03}) == {"only": 0.03}
    assert adjust_holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(values):
    """Step down through the sorted p-values and stop at the first that is too large."""
    adjusted = adjust_holm(dict(enumerate(values)))
    assert list(adjusted) == list(range(len(values)))
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if (len(values) - place) * values[index] > level:
                break
            rejected.add(index)
        assert rejected == {index for index, value in adjusted.items() if value <= level}


def test_holm_never_falls_below_the_given_value_and_refuses_what_is_no_probability():
    assert adjust_holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(DataError, match="p-value of b"):
            adjust_holm({"a": 0.5, "b": wrong})
