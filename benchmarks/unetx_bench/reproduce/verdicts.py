"""From an interval to an answer: pure functions that know no variant, no data and no device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from unetx_bench.ratios import DECISION_MARGIN
from unetx_bench.reproduce.record import Interval, Verdict

__all__ = [
    "LEAST_IMAGES",
    "LESS",
    "SIGNIFICANCE",
    "Effect",
    "combine",
    "decide_absence",
    "decide_effect",
    "decide_seeds",
    "widen",
]

#: A ratio of times counts as less below this: copies of one engine differ by the harness's margin.
LESS: Final = 1.0 / (1.0 + DECISION_MARGIN)
#: A difference in accuracy counts where its p-value, adjusted for the number of comparisons, is below this ...
SIGNIFICANCE: Final = 0.05
#: ... and accuracy is claimed from no fewer images: below that, bootstrap intervals are too narrow.
LEAST_IMAGES: Final = 20
_LEAST_SEEDS: Final = 3


@dataclass(frozen=True, slots=True)
class Effect:
    """A claimed change and what was measured of it.

    Attributes
    ----------
    estimate : Interval
        The measured change with its interval.
    null : float
        The value that means no change.
    printed : float or None
        The change that the article prints, in the same unit; None where it prints none.
    raises : bool
        Whether the claim is that the value lies above `null`; otherwise below.
    counts : bool
        Whether a difference from `null` counts at all. Where it does not, as its p-value is too high, the interval is
        taken to reach a little beyond `null` on both sides.
    """

    estimate: Interval
    null: float
    printed: float | None
    raises: bool
    counts: bool = True


def decide_effect(effect: Effect) -> Verdict:
    """Decide a claimed change.

    Returns
    -------
    Verdict
        REPRODUCED where the whole interval lies beyond `null` on the claimed side. NOT_REPRODUCED where none of it
        does, or where it reaches `null` and does not reach the printed change. NOT_DECIDABLE where it holds both, or
        has no bounds.
    """
    sign = 1.0 if effect.raises else -1.0
    bounds = _bounds(effect, sign)
    if bounds is None:
        return Verdict.NOT_DECIDABLE
    (low, high), null = bounds, sign * effect.null
    if low > null:
        return Verdict.REPRODUCED
    printed = None if effect.printed is None else sign * effect.printed
    if high <= null or (printed is not None and null < printed and high < printed):
        return Verdict.NOT_REPRODUCED
    return Verdict.NOT_DECIDABLE


def decide_absence(effect: Effect) -> Verdict:
    """Decide the claim that there is no change on one side: that of `raises`, of the printed size or more.

    Returns
    -------
    Verdict
        NOT_REPRODUCED where the whole interval lies beyond `null` on that side: there is a change. REPRODUCED where
        the interval excludes the printed change. NOT_DECIDABLE otherwise: that a sample is too small to show a change
        does not show that there is none.
    """
    sign = 1.0 if effect.raises else -1.0
    bounds = _bounds(effect, sign)
    if bounds is None or effect.printed is None:
        return Verdict.NOT_DECIDABLE
    low, high = bounds
    if low > sign * effect.null:
        return Verdict.NOT_REPRODUCED
    return Verdict.REPRODUCED if high < sign * effect.printed else Verdict.NOT_DECIDABLE


def widen(ratio: Interval, low: float, high: float) -> Interval:
    """Widen the interval of a ratio by what ratios of equals show.

    Parameters
    ----------
    ratio : Interval
        Above 0.
    low, high : float
        Bounds of the ratio of two equals, 1 between them.

    Returns
    -------
    Interval
        The same value; its lower bound times `low`, its upper bound times `high`.
    """
    if ratio.low is None or ratio.high is None:
        return ratio
    return Interval(value=ratio.value, low=ratio.low * low, high=ratio.high * high)


def decide_seeds(first: Sequence[float], second: Sequence[float]) -> Verdict:
    """Decide whether training a variant again keeps it above another one.

    Parameters
    ----------
    first, second : sequence of float
        A figure of each seed, larger is better.

    Returns
    -------
    Verdict
        REPRODUCED where every value of the first lies above every one of the second, NOT_REPRODUCED where none does,
        NOT_DECIDABLE where they overlap or where one of the two has fewer than three: of three against three, chance
        alone separates them in this order once in twenty.
    """
    if min(len(first), len(second)) < _LEAST_SEEDS:
        return Verdict.NOT_DECIDABLE
    if min(first) > max(second):
        return Verdict.REPRODUCED
    return Verdict.NOT_REPRODUCED if max(first) <= min(second) else Verdict.NOT_DECIDABLE


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """Answer a claim of several parts: reproduced where all are, not where one is not, else not decidable."""
    parts = tuple(verdicts)
    if Verdict.NOT_REPRODUCED in parts:
        return Verdict.NOT_REPRODUCED
    if parts and all(part is Verdict.REPRODUCED for part in parts):
        return Verdict.REPRODUCED
    return Verdict.NOT_DECIDABLE


def _bounds(effect: Effect, sign: float) -> tuple[float, float] | None:
    """Lower and upper bound of ``sign * estimate``."""
    if effect.estimate.low is None or effect.estimate.high is None:
        return None
    low, high = sorted((sign * effect.estimate.low, sign * effect.estimate.high))
    if not effect.counts:
        null = sign * effect.null
        low, high = min(low, math.nextafter(null, -math.inf)), max(high, math.nextafter(null, math.inf))
    return low, high
