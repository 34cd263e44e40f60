"""Into which tiles the gates cut an image, and how many blocks that makes: `attention_gate.cu` and `backward.cu`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = [
    "MATRIX_TILES",
    "ROWS_PER_THREAD",
    "TILES",
    "Tile",
    "block_count",
    "choose_tile",
    "pixels_per_thread",
    "tile_macros",
]

#: Window -> pixels below one another that a thread of the fp32 forward pass owns; as in the source's entry points.
ROWS_PER_THREAD: Final = {3: 2, 5: 1, 7: 1}


@dataclass(frozen=True, slots=True)
class Tile:
    """Threads of a block along both axes, the narrowest image that it is for, and buffers of the fp16 kernels."""

    width: int
    height: int
    from_width_px: int
    stages: int = 2


#: By reasoning, not by measurement: rows of 32 threads read whole cache lines; an image that is narrower would leave
#: half of them idle.
TILES: Final = (Tile(32, 8, 24), Tile(16, 8, 0))
#: Of the neighbourhood gate in fp16. The first by measurement on an H100 (`benchmarks/results/kernel-tiles-*`): of
#: five tiles the fastest or within 6 % of it for every window and size; a third buffer gained nothing.
MATRIX_TILES: Final = (Tile(32, 4, 24), Tile(16, 8, 0))


def choose_tile(width_px: int, dilation: int = 1, tiles: tuple[Tile, ...] = TILES) -> Tile:
    """Return the first tile whose width suits an image; dilation splits it into narrower lattices."""
    across = math.ceil(width_px / dilation)
    return next(tile for tile in tiles if across >= tile.from_width_px)


def tile_macros(tile: Tile) -> Mapping[str, int]:
    """Return the macros of the sources that make a tile's module."""
    return {"UNETX_TILE_WIDTH": tile.width, "UNETX_TILE_HEIGHT": tile.height, "UNETX_STAGES": tile.stages}


def pixels_per_thread(window: int, *, half: bool) -> int:
    """Return the pixels below one another that a thread of the forward pass owns; a warp of fp16 owns 2 x 16."""
    return 1 if half else ROWS_PER_THREAD[window]


def block_count(shape: tuple[int, ...], rows: int, dilation: int, tile: Tile) -> int:
    """Count the blocks that cover (N, C, H, W) with `rows` pixels below one another for each thread."""
    images, _, height, width = shape
    down = math.ceil(math.ceil(height / dilation) / (tile.height * rows))
    across = math.ceil(math.ceil(width / dilation) / tile.width)
    return int(down * across * dilation**2 * images)
