"""One axis of a chart, linear or logarithmic, with ticks at round values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["Axis", "fit_axis", "plain_number"]

_STEPS: Final = (1.0, 2.0, 5.0, 10.0)
_SPARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Axis:
    """Values to pixels.

    Attributes
    ----------
    low, high : float
        Values at the ends; `low` is the smaller one.
    start_px, end_px : float
        Their places; `start_px` is the larger one for an axis that goes up.
    logarithmic : bool
        Equal factors are equal lengths.
    """

    low: float
    high: float
    start_px: float
    end_px: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Place of a value in pixels; what is outside stands at the border."""
        low, high, value = (self._scaled(number) for number in (self.low, self.high, value))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, most: int = 6) -> tuple[float, ...]:
        """Round values within the axis, at most about `most`."""
        if self.logarithmic:
            found = _decades(self.low, self.high, most)
            if len(found) >= 3:
                return found
        step = _round_step((self.high - self.low) / max(most, 1))
        first = math.ceil(self.low / step - 1e-9)
        return tuple(index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1))

    def _scaled(self, value: float) -> float:
        return math.log(max(value, self.low * 1e-9)) if self.logarithmic else value


def fit_axis(
    values: Iterable[float], start_px: float, end_px: float, *, logarithmic: bool = False, zero: bool = False
) -> Axis:
    """Choose an axis on which all values can be seen.

    Parameters
    ----------
    values : iterable of float
        What is drawn; above 0 for a logarithmic axis.
    start_px, end_px : float
        Place of its ends.
    logarithmic : bool
        Equal factors are equal lengths.
    zero : bool
        Begin at 0; for a linear axis of values that are 0 or more.
    """
    shown = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)]
    if not shown:
        shown = [1.0, 10.0] if logarithmic else [0.0, 1.0]
    low, high = min(shown), max(shown)
    if logarithmic:
        factor = max((high / low) ** _SPARE, 1.05)
        return Axis(low / factor, high * factor, start_px, end_px, logarithmic=True)
    spare = _SPARE * (high - low) or max(abs(high) * _SPARE, 1e-6)
    return Axis(0.0 if zero else low - spare, high + spare, start_px, end_px)


def plain_number(value: float) -> str:
    """Write a tick's value: three figures, no exponent where it can be read without one."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * step for step in _STEPS if power * step >= least * (1 - 1e-9))


def _decades(low: float, high: float, most: int) -> tuple[float, ...]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        found = [10.0**power * digit for power in exponents for digit in mantissas]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            return tuple(found)
    stride = -(-len(found) // most)
    return tuple(found[::stride])
