"""The 256 values that an 8-bit tensor can hold: from a range to a scale and a zero point, and to the values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import ExportError

__all__ = ["SMALLEST_SCALE", "Grid", "Quantizer"]

#: Scales must survive the type float16 (smallest normal number), in which a graph with float16 layers stores them.
SMALLEST_SCALE: Final = 2.0**-14


@dataclass(frozen=True, slots=True)
class Quantizer:
    """``value = (code - zero_point) * scale``, for codes from `lowest` to `highest`.

    Attributes
    ----------
    scale : float
        Distance of neighbouring values; exact in float32.
    zero_point : int
        Code of the value 0, which is always exact: paddings and rectified values are.
    dtype : numpy.dtype
        int8 or uint8.
    lowest, highest : int
        Codes in use.
    """

    scale: float
    zero_point: int
    dtype: np.dtype[Any]
    lowest: int
    highest: int

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value that it can hold."""
        return (self.lowest - self.zero_point) * self.scale, (self.highest - self.zero_point) * self.scale

    def quantize(self, values: NDArray[Any]) -> NDArray[Any]:
        """Codes of values, as QuantizeLinear defines them: rounded half to even, then clipped."""
        codes = np.rint(values / np.float32(self.scale)) + self.zero_point
        clipped: NDArray[Any] = np.clip(codes, self.lowest, self.highest).astype(self.dtype)
        return clipped

    def dequantize(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Values of codes, as DequantizeLinear defines them."""
        values: NDArray[np.float32] = (codes.astype(np.int32) - self.zero_point) * np.float32(self.scale)
        return values.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Grid:
    """A kind of 8-bit tensor.

    Attributes
    ----------
    dtype : numpy.dtype
        int8 or uint8.
    symmetric : bool
        Zero point 0 whatever the range; codes of int8 then reach from -127 to 127 only.
    """

    dtype: np.dtype[Any]
    symmetric: bool

    def fit(self, low: float, high: float) -> Quantizer:
        """Choose scale and zero point for a range of values.

        Parameters
        ----------
        low, high : float
            Finite; the range is widened so that it holds 0, and to one step of `SMALLEST_SCALE` at least.

        Raises
        ------
        ExportError
            The range is not finite or upside down.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ExportError(f"a range from {low} to {high} cannot be held in 8 bits: calibrate the graph again")
        low, high = min(low, 0.0), max(high, 0.0)
        info = np.iinfo(self.dtype)
        if self.symmetric:
            top = int(info.max)
            scale = _stored(max(-low, high) / top)
            return Quantizer(scale, 0, self.dtype, -top if info.min < 0 else 0, top)
        scale = _stored((high - low) / (int(info.max) - int(info.min)))
        zero_point = round(int(info.min) - low / scale)
        zero_point = min(max(zero_point, int(info.min)), int(info.max))
        return Quantizer(scale, zero_point, self.dtype, int(info.min), int(info.max))


def _stored(scale: float) -> float:
    return max(float(np.float32(scale)), SMALLEST_SCALE)
