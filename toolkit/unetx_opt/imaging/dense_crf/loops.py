"""The inner loops of the grid backend, written for a compiler and readable as plain Python.

All images are (H, W) float32 in C order and all loops run in one fixed order, so equal inputs give equal bits.
Loops only: what a spacing, a weight or a norm is, `unetx_opt.imaging.dense_crf.lattice` says.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["add_slice", "blur_levels", "blur_nodes", "smooth_columns", "smooth_rows", "splat", "tanh_half"]

Array = NDArray[Any]

# A rational function of odd degree 13 over even degree 6, within 4e-7 of tanh everywhere (the coefficients that
# Eigen and XLA use for float32). Unlike a call of tanh it becomes vector instructions.
_LIMIT: Final = np.float32(7.90531110763549805)
_A1, _A3, _A5 = np.float32(4.89352455891786e-03), np.float32(6.37261928875436e-04), np.float32(1.48572235717979e-05)
_A7, _A9 = np.float32(5.12229709037114e-08), np.float32(-8.60467152213735e-11)
_A11, _A13 = np.float32(2.00018790482477e-13), np.float32(-2.76076847742355e-16)
_B0, _B2 = np.float32(4.89352518554385e-03), np.float32(2.26843463243900e-03)
_B4, _B6 = np.float32(1.18534705686654e-04), np.float32(1.19825839466702e-06)
_HALF: Final = np.float32(0.5)
_ZERO: Final = np.float32(0)


def tanh_half(logits: Array, out: Array) -> None:
    """Write tanh(logit / 2), the probability of the one class less that of the other; both (H, W)."""
    for y in range(logits.shape[0]):
        for x in range(logits.shape[1]):
            t = min(max(logits[y, x] * _HALF, -_LIMIT), _LIMIT)
            s = t * t
            above = _A13 * s + _A11
            above = above * s + _A9
            above = above * s + _A7
            above = above * s + _A5
            above = above * s + _A3
            above = above * s + _A1
            below = _B6 * s + _B4
            below = below * s + _B2
            below = below * s + _B0
            out[y, x] = t * above / below


def smooth_rows(values: Array, scale: Array, taps: Array, padded: Array, tall: Array) -> None:
    """Filter ``values * scale`` along x with zeros outside.

    `taps` (R + 1) is one half of a symmetric filter, its centre first, R a multiple of 4. `padded` (W + 2 R) has
    zeros in its first and last R places. `tall` (H + 2 R, W) receives the result from row R on.
    """
    height, width = values.shape
    reach = taps.shape[0] - 1
    for y in range(height):
        out = tall[reach + y]
        for x in range(width):
            padded[reach + x] = values[y, x] * scale[y, x]
        for x in range(width):
            out[x] = padded[reach + x] * taps[0]
        for k in range(1, reach + 1):
            tap = taps[k]
            low, high = padded[reach - k :], padded[reach + k :]
            for x in range(width):
                out[x] += tap * (low[x] + high[x])


def smooth_columns(tall: Array, taps: Array, scale: Array, out: Array) -> None:
    """Filter along y and add to `out`, times `scale`; `tall` and `taps` as in `smooth_rows`, outer R rows zero."""
    height, width = out.shape
    reach = taps.shape[0] - 1
    line = np.empty(width, dtype=np.float32)
    for y in range(height):
        centre = tall[reach + y]
        for x in range(width):
            line[x] = centre[x] * taps[0]
        # Four taps a pass: the sum is then read and written once for every eight rows.
        for k in range(1, reach + 1, 4):
            t1, t2, t3, t4 = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
            above, below = reach + y - k, reach + y + k
            a1, a2, a3, a4 = tall[above], tall[above - 1], tall[above - 2], tall[above - 3]
            b1, b2, b3, b4 = tall[below], tall[below + 1], tall[below + 2], tall[below + 3]
            for x in range(width):
                near = t1 * (a1[x] + b1[x]) + t2 * (a2[x] + b2[x])
                far = t3 * (a3[x] + b3[x]) + t4 * (a4[x] + b4[x])
                line[x] += near + far
        for x in range(width):
            out[y, x] += line[x] * scale[y, x]


def splat(
    image: tuple[Array, Array, Array], rows: tuple[Array, Array], columns: tuple[Array, Array], grid: Array
) -> None:
    """Add ``values * scale`` of every pixel to the four nodes around it, at the level of its intensity.

    `image` is values, scale and levels (uint8), each (H, W). `rows` is the first row of every cell (cells + 1) and
    the weight of every row's lower node (H); `columns` likewise. `grid` (rows of nodes, columns, levels) must be
    zero. Four sums of one cell and level lie side by side: a pixel then touches one cache line.
    """
    values, scale, levels = image
    row_starts, row_weights = rows
    column_starts, column_weights = columns
    cells, bins = column_starts.shape[0] - 1, grid.shape[2]
    blocks = np.empty((cells, bins, 4), dtype=np.float32)
    for row in range(row_starts.shape[0] - 1):
        blocks[:] = _ZERO
        # Whole image rows, not cell by cell: memory is then read in order.
        for y in range(row_starts[row], row_starts[row + 1]):
            weight = row_weights[y]
            for cell in range(cells):
                block = blocks[cell]
                for x in range(column_starts[cell], column_starts[cell + 1]):
                    value = values[y, x] * scale[y, x]
                    level = levels[y, x]
                    right = value * column_weights[x]
                    left = value - right
                    below_left, below_right = left * weight, right * weight
                    block[level, 0] += left - below_left
                    block[level, 1] += right - below_right
                    block[level, 2] += below_left
                    block[level, 3] += below_right
        for cell in range(cells):
            block = blocks[cell]
            for level in range(bins):
                grid[row, cell, level] += block[level, 0]
                grid[row, cell + 1, level] += block[level, 1]
                grid[row + 1, cell, level] += block[level, 2]
                grid[row + 1, cell + 1, level] += block[level, 3]


def add_slice(
    grid: Array, image: tuple[Array, Array], rows: tuple[Array, Array], columns: tuple[Array, Array], out: Array
) -> None:
    """Add to `out` the value of the grid at every pixel, times `scale`; arguments as in `splat`."""
    scale, levels = image
    row_starts, row_weights = rows
    column_starts, column_weights = columns
    cells, bins = column_starts.shape[0] - 1, grid.shape[2]
    blocks = np.empty((cells, bins, 4), dtype=np.float32)
    for row in range(row_starts.shape[0] - 1):
        # Differences between the nodes, so that a pixel costs three multiplications.
        for cell in range(cells):
            block = blocks[cell]
            for level in range(bins):
                corner, under = grid[row, cell, level], grid[row + 1, cell, level]
                across = grid[row, cell + 1, level] - corner
                block[level, 0] = corner
                block[level, 1] = across
                block[level, 2] = under - corner
                block[level, 3] = grid[row + 1, cell + 1, level] - under - across
        for y in range(row_starts[row], row_starts[row + 1]):
            weight = row_weights[y]
            for cell in range(cells):
                block = blocks[cell]
                for x in range(column_starts[cell], column_starts[cell + 1]):
                    level = levels[y, x]
                    start = block[level, 0] + weight * block[level, 2]
                    slope = block[level, 1] + weight * block[level, 3]
                    out[y, x] += scale[y, x] * (start + column_weights[x] * slope)


def blur_levels(grid: Array, taps: Array, padded: Array, out: Array) -> None:
    """Filter along the levels, the last axis, with zeros outside; `taps` and `padded` as in `smooth_rows`."""
    levels = grid.shape[2]
    reach = taps.shape[0] - 1
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            for level in range(levels):
                padded[reach + level] = grid[row, column, level]
            for level in range(levels):
                out[row, column, level] = padded[reach + level] * taps[0]
            for k in range(1, reach + 1):
                tap = taps[k]
                low, high = padded[reach - k :], padded[reach + k :]
                for level in range(levels):
                    out[row, column, level] += tap * (low[level] + high[level])


def blur_nodes(grid: Array, taps: Array, out: Array) -> None:
    """Filter along the middle of three axes with zeros outside; `taps` as in `smooth_rows`."""
    outer, nodes, inner = grid.shape
    reach = taps.shape[0] - 1
    for i in range(outer):
        for node in range(nodes):
            for j in range(inner):
                out[i, node, j] = grid[i, node, j] * taps[0]
            for other in range(max(0, node - reach), min(nodes, node + reach + 1)):
                if other != node:
                    tap = taps[abs(other - node)]
                    for j in range(inner):
                        out[i, node, j] += tap * grid[i, other, j]
