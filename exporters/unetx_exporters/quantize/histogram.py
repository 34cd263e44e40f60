"""A histogram that grows with its data, holds a bounded number of bins, and does not depend on the order of it.

The width of a bin is a power of two and its edges are whole multiples of it. When values fall outside, the bins are
merged in pairs until the new range fits: a value then lies in the bin where it would have been put in the first
place, because ``floor(floor(v) / 2) == floor(v / 2)``. Counts are exact integers, so histograms of parts of the data
can be merged in any order and give the histogram of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import DataError

__all__ = ["DEFAULT_BINS", "Histogram", "histogram_of", "merge_histograms"]

DEFAULT_BINS: Final = 2048
#: Bins are never finer than the values' own resolution: float32 has 24 significant bits.
_SIGNIFICANT_BITS: Final = 24
_LOWEST_EXPONENT: Final = -140


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values on a grid of powers of two.

    Attributes
    ----------
    exponent : int
        A bin is ``2 ** exponent`` wide.
    first : int
        Bin ``i`` holds the values from ``(first + i) * width`` up to the next edge.
    counts : numpy.ndarray
        (bins,) int64, at most `limit` of them; the first and the last are not 0.
    low, high : float
        Smallest and largest value seen, also among those that were not counted.
    limit : int
        Largest number of bins.
    """

    exponent: int
    first: int
    counts: NDArray[np.int64]
    low: float
    high: float
    limit: int = DEFAULT_BINS

    @property
    def width(self) -> float:
        """Width of a bin, in the unit of the values."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def centres(self) -> NDArray[np.float64]:
        """Middle of every bin, (bins,), but never outside `low` to `high`."""
        middle = (self.first + np.arange(len(self.counts)) + 0.5) * self.width
        clipped: NDArray[np.float64] = np.clip(middle, self.low, self.high)
        return clipped

    def to_json(self) -> dict[str, Any]:
        """Describe it in plain JSON types, without the counts."""
        return {"low": self.low, "high": self.high, "bins": len(self.counts), "bin_width": self.width}


def histogram_of(
    values: NDArray[Any], limit: int = DEFAULT_BINS, extremes: tuple[float, float] | None = None
) -> Histogram:
    """Count the values of an array.

    Parameters
    ----------
    values : numpy.ndarray
        Finite floats of any shape, at least one.
    limit : int
        Largest number of bins, at least 2.
    extremes : tuple of float, optional
        Smallest and largest value of the data that `values` are a sample of.

    Raises
    ------
    DataError
        There is no value, or one is not finite.
    """
    if values.size == 0:
        raise DataError("a histogram of no values was asked for: pass at least one")
    low, high = extremes or (float(values.min()), float(values.max()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"values reach from {low} to {high}, expected finite ones: the model overflows on this input")
    exponent = _exponent_for(low, high, limit)
    scaled = np.ldexp(values.astype(np.float64, copy=False).ravel(), -exponent)
    index = np.floor(scaled, out=scaled).astype(np.int64)
    first = int(index.min())
    return Histogram(exponent, first, np.bincount(index - first).astype(np.int64), low, high, limit)


def merge_histograms(one: Histogram, other: Histogram) -> Histogram:
    """Count two sets of values together.

    Raises
    ------
    ValueError
        The two have different limits.
    """
    if one.limit != other.limit:
        raise ValueError(f"histograms of at most {one.limit} and {other.limit} bins cannot be merged")
    low, high = min(one.low, other.low), max(one.high, other.high)
    exponent = _exponent_for(low, high, one.limit)
    coarse = [_coarsen(histogram, exponent) for histogram in (one, other)]
    first = min(start for start, _ in coarse)
    counts = np.zeros(max(start + len(part) for start, part in coarse) - first, np.int64)
    for start, part in coarse:
        counts[start - first : start - first + len(part)] += part
    return Histogram(exponent, first, counts, low, high, one.limit)


def _exponent_for(low: float, high: float, limit: int) -> int:
    """Smallest exponent whose grid covers a range with `limit` bins: it never falls when the range grows."""
    magnitude = max(abs(low), abs(high))
    lowest = _LOWEST_EXPONENT
    if magnitude > 0.0:
        lowest = max(lowest, math.frexp(magnitude)[1] - _SIGNIFICANT_BITS)
    exponent = lowest
    if high > low:
        # One below what is surely too fine, so that the loop is short.
        exponent = max(lowest, math.frexp((high - low) / limit)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= limit:
        exponent += 1
    return exponent


def _coarsen(histogram: Histogram, exponent: int) -> tuple[int, NDArray[np.int64]]:
    shift = exponent - histogram.exponent
    if shift == 0:
        return histogram.first, histogram.counts
    index = (histogram.first + np.arange(len(histogram.counts))) >> shift
    first = int(index[0])
    merged = np.zeros(int(index[-1]) - first + 1, np.int64)
    np.add.at(merged, index - first, histogram.counts)
    return first, merged
