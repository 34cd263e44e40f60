"""The attention gates on a GPU: which entry point, in tiles or in strips, on which grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from unetx_kernels.attention_gate import strips
from unetx_kernels.attention_gate.tiles import (
    MATRIX_TILES,
    ROWS_PER_THREAD,
    TILES,
    Tile,
    block_count,
    choose_tile,
    pixels_per_thread,
    tile_macros,
)
from unetx_kernels.binaries import module_binary
from unetx_kernels.driver import DeviceArray, Gpu
from unetx_kernels.errors import KernelError
from unetx_kernels.nvcc import Compilation

__all__ = ["BACKWARD_SOURCE", "FORMATS", "FORWARD_SOURCE", "GateKernels"]

FORWARD_SOURCE: Final = Path(__file__).with_name("attention_gate.cu")
BACKWARD_SOURCE: Final = Path(__file__).with_name("backward.cu")
#: Type and layout -> UNETX_FORMAT of the sources.
FORMATS: Final = {"f32_nchw": 1, "f32_nhwc": 2, "f16_nchw": 3, "f16_nhwc": 4}
_ADDITIVE: Final = 0
_MOST_BLOCKS: Final = 2**31 - 1
#: The fp16 kernels find elements within an image by 32 bits.
_MOST_ELEMENTS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class GateKernels:
    """The gates on one GPU, in the context that was current when they were first used.

    Attributes
    ----------
    gpu : Gpu
        Where they run.
    cache : pathlib.Path
        Folder for kernels that are compiled at their first use.
    tile : Tile or None
        For every image, in place of the one that its width asks for.
    strip : Strip or None
        For images that strips suit; None takes tiles for all.
    """

    gpu: Gpu
    cache: Path
    tile: Tile | None = None
    strip: strips.Strip | None = strips.STRIP
    _modules: dict[tuple[Any, ...], Any] = field(default_factory=dict)

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
        half = inputs[2].dtype == "f16"
        rows = {k: pixels_per_thread(k, half=half) for k in ROWS_PER_THREAD}
        tiles = (self.tile,) if self.tile else MATRIX_TILES if half else TILES
        call = _Call.of(inputs, window, dilation, rows, tiles)
        others = (out, *([] if residual is None else [residual]))
        _check_same("values, out and residual", inputs[2], *others)
        strip = self._plan(call, (*inputs, *others)) if dilation == 1 else None
        if strip is not None:
            self._launch_strips(strip, call, (*inputs, residual, out), stream)
            return
        function = self._function(FORWARD_SOURCE, call.name("neighbourhood_gate"), call)
        self.gpu.launch(function, call.blocks, call.block, (*inputs, residual, out, *call.numbers), stream)

    def takes_strips(self, inputs: tuple[DeviceArray, DeviceArray, DeviceArray], window: int) -> bool:
        """Tell whether `neighbourhood` walks down strips for such inputs, rather than taking tiles."""
        rows = dict.fromkeys(ROWS_PER_THREAD, 1)
        return self._plan(_Call.of(inputs, window, 1, rows, MATRIX_TILES), inputs) is not None

    def _plan(self, call: _Call, arrays: tuple[DeviceArray, ...]) -> strips.StripCall | None:
        if self.strip is None or self.tile is not None or call.form != "f16_nchw":
            return None
        if int(self.gpu.architecture.removeprefix("sm_")) < strips.FIRST_ARCHITECTURE:
            return None
        memory = (self.gpu.multiprocessors, self.gpu.shared_bytes)
        return strips.plan_strips(arrays, call.window, memory, self.strip)

    def _launch_strips(
        self, plan: strips.StripCall, call: _Call, tensors: tuple[DeviceArray | None, ...], stream: Any
    ) -> None:
        module = self._module(strips.SOURCE, plan.strip.macros, {"UNETX_WINDOW": call.window})
        function = module.get_function(f"neighbourhood_gate_strips_k{call.window}")
        self.gpu.allow_shared(function, plan.shared_bytes)
        _, hidden, channels, height, width, _, scale = call.numbers
        arguments = (*tensors, hidden, channels, height, width, plan.rows, plan.group, scale)
        block = (plan.strip.threads, 1)
        self.gpu.launch(function, plan.grid, block, arguments, stream, shared_bytes=plan.shared_bytes)

    def gradients(
        self,
        inputs: tuple[DeviceArray, DeviceArray, DeviceArray],
        gradient: DeviceArray,
        outputs: tuple[DeviceArray, DeviceArray, DeviceArray],
        scratch: tuple[DeviceArray, DeviceArray],
        window: int,
        *,
        dilation: int = 1,
    ) -> None:
        """Start `reference.neighbourhood_gate_gradients` on the default stream.

        Parameters
        ----------
        inputs : tuple of DeviceArray
            theta and phi, (N, D, H, W), and values, (N, C, H, W).
        gradient : DeviceArray
            (N, C, H, W), of the output.
        outputs : tuple of DeviceArray
            Gradients of the inputs, each as its input; they share no memory with others.
        scratch : tuple of DeviceArray
            Two of (N, 1, H, W) float32, written and read.
        window, dilation : int
            As in `neighbourhood`.

        Raises
        ------
        KernelError
            As in `neighbourhood`.
        """
        _check_same("values and gradients", inputs[2], gradient, outputs[2])
        _check_same("theta, phi and their gradients", inputs[0], *outputs[:2])
        tiles = (self.tile,) if self.tile else TILES
        call = _Call.of(inputs, window, dilation, dict.fromkeys(ROWS_PER_THREAD, 1), tiles)
        pixels = (inputs[2].shape[0], 1, *inputs[2].shape[2:])
        for array in scratch:
            if (array.shape, array.dtype) != (pixels, "f32"):
                raise KernelError(f"scratch is {array}, expected f32 of shape {pixels}")
        query = self._function(BACKWARD_SOURCE, call.name("neighbourhood_query_gradient"), call)
        key = self._function(BACKWARD_SOURCE, call.name("neighbourhood_key_gradient"), call)
        common = (*inputs, gradient)
        self.gpu.launch(query, call.blocks, call.block, (*common, outputs[0], *scratch, *call.numbers))
        self.gpu.launch(key, call.blocks, call.block, (*common, *scratch, *outputs[1:], *call.numbers))

    def additive(
        self,
        values: DeviceArray,
        projections: tuple[DeviceArray, DeviceArray, DeviceArray],
        out: DeviceArray,
        psi_bias: float,
        *,
        residual: DeviceArray | None = None,
        stream: Any = None,
    ) -> None:
        """Start the additive gate of `reference.additive_gate`.

        Parameters
        ----------
        values, out, residual : DeviceArray
            (N, C, H, W); `out` shares no memory with the others.
        projections : tuple of DeviceArray
            Of the skip, (N, D, H, W), of the gating signal, (N, D, h, w), and psi, (D,).
        psi_bias : float
            Added to the score.
        stream : object or None
            As in `neighbourhood`.

        Raises
        ------
        KernelError
            Shapes, types or layouts do not fit one another.
        """
        skip, coarse, psi = projections
        _check_same("values, out and residual", values, out, *([] if residual is None else [residual]))
        images, hidden, height, width = skip.shape
        fits = (
            (images, height, width) == (values.shape[0], *values.shape[2:])
            and coarse.shape[:2] == (images, hidden)
            and psi.shape == (hidden,)
            and psi.dtype == values.dtype
        )
        if not fits:
            raise KernelError(
                f"values is {values}, projections are {skip} and {coarse}, psi is {psi}: expected one batch and "
                "type, D channels in both projections and psi, and the pixels of values in the first"
            )
        tile = choose_tile(width)
        blocks = _checked_blocks(math.ceil(images * height * width / (tile.width * tile.height)), values)
        call = _Call(_format(values, skip, coarse), _ADDITIVE, tile, blocks, ())
        function = self._function(FORWARD_SOURCE, f"additive_gate_{call.form}", call)
        numbers = (images, hidden, values.shape[1], height, width, *coarse.shape[2:], float(psi_bias))
        self.gpu.launch(function, blocks, call.block, (values, *projections, residual, out, *numbers), stream)

    def _function(self, source: Path, name: str, call: _Call) -> Any:
        narrow = {"UNETX_FORMAT": FORMATS[call.form], "UNETX_WINDOW": call.window}
        return self._module(source, tile_macros(call.tile), narrow).get_function(name)

    def _module(self, source: Path, macros: Mapping[str, int], narrow: Mapping[str, int]) -> Any:
        """Return the module of a source and its macros, loaded once; see `module_binary` for what is narrow."""
        key = (source, *sorted({**macros, **narrow}.items()))
        if key not in self._modules:
            binary, _ = module_binary(Compilation(source, self.gpu.architecture, macros), narrow, self.cache)
            self._modules[key] = self.gpu.load(binary)
        return self._modules[key]


@dataclass(frozen=True, slots=True)
class _Call:
    """What a launch has beside its tensors."""

    form: str
    window: int
    tile: Tile
    blocks: int
    numbers: tuple[int | float, ...]

    @property
    def block(self) -> tuple[int, int]:
        return (self.tile.width, self.tile.height)

    def name(self, kernel: str) -> str:
        return f"{kernel}_{self.form}_k{self.window}"

    @staticmethod
    def of(
        inputs: tuple[DeviceArray, DeviceArray, DeviceArray],
        window: int,
        dilation: int,
        rows: Mapping[int, int],
        tiles: tuple[Tile, ...],
    ) -> _Call:
        """Check the inputs of a neighbourhood gate and lay out its grid."""
        theta, phi, values = inputs
        _check_same("theta and phi", theta, phi)
        if window not in rows or dilation < 1:
            raise KernelError(f"window is {window} and dilation {dilation}, expected 3, 5 or 7 and at least 1")
        pixels = (values.shape[0], *values.shape[2:])
        if (theta.shape[0], *theta.shape[2:]) != pixels:
            raise KernelError(f"theta is {theta} and values {values}: expected the same pixels")
        images, channels, height, width = values.shape
        if values.dtype == "f16" and max(channels, theta.shape[1]) * height * width > _MOST_ELEMENTS:
            raise KernelError(f"values is {values}: expected at most {_MOST_ELEMENTS} elements of one image in fp16")
        tile = choose_tile(width, dilation, tiles)
        blocks = _checked_blocks(block_count(values.shape, rows[window], dilation, tile), values)
        hidden = theta.shape[1]
        numbers = (images, hidden, channels, height, width, dilation, 1.0 / math.sqrt(hidden))
        return _Call(_format(theta, values), window, tile, blocks, numbers)


def _checked_blocks(blocks: int, values: DeviceArray) -> int:
    if not 0 < blocks <= _MOST_BLOCKS:
        raise KernelError(f"{blocks} blocks for {values}, expected 1 to {_MOST_BLOCKS}: lower the dilation or batch")
    return blocks


def _format(*arrays: DeviceArray) -> str:
    """Return the type and layout that all arrays have; one channel or one pixel lies in memory as either layout."""
    told = [array for array in arrays if array.shape[1] > 1 and math.prod(array.shape[2:]) > 1] or [arrays[0]]
    forms = {f"{array.dtype}_{'nhwc' if array.channels_last else 'nchw'}" for array in told}
    if len(forms) != 1 or len({array.dtype for array in arrays}) != 1:
        raise KernelError(f"{', '.join(map(str, arrays))}: expected one type and layout")
    return forms.pop()


def _check_same(names: str, first: DeviceArray, *others: DeviceArray) -> None:
    if any(other.shape != first.shape for other in others):
        raise KernelError(f"{names} differ: {first} and {', '.join(map(str, others))}; expected one shape")
    _format(first, *others)
