"""The ratio of two contenders that took turns in random order, and the decision whether one is faster.

Under the hypothesis that the ratio is r, numerator / (r * denominator) is as likely x as 1 / x in every round,
however the machine's disturbances follow one another in time, because the order within a round was drawn. The signs
of the log-ratios are then independent fair coins given their sizes, which is all that Wilcoxon's signed-rank test
needs. The interval holds the ratios that this test does not reject (Hodges and Lehmann 1963); the estimate is their
centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from unetx_bench.errors import MeasurementError
from unetx_bench.estimates import Estimate, check_open_unit, finite_row

__all__ = ["DECISION_CONFIDENCE", "DECISION_MARGIN", "Comparison", "ratio_interval", "same_or_different"]

#: Confidence and margin of `same_or_different`.
DECISION_CONFIDENCE: Final = 0.99
DECISION_MARGIN: Final = 0.01

_EXACT_RANKS: Final = 60
_MINIMUM_PAIRS: Final = 8


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
    check_open_unit("the confidence", confidence)
    numerator, denominator = finite_row(numerator_ms), finite_row(denominator_ms)
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
