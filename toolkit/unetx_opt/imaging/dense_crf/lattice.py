"""Gaussian filters over an image's pixels: along its axes, or through a grid of positions and intensities.

For a grey image the features of the bilateral kernel are three (x, y, intensity). Eight-bit intensity has 256
levels, which are the third axis of the grid as they are; only positions are interpolated. A value is spread over
the four nodes around its pixel, the grid is filtered along each axis, and read back with the same weights (a
bilateral grid: Chen, Paris & Durand 2007). Spreading and reading are themselves a blur, of known variance, that is
taken off the filter's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import SpecError
from unetx_opt.imaging.dense_crf.compiled import Loops

__all__ = ["Axis", "BilateralFilter", "Filter", "SmoothingFilter", "make_axis", "make_bilateral", "make_smoothing"]

Image = NDArray[np.float32]

# A Gaussian ends at this many widths: what lies beyond weighs 6e-5 of the whole.
_REACH: Final = 4.0
# Node distances in widths, the most exact first; the first whose grid is small beside the image is taken.
_SPACINGS: Final = (0.5, 2 / 3, 1.0)
# Filtering along the axes costs time in proportion to the width; above this many pixels a grid is faster.
_WIDEST_DIRECT_PX: Final = 12.0
_MOST_NODES: Final = 2**26


class Filter(Protocol):
    """A Gaussian filter over one image's pixels."""

    def add(self, values: Image, scale: Image, out: Image) -> None:
        """Add ``scale * filter(scale * values)`` to `out`; all (H, W) float32 in C order."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Nodes along one axis of an image, node ``i`` at pixel ``i * spacing``.

    Attributes
    ----------
    starts : numpy.ndarray
        (cells + 1) int64: the first pixel of every cell between two nodes, and the axis' length.
    weights : numpy.ndarray
        (length) float32 in [0, 1): the share of the farther node of each pixel's cell.
    taps : numpy.ndarray
        (R + 1) float32: the filter between nodes, its centre first.
    """

    starts: NDArray[np.int64]
    weights: NDArray[np.float32]
    taps: NDArray[np.float32]

    @property
    def nodes(self) -> int:
        """Number of nodes, one more than cells."""
        return len(self.starts)


def make_axis(length: int, width_px: float, spacing_px: float) -> Axis:
    """Lay nodes along an axis for a Gaussian of a width in pixels."""
    position = np.arange(length) / spacing_px
    cell = np.floor(position).astype(np.int64)
    weights = position - cell
    # Spreading over two nodes and reading from two has the variance of two draws between them.
    interpolation = 2 * float(np.mean(weights * (1 - weights)))
    variance = max((width_px / spacing_px) ** 2 - interpolation, 1e-3)
    starts = np.searchsorted(cell, np.arange(cell[-1] + 2)).astype(np.int64)
    return Axis(starts, weights.astype(np.float32), _gaussian_taps(math.sqrt(variance), len(starts) - 1))


@dataclass(frozen=True, slots=True)
class SmoothingFilter:
    """A Gaussian of positions, one axis after the other, zeros outside; see `make_smoothing`.

    Attributes
    ----------
    loops : Loops
        Compiled code.
    taps : numpy.ndarray
        (R + 1) float32: one half of the filter, its centre first; R is a multiple of 4.
    padded, tall : numpy.ndarray
        (W + 2 R) and (H + 2 R, W) float32: scratch of one call after the other, zero outside the image.
    """

    loops: Loops
    taps: NDArray[np.float32]
    padded: NDArray[np.float32]
    tall: NDArray[np.float32]

    def add(self, values: Image, scale: Image, out: Image) -> None:
        """See `Filter`."""
        self.loops.smooth_rows(values, scale, self.taps, self.padded, self.tall)
        self.loops.smooth_columns(self.tall, self.taps, scale, out)


@dataclass(frozen=True, slots=True)
class BilateralFilter:
    """A Gaussian of positions and intensity through a grid; see `make_bilateral`.

    Attributes
    ----------
    loops : Loops
        Compiled code.
    bins_hw : numpy.ndarray
        (H, W) uint8: each pixel's place on the intensity axis.
    bin_taps : numpy.ndarray
        (R + 1) float32: the filter along that axis.
    bins : int
        Its length.
    rows, columns : Axis
        The nodes.
    """

    loops: Loops
    bins_hw: NDArray[np.uint8]
    bin_taps: NDArray[np.float32]
    bins: int
    rows: Axis
    columns: Axis

    def add(self, values: Image, scale: Image, out: Image) -> None:
        """See `Filter`."""
        rows, columns = (self.rows.starts, self.rows.weights), (self.columns.starts, self.columns.weights)
        grid = np.zeros((self.rows.nodes, self.columns.nodes, self.bins), dtype=np.float32)
        other = np.empty_like(grid)
        self.loops.splat((values, scale, self.bins_hw), rows, columns, grid)
        if self.bins > 1:
            padded = np.zeros(self.bins + 2 * len(self.bin_taps) - 2, dtype=np.float32)
            self.loops.blur_levels(grid, self.bin_taps, padded, other)
            grid, other = other, grid
        self.loops.blur_nodes(grid, self.columns.taps, other)
        by_row = (1, self.rows.nodes, self.columns.nodes * self.bins)
        self.loops.blur_nodes(other.reshape(by_row), self.rows.taps, grid.reshape(by_row))
        self.loops.add_slice(grid, (scale, self.bins_hw), rows, columns, out)


def make_smoothing(loops: Loops, size: tuple[int, int], width_px: float) -> Filter:
    """Make the filter of the smoothness term for images of one size (H, W)."""
    if width_px > _WIDEST_DIRECT_PX:
        # All pixels have one intensity: the grid is two-dimensional.
        return make_bilateral(loops, np.zeros(size, dtype=np.uint8), width_px, np.inf)
    taps = _gaussian_taps(width_px, 10**6)
    missing = -(len(taps) - 1) % 4  # the loops take four taps a pass
    taps = np.pad(taps, (0, missing))
    height, width = size
    margin = 2 * (len(taps) - 1)
    padded, tall = np.zeros(width + margin, dtype=np.float32), np.zeros((height + margin, width), dtype=np.float32)
    return SmoothingFilter(loops, taps, padded, tall)


def make_bilateral(loops: Loops, image_hw: NDArray[np.uint8], width_px: float, width_levels: float) -> Filter:
    """Make the filter of the bilateral term for one image.

    Raises
    ------
    SpecError
        The width in pixels is so small for the size of the image that the grid would not fit memory.
    """
    bin_width, spacing_px = _choose_grid(image_hw, width_px, width_levels)
    bins_hw = (image_hw // np.uint8(bin_width)).astype(np.uint8, copy=False)
    # A bin stands for its mean: spreading and reading have the variance of that rounding, twice.
    variance = (width_levels**2 - (bin_width**2 - 1) / 6) / bin_width**2
    bins = int(bins_hw.max()) + 1
    rows, columns = (make_axis(length, width_px, spacing_px) for length in image_hw.shape)
    return BilateralFilter(loops, bins_hw, _gaussian_taps(math.sqrt(variance), bins - 1), bins, rows, columns)


def _choose_grid(image_hw: NDArray[np.uint8], width_px: float, width_levels: float) -> tuple[int, float]:
    levels = int(image_hw.max()) + 1
    widest_bin = 1 if levels == 1 else min(max(1, int(width_levels / 2)), 16)
    for spacing in _SPACINGS:
        spacing_px = max(1.0, width_px * spacing)
        cells = math.prod(int(length / spacing_px) + 2 for length in image_hw.shape)
        for bin_width in range(1, widest_bin + 1):
            nodes = cells * (levels // bin_width + 1)
            if nodes <= 2 * image_hw.size + 2**16:
                return bin_width, spacing_px
    if nodes > _MOST_NODES:
        raise SpecError(
            f"a width of {width_px:g} px in position and {width_levels:.3g} levels in intensity needs a grid of "
            f"{nodes} nodes on an image of {image_hw.shape}, expected at most {_MOST_NODES}: raise bilateral_sxy or "
            "bilateral_srgb, or choose the backend pydensecrf"
        )
    return bin_width, spacing_px


def _gaussian_taps(width: float, longest: int) -> NDArray[np.float32]:
    reach = 0 if longest == 0 else min(longest, math.ceil(_REACH * width))
    return np.exp(-0.5 * (np.arange(reach + 1) / width) ** 2).astype(np.float32)
