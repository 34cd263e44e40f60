"""Quantiles of a latency with intervals between order statistics, honest for samples that depend on one another."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr

from unetx_bench.estimates import Estimate, check_open_unit, finite_row

__all__ = ["dependence_time", "minimum_count", "quantile_interval"]

_MINIMUM_CONFIDENCE: Final = 0.99  # MLPerf's early stopping


@functools.cache
def minimum_count(q: float) -> int:
    """Count the samples that a quantile needs, by MLPerf's early-stopping rule.

    Parameters
    ----------
    q : float
        Above 0 and below 1; 0.99 is the 99th percentile.

    Returns
    -------
    int
        Least n for which at most one of n samples beyond the quantile has a probability of at most 1 %: 64 for
        p90 and 662 for p99. Quantiles below the median need as many as those above it.

    Raises
    ------
    MeasurementError
        `q` is out of range.
    """
    check_open_unit("the quantile", q)
    beyond = min(q, 1 - q)
    count = 1
    while bdtr(1, count, beyond) > 1 - _MINIMUM_CONFIDENCE:
        count += 1
    return count


def dependence_time(values: ArrayLike) -> float:
    """Estimate how many successive values count as one independent value.

    Parameters
    ----------
    values : array_like
        (n,), in the order of time.

    Returns
    -------
    float
        Integrated autocorrelation time, 1 to n: the initial positive sequence estimator of Geyer (1992), which sums
        autocorrelations in pairs as long as they are positive. 1 for fewer than 4 values and for constant ones.
    """
    series = np.asarray(values, dtype=np.float64)
    count = len(series)
    centred = series - series.mean() if count else series
    if count < 4 or not centred.any():
        return 1.0
    size = 1 << (2 * count - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum), size)[:count]
    correlation /= correlation[0]
    pairs = correlation[: count // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    kept = pairs[: ends[0]] if len(ends) else pairs
    return float(np.clip(2 * kept.sum() - 1, 1.0, count))


def quantile_interval(
    samples_ms: ArrayLike, q: float = 0.5, confidence: float = 0.95, *, independent: bool = False
) -> Estimate | None:
    """Estimate a quantile with an interval between two order statistics.

    Parameters
    ----------
    samples_ms : array_like
        (n,), finite, in the order in which they were taken.
    q : float
        0.5 is the median.
    confidence : float
        Above 0 and below 1.
    independent : bool
        Take the samples as independent of one another: the exact binomial interval. Otherwise their number is
        divided by the `dependence_time` of "is below the quantile", and the interval widened accordingly.

    Returns
    -------
    Estimate or None
        None where there are too few (independent) samples: fewer than `minimum_count`, or so few that no two of
        them enclose the quantile with that confidence.

    Raises
    ------
    MeasurementError
        A sample is not finite, or a parameter is out of range.
    """
    check_open_unit("the confidence", confidence)
    minimum = minimum_count(q)
    samples = finite_row(samples_ms)
    if len(samples) < minimum:
        return None
    ordered = np.sort(samples)
    value = float(np.quantile(ordered, q))
    dependence = 1.0 if independent else dependence_time(samples <= value)
    count = int(len(samples) / dependence)
    ranks = _order_ranks(count, q, confidence) if count >= minimum else None
    if ranks is None:
        return None
    # Ranks among the independent samples, as fractions, taken over to all samples; outwards where they fall between.
    low = ordered[(ranks[0] - 1) * (len(samples) - 1) // (count - 1)]
    high = ordered[-(-(ranks[1] - 1) * (len(samples) - 1) // (count - 1))]
    return Estimate(value, min(float(low), value), max(float(high), value))


def _order_ranks(count: int, q: float, confidence: float) -> tuple[int, int] | None:
    """Ranks (from 1) of the closest order statistics that enclose a quantile; None where none do."""
    tail = (1 - confidence) / 2
    counts = np.arange(count + 1)
    below = bdtr(counts, count, q)  # P(at most k samples lie below the quantile)
    # The quantile lies under the sample of rank r if fewer than r samples are below it.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= count else None
