"""The attention gates on a GPU: which entry point, which tile, which grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unetx_kernels.driver import DeviceArray, Gpu
from unetx_kernels.errors import KernelError
from unetx_kernels.nvcc import Compilation, cached_binary, find_nvcc

__all__ = [
    "BACKWARD_SOURCE",
    "FORWARD_SOURCE",
    "ROWS_PER_THREAD",
    "TILES",
    "GateKernels",
    "Tile",
    "block_count",
    "choose_tile",
    "open_kernels",
]

FORWARD_SOURCE: Final = Path(__file__).with_name("attention_gate.cu")
BACKWARD_SOURCE: Final = Path(__file__).with_name("backward.cu")
#: Window -> pixels below one another that a thread owns; as in the entry points of the source.
ROWS_PER_THREAD: Final = {3: 2, 5: 1, 7: 1}
_MOST_BLOCKS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tile:
    """Threads of a block along both axes, and the narrowest image that it is for."""

    width: int
    height: int
    from_width_px: int


#: By reasoning, not yet by measurement: rows of 32 threads read whole cache lines; an image that is narrower would
#: leave half of them idle.
TILES: Final = (Tile(32, 8, 24), Tile(16, 8, 0))


def choose_tile(width_px: int, dilation: int = 1) -> Tile:
    """Return the first tile whose width suits an image; dilation splits it into narrower lattices."""
    across = math.ceil(width_px / dilation)
    return next(tile for tile in TILES if across >= tile.from_width_px)


def block_count(shape: tuple[int, ...], window: int, dilation: int, tile: Tile) -> int:
    """Count the blocks that cover (N, C, H, W) for the neighbourhood gate."""
    images, _, height, width = shape
    down = math.ceil(math.ceil(height / dilation) / (tile.height * ROWS_PER_THREAD[window]))
    across = math.ceil(math.ceil(width / dilation) / tile.width)
    return int(down * across * dilation**2 * images)


@dataclass(frozen=True, slots=True)
class GateKernels:
    """The compiled gates of one tile shape, in the context they were loaded in."""

    gpu: Gpu
    tile: Tile
    module: Any

    def neighbourhood(
        self,
        inputs: tuple[DeviceArray, DeviceArray, DeviceArray],
        out: DeviceArray,
        window: int,
        *,
        dilation: int = 1,
        residual: DeviceArray | None = None,
        stream: Any = None,
    ) -> None:
        """Start the neighbourhood gate of `reference.neighbourhood_gate`; `out` holds it once the stream is done.

        Parameters
        ----------
        inputs : tuple of DeviceArray
            theta and phi, (N, D, H, W), and values, (N, C, H, W).
        out : DeviceArray
            (N, C, H, W); shares no memory with the others.
        window, dilation : int
            3, 5 or 7, and 1 or more.
        residual : DeviceArray or None
            (N, C, H, W).
        stream : object or None
            Of `Gpu.stream`; None is the default stream.

        Raises
        ------
        KernelError
            Shapes, types or layouts differ, or window or dilation is out of range.
        """
        theta, phi, values = inputs
        _check_same("theta and phi", theta, phi)
        _check_same("values, out and residual", values, out, *([] if residual is None else [residual]))
        if window not in ROWS_PER_THREAD or dilation < 1:
            raise KernelError(f"window is {window} and dilation {dilation}, expected 3, 5 or 7 and at least 1")
        pixels = (values.shape[0], *values.shape[2:])
        if (theta.shape[0], *theta.shape[2:]) != pixels or _format(theta) != _format(values):
            raise KernelError(f"theta is {theta} and values {values}: expected the same pixels, type and layout")
        images, channels, height, width = values.shape
        blocks = block_count(values.shape, window, dilation, self.tile)
        if not 0 < blocks <= _MOST_BLOCKS:
            raise KernelError(f"{blocks} blocks for shape {values.shape} and dilation {dilation}: lower the dilation")
        function = self.module.get_function(f"neighbourhood_gate_{_format(values)}_k{window}")
        numbers = (images, theta.shape[1], channels, height, width, dilation, 1.0 / math.sqrt(theta.shape[1]))
        block = (self.tile.width, self.tile.height)
        self.gpu.launch(function, blocks, block, (theta, phi, values, residual, out, *numbers), stream)


def open_kernels(gpu: Gpu, tile: Tile, cache: Path) -> GateKernels:
    """Compile the gates for a GPU and a tile, or take them from the cache, and load them.

    Raises
    ------
    KernelError
        There is no nvcc, or it fails.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise KernelError("no nvcc to compile the attention gate: run pip install nvidia-cuda-nvcc nvidia-cuda-cccl")
    macros = {"UNETX_TILE_WIDTH": tile.width, "UNETX_TILE_HEIGHT": tile.height}
    binary = cached_binary(nvcc, Compilation(FORWARD_SOURCE, gpu.architecture, macros), cache)
    return GateKernels(gpu, tile, gpu.load(binary))


def _format(array: DeviceArray) -> str:
    return f"{array.dtype}_{'nhwc' if array.channels_last else 'nchw'}"


def _check_same(names: str, first: DeviceArray, *others: DeviceArray) -> None:
    for other in others:
        if (other.shape, _format(other)) != (first.shape, _format(first)):
            raise KernelError(f"{names} differ: {first} and {other}; expected one shape, type and layout")
