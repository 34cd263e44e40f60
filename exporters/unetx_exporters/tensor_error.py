"""How far a tensor of an engine is from the expected one, as one number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fit_channels", "relative_error"]


def relative_error(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """Norm of the difference relative to that of the expected values; infinite where a value is not finite."""
    if expected.shape != actual.shape or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return float("inf")
    difference = float(np.linalg.norm((actual.astype(np.float64) - expected).ravel()))
    scale = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    return difference / scale if scale else (0.0 if difference == 0.0 else float("inf"))


def fit_channels(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each channel to fit: an 8-bit graph may be equalized, which multiplies channels by factors of its own."""
    fitting = (actual * expected).sum((0, 2, 3), dtype=np.float64)
    power = np.square(actual, dtype=np.float64).sum((0, 2, 3))
    factors = np.where(power > 0.0, fitting / np.where(power > 0.0, power, 1.0), 1.0)
    return (actual * np.maximum(factors, 0.0)[:, np.newaxis, np.newaxis]).astype(np.float32)
