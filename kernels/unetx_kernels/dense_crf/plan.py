"""What the kernels are given beside the image: nodes along the axes, filters, and how fine the grid is.

The same rules as those of the processor's backend, `unetx_opt.imaging.dense_crf.lattice`, which says why they are so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unetx_kernels.dense_crf.reference import Energies
from unetx_kernels.errors import KernelError

__all__ = ["MOST_CLASSES", "Axis", "CrfPlan", "plan_crf", "shared_levels"]

MOST_CLASSES: Final = 8
_MOST_LEVELS: Final = 256
_REACH: Final = 4.0
_SPACINGS: Final = (0.5, 2 / 3, 1.0)
_MOST_NODES: Final = 2**26


@dataclass(frozen=True, slots=True)
class Axis:
    """Nodes along one axis, and the filter between them.

    Attributes
    ----------
    cells : numpy.ndarray
        (length) int32: the cell of every pixel.
    weights : numpy.ndarray
        (length) float32 in [0, 1): the share of its farther node.
    starts : numpy.ndarray
        (cells + 1) int32: the first pixel of every cell, and the length.
    taps : numpy.ndarray
        (reach + 1) float32: one half of the filter, its centre first.
    """

    cells: NDArray[np.int32]
    weights: NDArray[np.float32]
    starts: NDArray[np.int32]
    taps: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CrfPlan:
    """Everything that depends on the size of the image and the energies, not on its pixels.

    Attributes
    ----------
    energies : Energies
        Widths and weights.
    smooth_taps : numpy.ndarray
        (reach + 1) float32: the filter of the smoothness term.
    level_taps : numpy.ndarray
        (reach + 1) float32: the filter along intensity.
    bin_width, bins : int
        8-bit levels in one level of the grid, and the grid's levels.
    rows, columns : Axis
        The nodes.
    """

    energies: Energies
    smooth_taps: NDArray[np.float32]
    level_taps: NDArray[np.float32]
    bin_width: int
    bins: int
    rows: Axis
    columns: Axis


def plan_crf(size: tuple[int, int], energies: Energies, levels: int = 256) -> CrfPlan:
    """Choose the grid for images of one size.

    Parameters
    ----------
    size : tuple of int
        (H, W).
    energies : Energies
        Widths and weights.
    levels : int
        Levels of intensity of the image, its largest one plus 1; 256 suits every image.

    Raises
    ------
    KernelError
        The widths are so small for the size of the image that the grid would not fit memory.
    """
    width_levels = energies.bilateral_srgb / math.sqrt(3)
    bin_width, spacing_px = _choose_grid(size, energies.bilateral_sxy, width_levels, levels)
    variance = (width_levels**2 - (bin_width**2 - 1) / 6) / bin_width**2
    bins = (levels - 1) // bin_width + 1
    rows, columns = (_make_axis(length, energies.bilateral_sxy, spacing_px) for length in size)
    smooth_taps = _gaussian_taps(energies.smoothness_sxy, max(size) - 1)
    return CrfPlan(
        energies, smooth_taps, _gaussian_taps(math.sqrt(variance), bins - 1), bin_width, bins, rows, columns
    )


def shared_levels(size: tuple[int, int], energies: Energies, levels: int) -> int:
    """Return 256 where that changes nothing but room for levels that an image does not have, else its own levels.

    Images of one size then have one plan, whatever their brightest pixel is.
    """
    width_levels = energies.bilateral_srgb / math.sqrt(3)
    own, every = (_choose_grid(size, energies.bilateral_sxy, width_levels, count) for count in (levels, _MOST_LEVELS))
    return _MOST_LEVELS if own == every else levels


def _choose_grid(size: tuple[int, int], width_px: float, width_levels: float, levels: int) -> tuple[int, float]:
    widest_bin = 1 if levels == 1 else min(max(1, int(width_levels / 2)), 16)
    for spacing in _SPACINGS:
        spacing_px = max(1.0, width_px * spacing)
        cells = math.prod(int(length / spacing_px) + 2 for length in size)
        for bin_width in range(1, widest_bin + 1):
            nodes = cells * (levels // bin_width + 1)
            if nodes <= 2 * math.prod(size) + 2**16:
                return bin_width, spacing_px
    if nodes > _MOST_NODES:
        raise KernelError(
            f"a width of {width_px:g} px and {width_levels:.3g} levels needs a grid of {nodes} nodes on an image of "
            f"{size}, expected at most {_MOST_NODES}: raise bilateral_sxy or bilateral_srgb"
        )
    return bin_width, spacing_px


def _make_axis(length: int, width_px: float, spacing_px: float) -> Axis:
    position = np.arange(length) / spacing_px
    cell = np.floor(position).astype(np.int32)
    weights = position - cell
    interpolation = 2 * float(np.mean(weights * (1 - weights)))
    variance = max((width_px / spacing_px) ** 2 - interpolation, 1e-3)
    starts = np.searchsorted(cell, np.arange(cell[-1] + 2)).astype(np.int32)
    return Axis(cell, weights.astype(np.float32), starts, _gaussian_taps(math.sqrt(variance), len(starts) - 1))


def _gaussian_taps(width: float, longest: int) -> NDArray[np.float32]:
    reach = 0 if longest == 0 else min(longest, math.ceil(_REACH * width))
    return np.exp(-0.5 * (np.arange(reach + 1) / width) ** 2).astype(np.float32)
