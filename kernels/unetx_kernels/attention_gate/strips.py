"""Which images the fp16 gate walks down in strips, and how: `strips.cu`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unetx_kernels.driver import DeviceArray

__all__ = ["FIRST_ARCHITECTURE", "SOURCE", "STRIP", "Strip", "StripCall", "plan_strips"]

SOURCE: Final = Path(__file__).with_name("strips.cu")
#: Compute capability times 10 from which on the source has code.
FIRST_ARCHITECTURE: Final = 90
#: As in the source: rows of pixels of a step, channels of a product, columns beside a strip.
_STEP, _PRODUCT, _MARGIN = 2, 16, 4
_ALIGNMENT_BYTES: Final = 16
#: What the driver takes of a multiprocessor for each block beside what the block asks for.
_RESERVED_BYTES: Final = 1024
#: Of a grid, along its second and third axis.
_MOST_BLOCKS: Final = 65535
#: A block starts with a wait for memory; it takes about as long as so many rows.
_START_ROWS: Final = 8


@dataclass(frozen=True, slots=True)
class Strip:
    """How wide a strip is, and how many channels of values a block takes at once.

    Attributes
    ----------
    width : int
        Pixels; a multiple of 16.
    channels : int
        At most; a multiple of 16.
    blocks : int
        That a multiprocessor must have shared memory for, or strips are not taken.
    windows : tuple of int
        K that they are taken for; the source has 3 and 5.
    """

    width: int
    channels: int
    blocks: int
    windows: tuple[int, ...] = (3, 5)

    @property
    def threads(self) -> int:
        """Of a block: a warp for 16 pixels of a step."""
        return self.width // _PRODUCT * _STEP * 32

    @property
    def macros(self) -> Mapping[str, int]:
        """The macros of the source that make its module."""
        return {"UNETX_STRIP_WIDTH": self.width}

    def shared_bytes(self, hidden: int, group: int, window: int) -> int:
        """Return the dynamic shared memory of a block, as the source lays it out: rings of rows, and queries."""
        rows = _STEP * ((window + 1) // _STEP + 1)
        plane = rows * (self.width + 2 * _MARGIN) + 8
        keys = _whole_products(hidden)
        return 2 * ((keys + group) * plane + 2 * keys * (_STEP * self.width + 8))


#: By measurement on an H100 (`benchmarks/results/kernel-tiles-*-strips.json`): in windows 3 and 5 it takes 6 to
#: 22 % less time than the best tile; narrower strips are slower in window 5. Window 7 does not fit
#: into 128 registers.
STRIP: Final = Strip(128, 64, 1)


@dataclass(frozen=True, slots=True)
class StripCall:
    """A launch in strips.

    Attributes
    ----------
    strip : Strip
        What it is planned for.
    rows : int
        Of pixels, that a block walks down.
    group : int
        Channels of values of a block.
    grid : tuple of int
        Blocks across the image, down it, and for every image and group.
    shared_bytes : int
        Of a block.
    """

    strip: Strip
    rows: int
    group: int
    grid: tuple[int, int, int]
    shared_bytes: int


def plan_strips(
    inputs: tuple[DeviceArray, ...], window: int, memory: tuple[int, int], strip: Strip = STRIP
) -> StripCall | None:
    """Return the launch for fp16 tensors in NCHW, or None where strips do not suit them.

    Parameters
    ----------
    inputs : tuple of DeviceArray
        theta and phi, (N, D, H, W), then values and all others, (N, C, H, W).
    window : int
        K.
    memory : tuple of int
        Multiprocessors of the GPU, and bytes of shared memory of each.
    strip : Strip
        How wide.
    """
    hidden = inputs[0].shape[1]
    images, channels, height, width = inputs[2].shape
    aligned = all(array.pointer % _ALIGNMENT_BYTES == 0 for array in inputs)
    if not aligned or width % 8 or width < strip.width or window not in strip.windows:
        return None
    multiprocessors, shared_bytes = memory
    group = min(strip.channels, _whole_products(channels))
    wanted = strip.shared_bytes(hidden, group, window)
    across, of_images = math.ceil(width / strip.width), math.ceil(channels / group) * images
    rows = _rows_of_a_block(height, across * of_images, strip.blocks * multiprocessors)
    grid = (across, math.ceil(height / rows), of_images)
    if strip.blocks * (wanted + _RESERVED_BYTES) > shared_bytes or max(grid[1:]) > _MOST_BLOCKS:
        return None
    return StripCall(strip, rows, group, grid, wanted)


@functools.lru_cache(maxsize=256)
def _rows_of_a_block(height: int, columns: int, at_once: int) -> int:
    """Return the rows with which blocks, `at_once` of them at a time, come down the image soonest."""

    def cost(rows: int) -> int:
        return math.ceil(columns * math.ceil(height / rows) / at_once) * (rows + _START_ROWS)

    return min(range(_STEP, max(_STEP, height) + _STEP, _STEP), key=cost)


def _whole_products(channels: int) -> int:
    return math.ceil(channels / _PRODUCT) * _PRODUCT
