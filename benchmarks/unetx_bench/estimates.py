"""A figure with its interval, and what every estimate checks of its samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unetx_bench.errors import MeasurementError

__all__ = ["Estimate", "check_open_unit", "finite_row"]


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


def finite_row(samples: ArrayLike) -> NDArray[np.float64]:
    """Take samples as float64 (n,).

    Raises
    ------
    MeasurementError
        They are no row of finite numbers.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise MeasurementError(f"samples of shape {values.shape} were given, expected finite numbers in one row")
    return values


def check_open_unit(what: str, value: float) -> None:
    """Refuse what is not above 0 and below 1.

    Raises
    ------
    MeasurementError
        It is not.
    """
    if not 0 < value < 1:
        raise MeasurementError(f"{what} is {value}, expected above 0 and below 1")
