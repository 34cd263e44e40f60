"""Whether calibration images are like those that a gate is decided on, by statistics of their grey values.

Ranges fit what they were taken from. Each image gives a few numbers, as the network sees it; two sets of images are
compared number by number with the two-sample Kolmogorov-Smirnov test, and the pooled grey values with the population
stability index, of which credit scoring holds 0.25 to be a shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import DataError

__all__ = ["GreyStatistics", "grey_statistics", "likeness_warnings", "stability_index"]

_BINS: Final = 20
_SHIFTED: Final = 0.25
#: Chance of a warning about two sets that are alike, for all numbers together.
_SIGNIFICANCE: Final = 0.01
#: A difference of distributions that is certain but smaller than this does not matter.
_LEAST_DISTANCE: Final = 0.4


@dataclass(frozen=True, slots=True)
class GreyStatistics:
    """Statistics of a set of images.

    Attributes
    ----------
    per_image : mapping of str to numpy.ndarray
        Name of a number -> (images,) float64.
    histogram : numpy.ndarray
        (bins,) share of the pixels of all images in each of equal parts of the value range.
    """

    per_image: Mapping[str, NDArray[np.float64]]
    histogram: NDArray[np.float64]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(next(iter(self.per_image.values())))

    def to_json(self) -> dict[str, Any]:
        """Describe it in plain JSON types: the mean of each number over the images."""
        return {"images": self.images, **{name: float(values.mean()) for name, values in self.per_image.items()}}


def grey_statistics(
    images: Iterable[NDArray[np.float32]], value_range: tuple[float, float] = (0.0, 1.0)
) -> GreyStatistics:
    """Go through images once, one at a time.

    Parameters
    ----------
    images : iterable of numpy.ndarray
        (N, C, H, W) float32, as the network reads them.
    value_range : tuple of float
        Lowest and highest value that the network sees.

    Raises
    ------
    DataError
        There is no image.
    """
    rows: list[list[float]] = []
    counts = np.zeros(_BINS)
    for image in images:
        values = image.astype(np.float64)
        steps = np.abs(np.diff(values, axis=-1)).mean()
        rows.append([values.mean(), values.std(), *np.percentile(values, (5, 50, 95)), steps])
        found = np.histogram(np.clip(values, *value_range), _BINS, value_range)[0]
        counts += found / found.sum()
    if not rows:
        raise DataError("the statistics of no image were asked for: give at least one")
    columns = np.array(rows).T
    names = ("mean", "spread", "dark end", "median", "bright end", "sharpness")
    return GreyStatistics(MappingProxyType(dict(zip(names, columns, strict=True))), counts / len(rows))


def likeness_warnings(calibration: GreyStatistics, gate: GreyStatistics) -> tuple[str, ...]:
    """Say in which way calibration images are unlike those of a gate.

    Parameters
    ----------
    calibration, gate : GreyStatistics
        Of the two sets; fewer than four images in one are too few to tell.

    Returns
    -------
    tuple of str
        One sentence for each number that differs; empty where the sets are alike.
    """
    from scipy import stats

    if min(calibration.images, gate.images) < 4:
        return ()
    found = []
    for name, values in calibration.per_image.items():
        test = stats.ks_2samp(values, gate.per_image[name])
        certain = float(test.pvalue) < _SIGNIFICANCE / len(calibration.per_image)
        if certain and float(test.statistic) > _LEAST_DISTANCE:
            found.append(
                f"The calibration images are unlike those of the gate: the {name} of their grey values is "
                f"{np.median(values):.3g} in the median, that of the gate's {np.median(gate.per_image[name]):.3g}."
            )
    shift = stability_index(calibration.histogram, gate.histogram)
    if shift > _SHIFTED:
        found.append(
            f"The grey values of the calibration images are distributed otherwise than those of the gate's "
            f"(population stability index {shift:.2f}, expected at most {_SHIFTED})."
        )
    return tuple(found)


def stability_index(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Population stability index of two histograms of shares: ``sum((p - q) * log(p / q))``, 0 for equal ones."""
    p, q = (np.maximum(shares, 1e-4) for shares in (one, other))
    return float(np.sum((p - q) * np.log(p / q)))
