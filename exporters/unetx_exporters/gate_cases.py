"""The images on which an engine strays most, cut down to what a report shows of them.

A gate goes through its images one at a time; of each, only a small overview and a window around the largest
difference stay in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from unetx_opt.metrics.gates import ComparedMasks, ImageDrift

__all__ = ["DETAIL_PX", "OVERVIEW_PX", "CaseView", "DriftCase", "cut_case", "keep_worst"]

#: Longest side of an overview, and side of the window around the largest difference.
OVERVIEW_PX: Final = 384
DETAIL_PX: Final = 48
# Differences are blurred by this much to find where most of them lie.
_BLUR_PX: Final = 6.0
# Frame round the masks in the overview, as a share of their longer side.
_MARGIN: Final = 0.08


@dataclass(frozen=True, slots=True)
class CaseView:
    """A part of an image with its masks, all (h, w) on one grid.

    Attributes
    ----------
    grey : numpy.ndarray
        uint8 grey values.
    reference, engine, difference : numpy.ndarray
        bool masks. In an overview a pixel is in `difference` where any pixel that it stands for differs.
    """

    grey: NDArray[np.uint8]
    reference: NDArray[np.bool_]
    engine: NDArray[np.bool_]
    difference: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DriftCase:
    """One image on which the masks of one class differ.

    Attributes
    ----------
    drift : ImageDrift
        Its figures.
    differing_px : int
        Number of pixels that are in one mask only.
    overview : CaseView
        The image round both masks, brought to `OVERVIEW_PX` on its longer side.
    overview_zoom : float
        Overview pixels per source pixel, in each direction.
    detail : CaseView
        The source pixels where most of the difference lies, up to `DETAIL_PX` square.
    detail_corner : tuple of int
        Row and column of the detail's first pixel in the overview; it can lie outside.
    """

    drift: ImageDrift
    differing_px: int
    overview: CaseView
    overview_zoom: float
    detail: CaseView
    detail_corner: tuple[int, int]


def cut_case(drift: ImageDrift, pixels: NDArray[Any], masks: ComparedMasks) -> DriftCase | None:
    """Cut one image down for a report.

    Parameters
    ----------
    drift : ImageDrift
        Figures of this image and class.
    pixels : numpy.ndarray
        (H, W) grey values.
    masks : ComparedMasks
        Of this class, on the same grid.

    Returns
    -------
    DriftCase or None
        None where the two masks are equal: there is nothing to see.
    """
    reference, engine = masks.reference != 0, masks.engine != 0
    difference = reference ^ engine
    count = int(np.count_nonzero(difference))
    if not count:
        return None
    view = CaseView(_grey_bytes(pixels), reference, engine, difference)
    rows, columns = _frame(reference | engine)
    zoom = OVERVIEW_PX / max(rows.stop - rows.start, columns.stop - columns.start)
    density = gaussian_filter(difference.astype(np.float32), _BLUR_PX, mode="constant")
    densest = np.unravel_index(np.argmax(density), difference.shape)
    top, left = (
        max(0, min(int(centre) - DETAIL_PX // 2, side - DETAIL_PX))
        for centre, side in zip(densest, difference.shape, strict=True)
    )
    return DriftCase(
        drift=drift,
        differing_px=count,
        overview=_fit_view(_cut(view, rows, columns)),
        overview_zoom=zoom,
        detail=_cut(view, slice(top, top + DETAIL_PX), slice(left, left + DETAIL_PX)),
        detail_corner=(round((top - rows.start) * zoom), round((left - columns.start) * zoom)),
    )


def keep_worst(
    kept: tuple[DriftCase, ...], drift: ImageDrift, pixels: NDArray[Any], masks: ComparedMasks, count: int
) -> tuple[DriftCase, ...]:
    """Add one image to the worst ones where it belongs there.

    Parameters
    ----------
    kept : tuple of DriftCase
        The worst so far, the worst first.
    drift, pixels, masks
        As for `cut_case`, which is called only where the image is kept.
    count : int
        How many to keep; of equally severe ones, those that came first.
    """
    full = len(kept) >= count
    if not count or (full and drift.severity <= kept[-1].drift.severity):
        return kept
    case = cut_case(drift, pixels, masks)
    if case is None:
        return kept
    return tuple(sorted((*kept, case), key=lambda one: one.drift.severity, reverse=True)[:count])


def _grey_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = np.percentile(pixels, [0.5, 99.5])
    if not high > low:
        return np.zeros(pixels.shape, dtype=np.uint8)
    scaled = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    grey: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return grey


def _frame(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns of a square round a mask, as far as the image reaches."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    bounds = [(int(found[0]), int(found[-1]) + 1) for found in (rows, columns)]
    side = max(DETAIL_PX, round((1 + 2 * _MARGIN) * max(stop - start for start, stop in bounds)))
    top, left = (
        max(0, min((start + stop - side) // 2, length - side))
        for (start, stop), length in zip(bounds, mask.shape, strict=True)
    )
    return slice(top, min(top + side, mask.shape[0])), slice(left, min(left + side, mask.shape[1]))


def _cut(view: CaseView, rows: slice, columns: slice) -> CaseView:
    # Copies, so that the view does not keep the whole image alive.
    return CaseView(
        grey=view.grey[rows, columns].copy(),
        reference=view.reference[rows, columns].copy(),
        engine=view.engine[rows, columns].copy(),
        difference=view.difference[rows, columns].copy(),
    )


def _fit_view(view: CaseView) -> CaseView:
    return CaseView(
        grey=np.rint(_fit_plane(view.grey)).astype(np.uint8),
        reference=_fit_plane(view.reference) >= 0.5,
        engine=_fit_plane(view.engine) >= 0.5,
        difference=_fit_plane(view.difference) > 0.0,
    )


def _fit_plane(plane: NDArray[Any]) -> NDArray[np.float32]:
    """Resample to `OVERVIEW_PX` on the longer side; each pixel is the mean of those that it stands for."""
    scale = OVERVIEW_PX / max(plane.shape)
    height, width = (max(1, round(side * scale)) for side in plane.shape)
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32)
