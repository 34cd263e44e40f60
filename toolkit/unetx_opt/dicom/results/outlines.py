"""Outlines of a region, exactly along the borders of its pixels."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import ImageError

__all__ = ["MAX_EDGES", "trace_outlines"]

#: Pixel borders of the most ragged mask that is traced; an outline of two lungs has about 2 x 10^4 of them.
MAX_EDGES = 1 << 20


def trace_outlines(region: NDArray[np.bool_]) -> list[NDArray[np.float32]]:
    """Trace the borders between a region and its outside, image edges included.

    Parameters
    ----------
    region : numpy.ndarray
        (H, W) bool.

    Returns
    -------
    list of numpy.ndarray
        Closed polygons, (N, 2) float32 of (column, row), first point repeated at the end. (0, 0) is the outer corner
        of the first pixel and (W, H) that of the last (PS3.3 C.10.5.1.2, units PIXEL). Under the even-odd rule they
        enclose exactly the region's pixels.

    Raises
    ------
    ImageError
        The region has more than `MAX_EDGES` pixel borders.
    """
    ends = _outgoing(region)
    outlines = []
    for start in sorted(ends):
        while ends[start]:
            outlines.append(_walk(start, ends))
    return outlines


def _outgoing(region: NDArray[np.bool_]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Corner (column, row) -> corners that a pixel border leads to, with the region on its right."""
    padded = np.pad(region, 1).astype(np.int8)
    down = np.diff(padded, axis=0)[:, 1:-1]  # (H + 1, W): 1 where the region begins below a horizontal border
    right = np.diff(padded, axis=1)[1:-1]  # (H, W + 1)
    if np.count_nonzero(down) + np.count_nonzero(right) > MAX_EDGES:
        raise ImageError(f"the mask is too ragged to outline: more than {MAX_EDGES} pixel borders")
    ends: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for sign, begin, end in ((1, 0, 1), (-1, 1, 0)):
        for row, column in np.argwhere(down == sign).tolist():
            ends[column + begin, row].append((column + end, row))
        for row, column in np.argwhere(right == sign).tolist():
            ends[column, row + end].append((column, row + begin))
    return ends


def _walk(start: tuple[int, int], ends: dict[tuple[int, int], list[tuple[int, int]]]) -> NDArray[np.float32]:
    """Follow borders until they close, keeping the corners where the direction changes."""
    corners, heading = [start], (0, 0)
    here = start
    while True:
        onward = ends[here].pop()
        turned = (onward[0] - here[0], onward[1] - here[1])
        if turned == heading:
            corners[-1] = onward
        else:
            corners.append(onward)
        here, heading = onward, turned
        if here == start:
            return np.array(corners, dtype=np.float32)
