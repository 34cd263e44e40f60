"""Image to network input: check, normalise the grey values, letterbox into the input contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import ImageError, SpecError
from unetx_opt.imaging.resize import resize_plane
from unetx_opt.specs import InputContract, Normalization

__all__ = ["MAX_IMAGE_SIDE_PX", "MIN_IMAGE_SIDE_PX", "ImageGeometry", "letterbox", "prepare_image"]

MIN_IMAGE_SIDE_PX: Final = 16
MAX_IMAGE_SIDE_PX: Final = 16384

# Integers that span at most this many grey levels are normalised through a table, exactly.
_TABLE_LEVELS: Final = 65536
_BAND_PX: Final = 1 << 18
# Percentiles of a float image are taken from a regular grid of about this many pixels.
_SAMPLE_PX: Final = 1 << 18
# Beyond it differences overflow float32; no grey value is that large.
_MAX_MAGNITUDE: Final = 1e30
_MAX_PIXEL_ASPECT: Final = 16.0


@dataclass(frozen=True, slots=True)
class ImageGeometry:
    """Where an image lies in the network's input, all in pixels.

    Attributes
    ----------
    source_height, source_width : int
        Size of the image as it was given.
    input_height, input_width : int
        Size of the network's input.
    scaled_height, scaled_width : int
        Size of the image inside the input; the rest is padding.
    top, left : int
        Rows above and columns left of the scaled image.
    """

    source_height: int
    source_width: int
    input_height: int
    input_width: int
    scaled_height: int
    scaled_width: int
    top: int
    left: int


def prepare_image(
    image: NDArray[Any], contract: InputContract, spacing_mm: tuple[float, float] | None = None
) -> tuple[NDArray[np.float32], ImageGeometry]:
    """Bring an image of any size to what an engine reads.

    Parameters
    ----------
    image : numpy.ndarray
        (H, W), integer or float grey values, larger is brighter, sides of 16 to 16384 pixels.
    contract : InputContract
        Size, grey-value mapping and padding of the input.
    spacing_mm : tuple of float, optional
        Distance between the centres of two rows and of two columns. Only their ratio matters: where it is not
        1 the physical aspect is kept. None: unknown, pixels are taken as square.

    Returns
    -------
    image_chw : numpy.ndarray
        (C, height, width) float32, contiguous, within ``contract.value_range`` except for the padding value.
    geometry : ImageGeometry
        What `unetx_opt.imaging.postprocess.restore_logits` needs to go back.

    Raises
    ------
    ImageError
        The array is not a grey image, is too small or too large, has NaN or infinite pixels, or the spacing
        is not positive.

    Notes
    -----
    Grey values are mapped before the image is scaled. PERCENTILE interpolates linearly between order
    statistics (``numpy.percentile``'s default). It is exact for whole numbers, also those stored as floats,
    that span at most 65536 levels: the same picture from an 8-bit PNG and from a float array gives the same
    tensor, bit for bit. For other images the order statistics come from every s-th row and column,
    ``s = ceil(sqrt(H W / 2**18))``, beginning with the first. Where the two percentiles coincide the image's
    minimum and maximum take their place; a constant image becomes the lower end of the value range.
    """
    pixels = _check_pixels(image)
    geometry = letterbox(pixels.shape, contract, spacing_mm)
    normalized = _normalize(pixels, contract)
    scaled = resize_plane(normalized, geometry.scaled_height, geometry.scaled_width)
    shape = (contract.channels, contract.height, contract.width)
    if contract.channels == 1 and scaled.shape == shape[1:]:
        return np.ascontiguousarray(scaled)[np.newaxis], geometry
    image_chw = np.full(shape, contract.padding_value, dtype=np.float32)
    rows = slice(geometry.top, geometry.top + geometry.scaled_height)
    columns = slice(geometry.left, geometry.left + geometry.scaled_width)
    image_chw[:, rows, columns] = scaled
    return image_chw, geometry


def letterbox(
    source_shape: tuple[int, ...], contract: InputContract, spacing_mm: tuple[float, float] | None = None
) -> ImageGeometry:
    """Fit an image into the network's input: aspect kept, centred, as large as possible.

    Parameters
    ----------
    source_shape : tuple of int
        (H, W) in pixels.
    contract : InputContract
        Its height and width.
    spacing_mm : tuple of float, optional
        Row and column spacing, see `prepare_image`.

    Returns
    -------
    ImageGeometry
        The longer side fills the input; the other one is rounded half up and is at least 1 pixel. An odd
        pixel of padding goes to the bottom or to the right.

    Raises
    ------
    ImageError
        The spacing is not two positive numbers, or its ratio is beyond 16.
    """
    height, width = source_shape
    # In units of the column spacing: with square pixels both are whole numbers, so nothing depends on rounding.
    tall, wide = height * _pixel_aspect(spacing_mm), float(width)
    if tall * contract.width >= wide * contract.height:
        scaled_height = contract.height
        scaled_width = _round_length(wide * contract.height / tall, contract.width)
    else:
        scaled_width = contract.width
        scaled_height = _round_length(tall * contract.width / wide, contract.height)
    return ImageGeometry(
        source_height=height,
        source_width=width,
        input_height=contract.height,
        input_width=contract.width,
        scaled_height=scaled_height,
        scaled_width=scaled_width,
        top=(contract.height - scaled_height) // 2,
        left=(contract.width - scaled_width) // 2,
    )


def _round_length(length: float, limit: int) -> int:
    return min(max(1, math.floor(length + 0.5)), limit)


def _check_pixels(image: NDArray[Any]) -> NDArray[Any]:
    pixels = np.asarray(image)
    if pixels.ndim != 2:
        raise ImageError(f"image has shape {pixels.shape}, expected (height, width): pass one grey plane")
    if pixels.dtype.kind not in "iuf":
        raise ImageError(f"image has dtype {pixels.dtype}, expected integer or floating-point grey values")
    if min(pixels.shape) < MIN_IMAGE_SIDE_PX or max(pixels.shape) > MAX_IMAGE_SIDE_PX:
        raise ImageError(
            f"image is {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width), "
            f"expected sides of {MIN_IMAGE_SIDE_PX} to {MAX_IMAGE_SIDE_PX}"
        )
    return pixels


def _pixel_aspect(spacing_mm: tuple[float, float] | None) -> float:
    if spacing_mm is None:
        return 1.0
    row_mm, column_mm = float(spacing_mm[0]), float(spacing_mm[1])
    if not (0.0 < row_mm < math.inf and 0.0 < column_mm < math.inf):
        raise ImageError(
            f"pixel spacing is {row_mm} x {column_mm} mm, expected two positive numbers: "
            "pass None where it is unknown"
        )
    aspect = row_mm / column_mm
    if not 1.0 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        raise ImageError(
            f"pixel spacing is {row_mm} x {column_mm} mm, a ratio beyond {_MAX_PIXEL_ASPECT:g}: "
            "pass None where it is unknown"
        )
    return aspect


def _normalize(pixels: NDArray[Any], contract: InputContract) -> NDArray[np.float32]:
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
