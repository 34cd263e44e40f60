"""Bootstrap bounds against SciPy, their coverage, and the properties that a gate relies on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unetx_opt.errors import DataError
from unetx_opt.metrics.bootstrap import mean_interval, paired_lower_bound

SAMPLES = st.lists(st.floats(-1.0, 1.0, width=32), min_size=2, max_size=40)


def test_bounds_agree_with_scipy_within_their_own_noise():
    values = np.random.default_rng(5).normal(0.2, 1.0, 50)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    one_sided = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", alternative="greater", rng=1
    )
    ours = mean_interval(values, resamples=20_000)
    assert ours.lower == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.upper == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    lower = paired_lower_bound(values, resamples=20_000)
    assert lower == pytest.approx(one_sided.confidence_interval.low, abs=0.01)
    assert ours.lower < lower < ours.mean


def test_the_lower_bound_holds_in_about_95_of_100_samples():
    generator = np.random.default_rng(11)
    held = [paired_lower_bound(generator.normal(size=40), resamples=1000, seed=trial) <= 0.0 for trial in range(400)]
    assert 0.91 <= np.mean(held) <= 0.98


@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(values, random):
    shuffled = random.sample(values, len(values))
    assert paired_lower_bound(shuffled, resamples=1000) == paired_lower_bound(values, resamples=1000)


@given(SAMPLES, st.data())
def test_making_one_image_worse_never_raises_the_bound(values, data):
    worse = list(values)
    index = data.draw(st.integers(0, len(values) - 1))
    worse[index] -= data.draw(st.floats(0.0, 2.0))
    assert paired_lower_bound(worse, resamples=1000) <= paired_lower_bound(values, resamples=1000)


@given(SAMPLES)
def test_bounds_stay_within_the_values(values):
    interval = mean_interval(values, resamples=1000)
    assert min(values) - 1e-9 <= interval.lower <= interval.upper <= max(values) + 1e-9
    assert interval.count == len(values)


def test_equal_differences_give_exactly_their_value():
    assert paired_lower_bound([0.0] * 30) == 0.0
    assert paired_lower_bound([-0.25] * 30) == -0.25


def test_the_seed_decides_the_bound():
    values = np.random.default_rng(2).normal(size=30)
    assert paired_lower_bound(values, seed=4) == paired_lower_bound(values, seed=4)
    assert paired_lower_bound(values, seed=4) != paired_lower_bound(values, seed=5)


def test_many_images_are_resampled_in_blocks():
    count = 5000
    values = np.random.default_rng(1).normal(size=count)
    bound = paired_lower_bound(values, resamples=1000)
    assert bound == pytest.approx(values.mean() - 1.645 * values.std() / np.sqrt(count), abs=0.3 / np.sqrt(count))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.1], {}, "got 1 values, expected at least 2"),
        ([0.1, float("inf")], {}, "1 of 2 values are NaN or infinite"),
        ([0.1, float("nan")], {}, "1 of 2 values are NaN or infinite"),
        ([0.1, 0.2], {"confidence": 1.0}, "confidence is 1.0"),
        ([0.1, 0.2], {"resamples": 10}, "10 resamples"),
    ],
    ids=["one value", "infinite", "NaN", "certainty", "few resamples"],
)
def test_unusable_input_is_refused(values, options, message):
    for bound in (paired_lower_bound, mean_interval):
        with pytest.raises(DataError, match=message):
            bound(values, **options)
