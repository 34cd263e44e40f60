"""Image to network input: check, normalise the grey values, letterbox into the input contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import ImageError
from unetx_opt.imaging.grey import normalize_grey
from unetx_opt.imaging.resize import resize_plane
from unetx_opt.specs import InputContract

__all__ = ["MAX_IMAGE_SIDE_PX", "MIN_IMAGE_SIDE_PX", "ImageGeometry", "letterbox", "prepare_image"]

MIN_IMAGE_SIDE_PX: Final = 16
MAX_IMAGE_SIDE_PX: Final = 16384

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
    Grey values are mapped first, by `unetx_opt.imaging.grey.normalize_grey`; then the image is scaled, by
    `unetx_opt.imaging.resize.resize_plane`. An image that has the size of the input is not resampled.
    """
    pixels = _check_pixels(image)
    geometry = letterbox(pixels.shape, contract, spacing_mm)
    normalized = normalize_grey(pixels, contract)
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
