"""What samples of a latency say, and how surely: pure functions of arrays.

A sample is one call's duration in milliseconds. Samples are kept in the order in which they were taken, because calls
that follow one another are disturbed by the same things: an interval that takes them as independent is too narrow.

- `quantile_interval`: order statistics (exact binomial), with the number of samples reduced to the number of
  independent ones that would fluctuate as much.
- `ratio_interval`: two contenders that took turns in a random order within each round. Under the hypothesis that the
  ratio is r, numerator / (r * denominator) is as likely x as 1 / x in every round, however the machine's
  disturbances follow one another in time, because the order was drawn. The signs of the log-ratios are then
  independent fair coins given their sizes, which is all that Wilcoxon's signed-rank test needs; the interval holds
  the ratios that this test does not reject (Hodges and Lehmann 1963), its estimate is their centre.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtri

from unetx_bench.errors import MeasurementError

__all__ = [
    "DECISION_CONFIDENCE",
    "DECISION_MARGIN",
    "Comparison",
    "Estimate",
    "dependence_time",
    "minimum_count",
    "quantile_interval",
    "ratio_interval",
    "same_or_different",
]

#: Confidence and margin of `same_or_different`.
DECISION_CONFIDENCE: Final = 0.99
DECISION_MARGIN: Final = 0.01

_MINIMUM_CONFIDENCE: Final = 0.99  # MLPerf's early stopping
_EXACT_RANKS: Final = 60
_MINIMUM_PAIRS: Final = 8


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval: milliseconds, or a ratio.

    Attributes
    ----------
    value : float
        The estimate.
    low, high : float
        Bounds of the interval; `value` lies between them.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's width over the value: 0.01 is "known to one percent"."""
        return (self.high - self.low) / (2 * self.value)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a paired measurement says about two contenders.

    Attributes
    ----------
    verdict : str
        "faster" or "slower" (the numerator, than the denominator), or "no difference" where none was found.
    ratio : Estimate
        Numerator over denominator.
    confidence : float
        Of `ratio`'s interval.
    margin : float
        Ratios within 1 / (1 + margin) and 1 + margin count as the same.
    resolution : float
        The least difference that this measurement would have found: 0.03 is three percent. "No difference" says
        nothing about smaller ones.
    """

    verdict: str
    ratio: Estimate
    confidence: float
    margin: float
    resolution: float


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
    _check_open_unit("the quantile", q)
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
    _check_open_unit("the confidence", confidence)
    minimum = minimum_count(q)
    samples = _finite(samples_ms)
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


def ratio_interval(numerator_ms: ArrayLike, denominator_ms: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Estimate the ratio of two contenders that took turns in random order.

    Parameters
    ----------
    numerator_ms, denominator_ms : array_like
        (rounds,), above 0; the same index is the same round.
    confidence : float
        Above 0 and below 1.

    Returns
    -------
    Estimate
        Hodges-Lehmann estimate of numerator / denominator with the interval of Wilcoxon's signed-rank test, see the
        module.

    Raises
    ------
    MeasurementError
        The two have not the same number of samples, or fewer than 8; a sample is not finite or not above 0; no
        interval of so few rounds has that confidence.
    """
    _check_open_unit("the confidence", confidence)
    numerator, denominator = _finite(numerator_ms), _finite(denominator_ms)
    if len(numerator) != len(denominator):
        raise MeasurementError(
            f"a ratio is paired by round: got {len(numerator)} and {len(denominator)} samples, expected equal numbers"
        )
    if len(numerator) < _MINIMUM_PAIRS:
        raise MeasurementError(
            f"a ratio needs at least {_MINIMUM_PAIRS} rounds, got {len(numerator)}: measure longer"
        )
    if min(numerator.min(), denominator.min()) <= 0:
        raise MeasurementError("a sample of 0 ms or less has no ratio: the clock is too coarse for so short a call")
    logs = np.sort(np.log(numerator) - np.log(denominator))
    pairs = len(logs) * (len(logs) + 1) // 2
    outside = _outside_walsh(len(logs), confidence)
    low, high = _walsh_average(logs, outside + 1), _walsh_average(logs, pairs - outside)
    middle = (_walsh_average(logs, (pairs + 1) // 2) + _walsh_average(logs, pairs // 2 + 1)) / 2
    return Estimate(*(math.exp(value) for value in (middle, low, high)))


def same_or_different(
    numerator_ms: ArrayLike,
    denominator_ms: ArrayLike,
    confidence: float = DECISION_CONFIDENCE,
    margin: float = DECISION_MARGIN,
) -> Comparison:
    """Decide whether one contender is faster or slower than another.

    Parameters
    ----------
    numerator_ms, denominator_ms : array_like
        As in `ratio_interval`.
    confidence : float
        Of the interval that the decision is taken on.
    margin : float
        0 or more. Two copies of one engine differ by where their memory lies; a difference within the margin is
        none.

    Returns
    -------
    Comparison
        "faster" or "slower" where the whole interval lies beyond the margin, else "no difference".
    """
    if not margin >= 0:
        raise MeasurementError(f"the margin is {margin}, expected 0 or more")
    ratio = ratio_interval(numerator_ms, denominator_ms, confidence)
    verdict = "no difference"
    if ratio.low > 1 + margin:
        verdict = "slower"
    elif ratio.high < 1 / (1 + margin):
        verdict = "faster"
    arm = max(math.log(ratio.high / ratio.value), math.log(ratio.value / ratio.low))
    return Comparison(verdict, ratio, confidence, margin, (1 + margin) * math.exp(arm) - 1)


def _order_ranks(count: int, q: float, confidence: float) -> tuple[int, int] | None:
    """Ranks (from 1) of the closest order statistics that enclose a quantile; None where none do."""
    tail = (1 - confidence) / 2
    counts = np.arange(count + 1)
    below = bdtr(counts, count, q)  # P(at most k samples lie below the quantile)
    # The quantile lies under the sample of rank r if fewer than r samples are below it.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return (low, high) if low >= 1 and high <= count else None


def _outside_walsh(count: int, confidence: float) -> int:
    """Walsh averages that lie outside the interval on either side."""
    tail = (1 - confidence) / 2
    if count <= _EXACT_RANKS:
        ways = np.ones(1)
        for rank in range(1, count + 1):
            longer = np.zeros(len(ways) + rank)
            longer[: len(ways)] += ways / 2
            longer[rank:] += ways / 2
            ways = longer
        outside = int(np.searchsorted(np.cumsum(ways), tail, side="right")) - 1
    else:
        mean, variance = count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24
        outside = math.floor(mean + float(ndtri(tail)) * math.sqrt(variance) - 0.5)
    if outside < 0:
        raise MeasurementError(f"{count} rounds give no interval with a confidence of {confidence:g}: measure longer")
    return outside


def _walsh_average(ordered: NDArray[np.float64], rank: int) -> float:
    """Find the average of rank `rank` (from 1) among those of all pairs i <= j, by bisection in O(n log n)."""
    low, high = float(ordered[0]), float(ordered[-1])
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            return high
        both = int(np.searchsorted(ordered, 2 * middle - ordered, side="right").sum())
        alone = int(np.searchsorted(ordered, middle, side="right"))
        if (both + alone) // 2 >= rank:
            high = middle
        else:
            low = middle


def _finite(samples: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise MeasurementError(f"samples of shape {values.shape} were given, expected finite numbers in one row")
    return values


def _check_open_unit(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise MeasurementError(f"{what} is {value}, expected above 0 and below 1")
