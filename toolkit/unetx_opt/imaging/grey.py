"""Grey values to the value range of a network: by percentiles of the image, or by a fixed window."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import ImageError, SpecError
from unetx_opt.specs import InputContract, Normalization

__all__ = ["normalize_grey"]

# Whole numbers that span at most this many grey levels are mapped through a table, exactly.
_TABLE_LEVELS: Final = 65536
_BAND_PX: Final = 1 << 18
# Percentiles of other images are taken from a regular grid of about this many pixels.
_SAMPLE_PX: Final = 1 << 18
# Beyond it differences overflow float32; no grey value is that large.
_MAX_MAGNITUDE: Final = 1e30


def normalize_grey(pixels: NDArray[Any], contract: InputContract) -> NDArray[np.float32]:
    """Map the grey values of a whole image to ``contract.value_range`` and clip.

    Parameters
    ----------
    pixels : numpy.ndarray
        (H, W), not empty, integer or float grey values.
    contract : InputContract
        Its normalisation and value range.

    Returns
    -------
    numpy.ndarray
        (H, W) float32 within ``contract.value_range``.

    Raises
    ------
    ImageError
        Pixels are NaN, infinite or beyond 1e30 in magnitude.
    SpecError
        The contract's window is infinite.

    Notes
    -----
    With lower and upper limits ``a < b`` a grey value ``g`` becomes ``clip((g - a) / (b - a), 0, 1)``, stretched
    over the value range. WINDOW names the limits. PERCENTILE takes them from the image and interpolates linearly
    between order statistics (``numpy.percentile``'s default):

    * Whole numbers, also those stored as floats, that span at most 65536 levels: all pixels count, and the map is
      computed in double precision and rounded once. The same picture from an 8-bit PNG and from a float array
      gives the same result, bit for bit.
    * Others: every s-th row and column counts, ``s = ceil(sqrt(H W / 2**18))``, beginning with the first, and the
      map is computed in float32 where the image is float32, otherwise in double precision.

    Where the two percentiles coincide the image's minimum and maximum take their place; a constant image becomes
    the lower end of the value range.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(pixels)))
        raise ImageError(f"image has {count} pixels that are NaN or infinite, expected finite grey values")
    if max(-low, high) > _MAX_MAGNITUDE:
        raise ImageError(f"grey values reach from {low:g} to {high:g}, expected magnitudes below 1e30")
    if _fits_table(pixels, low, high):
        return _normalize_levels(pixels, int(low), int(high) - int(low) + 1, contract)
    values = pixels if pixels.dtype in (np.float32, np.float64) else pixels.astype(np.float64)
    return _normalize_values(values, (low, high), contract)


def _fits_table(pixels: NDArray[Any], low: float, high: float) -> bool:
    """Whether all grey values are whole numbers within a table's reach."""
    if high - low >= _TABLE_LEVELS or max(-low, high) >= 2**53:
        return False
    if pixels.dtype.kind in "iu":
        return True
    # Most images that are not whole numbers show it in a few pixels, which spares the pass over all of them.
    sparse = pixels[:: max(1, pixels.shape[0] // 64), :: max(1, pixels.shape[1] // 64)]
    return _is_whole(sparse) and _is_whole(pixels)


def _is_whole(values: NDArray[Any]) -> bool:
    return bool(np.array_equal(np.rint(values), values))


def _normalize_levels(
    pixels: NDArray[Any], low: int, level_count: int, contract: InputContract
) -> NDArray[np.float32]:
    # In bands of rows: the indices are eight bytes per pixel, and a band of them stays in the cache.
    step = max(1, _BAND_PX // pixels.shape[1])
    bands = [slice(start, start + step) for start in range(0, pixels.shape[0], step)]
    if contract.normalization is Normalization.WINDOW:
        limits = _window(contract)
    else:
        counts = np.zeros(level_count, dtype=np.intp)
        for band in bands:
            counts += np.bincount(_level_indices(pixels[band], low).ravel(), minlength=level_count)
        lower, upper = _histogram_percentiles(counts, contract)
        if not lower < upper:
            lower, upper = 0.0, float(level_count - 1)
        limits = (lower + low, upper + low)
    grey = np.arange(low, low + level_count, dtype=np.float64)
    table = _map_grey(grey, limits, contract).astype(np.float32)
    normalized = np.empty(pixels.shape, dtype=np.float32)
    for band in bands:
        np.take(table, _level_indices(pixels[band], low), out=normalized[band], mode="clip")
    return normalized


def _level_indices(pixels: NDArray[Any], low: int) -> NDArray[np.intp]:
    indices = pixels.astype(np.intp)
    if low:
        indices -= low
    return indices


def _normalize_values(
    values: NDArray[np.float32] | NDArray[np.float64], extremes: tuple[float, float], contract: InputContract
) -> NDArray[np.float32]:
    if contract.normalization is Normalization.WINDOW:
        limits = _window(contract)
    else:
        limits = _sample_percentiles(values, contract)
        if not limits[0] < limits[1]:
            limits = extremes
    return _map_grey(values, limits, contract).astype(np.float32, copy=False)


def _map_grey(values: NDArray[Any], limits: tuple[float, float], contract: InputContract) -> NDArray[Any]:
    """Map `limits` to the ends of the value range and clip, in the precision of `values`."""
    kind = values.dtype.type
    low, span = kind(limits[0]), kind(limits[1] - limits[0])
    lower, upper = contract.value_range
    if not span > 0:
        return np.full_like(values, lower)
    mapped: NDArray[Any] = np.subtract(values, low)
    with np.errstate(over="ignore"):
        mapped /= span
    np.clip(mapped, kind(0), kind(1), out=mapped)
    if (lower, upper) != (0.0, 1.0):
        mapped *= kind(upper - lower)
        mapped += kind(lower)
    return mapped


def _window(contract: InputContract) -> tuple[float, float]:
    if contract.window is None or not max(map(abs, contract.window)) <= _MAX_MAGNITUDE:
        raise SpecError(f"window is {contract.window}, expected two grey values below 1e30 in magnitude")
    return contract.window


def _positions(count: int, contract: InputContract) -> tuple[float, float]:
    return (
        contract.lower_percentile / 100.0 * (count - 1),
        contract.upper_percentile / 100.0 * (count - 1),
    )


def _histogram_percentiles(counts: NDArray[np.intp], contract: InputContract) -> tuple[float, float]:
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    result = []
    for position in _positions(total, contract):
        rank = math.floor(position)
        below, above = np.searchsorted(cumulative, [rank, min(rank + 1, total - 1)], side="right").tolist()
        result.append(below + (position - rank) * (above - below))
    return result[0], result[1]


def _sample_percentiles(values: NDArray[Any], contract: InputContract) -> tuple[float, float]:
    step = math.ceil(math.sqrt(values.size / _SAMPLE_PX))
    sample = values[::step, ::step].ravel()
    positions = _positions(sample.size, contract)
    ranks = [min(math.floor(p) + k, sample.size - 1) for p in positions for k in (0, 1)]
    ordered = np.partition(sample, ranks)
    below_above = [float(ordered[rank]) for rank in ranks]
    result = [
        below_above[2 * i] + (position - math.floor(position)) * (below_above[2 * i + 1] - below_above[2 * i])
        for i, position in enumerate(positions)
    ]
    return result[0], result[1]
