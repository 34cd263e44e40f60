"""The neighbourhood gate as PTX for an engine that carries its own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unetx_kernels.attention_gate.tiles import (
    MATRIX_TILES,
    ROWS_PER_THREAD,
    TILES,
    Tile,
    choose_tile,
    pixels_per_thread,
    tile_macros,
)
from unetx_kernels.binaries import COMPILERS, cached_binary, why_not_compile
from unetx_kernels.errors import KernelError
from unetx_kernels.nvcc import Compilation

__all__ = ["KERNEL", "SOURCE", "PluginKernel", "compile_plugin"]

SOURCE: Final = Path(__file__).with_name("plugin.cu")
#: Its arguments: theta, phi, values; images, D, C, H, W as int32; out.
KERNEL: Final = "attention_gate_plugin"
_NO_ENTRY: Final = 255  # no format and no window of the gate's own entry points


@dataclass(frozen=True, slots=True)
class PluginKernel:
    """PTX for every GPU from sm_75 on, and the pixels that a block of it covers.

    Attributes
    ----------
    ptx : str
        Holds `KERNEL`.
    tile : Tile
        Threads of a block.
    rows : int
        Pixels below one another that a thread owns.
    """

    ptx: str
    tile: Tile
    rows: int


def compile_plugin(window: int, *, half: bool, width_px: int, cache: Path) -> PluginKernel:
    """Compile the gate for a window, a type and a width of the image.

    Raises
    ------
    KernelError
        The window is not 3, 5 or 7, or no compiler runs here.
    """
    if window not in ROWS_PER_THREAD:
        raise KernelError(f"window is {window}, expected one of {tuple(ROWS_PER_THREAD)}")
    reason = why_not_compile()
    if reason is not None:
        raise KernelError(reason)
    tile = choose_tile(width_px, tiles=MATRIX_TILES if half else TILES)
    macros = {"UNETX_PLUGIN_WINDOW": window, "UNETX_PLUGIN_HALF": int(half), "UNETX_FORMAT": _NO_ENTRY}
    wanted = Compilation(SOURCE, "compute_75", {**tile_macros(tile), **macros})
    compiler = next(row for row in COMPILERS if row.why_not() is None)
    return PluginKernel(cached_binary(compiler, wanted, cache).decode(), tile, pixels_per_thread(window, half=half))
