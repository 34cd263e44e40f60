"""The ratio of two contenders that took turns in random order, and the decision whether one is faster.

Under the hypothesis that the ratio is r, numerator / (r * denominator) is as likely x as 1 / x in every round,
however the machine's disturbances follow one another in time, because the order within a round was drawn: the signs
of the log-ratios are independent fair coins. So the order statistics of the rounds' ratios enclose r with an exact
binomial probability, whatever the noise and its memory (the sign test's interval). Its estimate is the median of the
ratios and not the ratio of the medians: where other programs take time slices, latencies come in clusters, and the
medians jump from one to the next while most rounds still compare like with like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from unetx_bench.errors import MeasurementError
from unetx_bench.estimates import Estimate, finite_row
from unetx_bench.quantiles import quantile_interval

__all__ = ["DECISION_CONFIDENCE", "DECISION_MARGIN", "Comparison", "ratio_interval", "same_or_different"]

#: Confidence and margin of `same_or_different`. Two copies of one engine in one process really differ, by some 1 %
#: (standard deviation over 100 pairs, ``benchmarks/results/self-check-cpu-*``): a smaller margin would find that.
DECISION_CONFIDENCE: Final = 0.99
DECISION_MARGIN: Final = 0.015


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
        Median of numerator / denominator over the rounds, between two order statistics, see the module.

    Raises
    ------
    MeasurementError
        The two have not the same number of samples; a sample is not finite or not above 0; no interval of so few
        rounds has that confidence.
    """
    numerator, denominator = finite_row(numerator_ms), finite_row(denominator_ms)
    if len(numerator) != len(denominator):
        raise MeasurementError(
            f"a ratio is paired by round: got {len(numerator)} and {len(denominator)} samples, expected equal numbers"
        )
    if len(numerator) and min(numerator.min(), denominator.min()) <= 0:
        raise MeasurementError("a sample of 0 ms or less has no ratio: the clock is too coarse for so short a call")
    estimate = quantile_interval(np.log(numerator) - np.log(denominator), 0.5, confidence, independent=True)
    if estimate is None:
        raise MeasurementError(
            f"{len(numerator)} rounds give no ratio with a confidence of {confidence:g}: measure longer"
        )
    return Estimate(math.exp(estimate.value), math.exp(estimate.low), math.exp(estimate.high))


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
