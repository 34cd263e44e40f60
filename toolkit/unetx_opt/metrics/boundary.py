"""How far two mask boundaries lie apart: 95 % Hausdorff distance and average symmetric surface distance.

The boundary of a mask is its pixels that have a pixel outside the mask, or outside the image, among their four
neighbours; distances run between pixel centres. These are the definitions of MONAI, and of Metrics Reloaded
(Maier-Hein, Reinke et al., Nature Methods 21, 2024), with which the figures can be compared.

Two empty masks have distance 0. An empty and a non-empty one have distance infinity: nothing finite is right, and
whoever averages such figures must decide what they mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from unetx_opt.errors import DataError
from unetx_opt.metrics.overlap import class_mask

__all__ = ["SurfaceDistances", "assd_mm", "assd_px", "hd95_mm", "hd95_px", "surface_distances"]

_PIXELS: Final = (1.0, 1.0)
# Share of the window's pixels on a boundary beyond which the distance transform is faster than the tree.
_TREE_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Distances between two boundaries, in the unit of the spacing they were measured with.

    Attributes
    ----------
    first_to_second : numpy.ndarray
        (N,) float64: for each boundary pixel of the first mask, the distance to the nearest one of the second.
    second_to_first : numpy.ndarray
        (M,) float64: the other way round.
    """

    first_to_second: NDArray[np.float64]
    second_to_first: NDArray[np.float64]

    def hausdorff(self, percent: float = 95.0) -> float:
        """Percentile Hausdorff distance: the larger one of the two directed percentiles.

        Parameters
        ----------
        percent : float
            0 to 100; 100 is the Hausdorff distance itself. Between order statistics it interpolates linearly
            (``numpy.percentile``'s default, as MONAI does).
        """
        if not self.first_to_second.size:
            return 0.0
        if not np.isfinite(self.first_to_second[0]):
            return float("inf")
        return float(max(np.percentile(self.first_to_second, percent), np.percentile(self.second_to_first, percent)))

    def average(self) -> float:
        """Average symmetric surface distance: the mean over the boundary pixels of both masks together."""
        count = self.first_to_second.size + self.second_to_first.size
        if not count:
            return 0.0
        return float((self.first_to_second.sum() + self.second_to_first.sum()) / count)


def hd95_px(first: NDArray[Any], second: NDArray[Any], class_index: int | None = None) -> float:
    """95 % Hausdorff distance in pixels (Huttenlocher et al. 1993, with the 95th for the 100th percentile).

    Parameters
    ----------
    first, second : numpy.ndarray
        (H, W) integer or bool masks; the order does not matter.
    class_index : int, optional
        The label to compare; None compares what is not 0.

    Returns
    -------
    float
        0 or more; 0 for two empty masks, infinite where exactly one is empty.

    Raises
    ------
    DataError
        The shapes differ or are not 2-D, or a mask holds floating-point values.
    """
    return _distances(first, second, class_index, _PIXELS).hausdorff(95.0)


def assd_px(first: NDArray[Any], second: NDArray[Any], class_index: int | None = None) -> float:
    """Average symmetric surface distance in pixels (Heimann et al. 2009).

    Parameters, the empty cases and errors are those of `hd95_px`.
    """
    return _distances(first, second, class_index, _PIXELS).average()


def hd95_mm(
    first: NDArray[Any],
    second: NDArray[Any],
    spacing_mm: tuple[float, float],
    class_index: int | None = None,
) -> float:
    """95 % Hausdorff distance in millimetres.

    Parameters
    ----------
    first, second, class_index
        As for `hd95_px`.
    spacing_mm : tuple of float
        Distance between the centres of two rows and of two columns.

    Raises
    ------
    DataError
        As `hd95_px`, or the spacing is not two positive numbers.
    """
    return _distances(first, second, class_index, spacing_mm).hausdorff(95.0)


def assd_mm(
    first: NDArray[Any],
    second: NDArray[Any],
    spacing_mm: tuple[float, float],
    class_index: int | None = None,
) -> float:
    """Average symmetric surface distance in millimetres; parameters and errors as for `hd95_mm`."""
    return _distances(first, second, class_index, spacing_mm).average()


def surface_distances(
    first: NDArray[Any], second: NDArray[Any], spacing_mm: tuple[float, float] | None = None
) -> SurfaceDistances:
    """Measure both directed sets of boundary distances, for several figures from one pass.

    Parameters
    ----------
    first, second : numpy.ndarray
        (H, W) integer or bool masks; what is not 0 is foreground.
    spacing_mm : tuple of float, optional
        Row and column spacing; None measures in pixels.

    Returns
    -------
    SurfaceDistances
        Both empty where both masks are empty. Where exactly one is, both sets hold one infinite distance.

    Raises
    ------
    DataError
        As `hd95_mm`.
    """
    return _distances(first, second, None, _PIXELS if spacing_mm is None else spacing_mm)


def _distances(
    first: NDArray[Any], second: NDArray[Any], class_index: int | None, spacing: tuple[float, float]
) -> SurfaceDistances:
    if first.shape != second.shape or first.ndim != 2:
        raise DataError(f"masks have shapes {first.shape} and {second.shape}, expected the same (height, width)")
    if len(spacing) != 2 or not all(0.0 < length < float("inf") for length in spacing):
        raise DataError(f"pixel spacing is {spacing}, expected two positive numbers of millimetres (row, column)")
    one, other = class_mask(first, class_index), class_mask(second, class_index)
    window = _bounding_window(one | other)
    if window is None:
        nothing = np.zeros(0)
        return SurfaceDistances(nothing, nothing)
    # All boundary pixels lie in the window, so what is outside it cannot change a distance.
    edge, other_edge = _boundary(one[window]), _boundary(other[window])
    if not edge.any() or not other_edge.any():
        infinite = np.full(1, np.inf)
        return SurfaceDistances(infinite, infinite)
    return SurfaceDistances(_nearest(edge, other_edge, spacing), _nearest(other_edge, edge, spacing))


def _bounding_window(mask: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # Outside the window there is no foreground: a frame of background stands for it and for the image's border.
    framed = np.pad(mask, 1)
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inside


def _nearest(
    edge: NDArray[np.bool_], other_edge: NDArray[np.bool_], spacing: tuple[float, float]
) -> NDArray[np.float64]:
    """Distance from each pixel of `edge`, in row-major order, to the nearest one of `other_edge`."""
    distances = np.zeros(np.count_nonzero(edge))
    apart = ~other_edge[edge]  # pixels on both boundaries keep their 0
    rows, columns = (positions[apart] for positions in np.nonzero(edge))
    if not rows.size:
        return distances
    # The tree's cost grows with the boundary and the transform's with the area: smooth masks have little boundary.
    if max(np.count_nonzero(edge), np.count_nonzero(other_edge)) <= _TREE_SHARE * edge.size:
        points = np.argwhere(other_edge) * spacing
        queries = np.stack([rows, columns], axis=1) * spacing
        distances[apart] = cKDTree(points).query(queries)[0]
        return distances
    # The transform's own distances cost twice as much as its indices, and are needed on the boundary only.
    nearest = distance_transform_edt(~other_edge, sampling=spacing, return_distances=False, return_indices=True)[
        :, rows, columns
    ]
    distances[apart] = np.hypot((nearest[0] - rows) * spacing[0], (nearest[1] - columns) * spacing[1])
    return distances
