"""The CRF's kernels on a GPU: which launches make one inference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from unetx_kernels.binaries import module_binary
from unetx_kernels.dense_crf.plan import MOST_CLASSES, Axis, CrfPlan
from unetx_kernels.driver import DeviceArray, Gpu
from unetx_kernels.errors import KernelError
from unetx_kernels.graphs import LaunchGraph, record_graph
from unetx_kernels.nvcc import Compilation

__all__ = ["SOURCE", "Launch", "OpenPlan", "buffer_lengths", "open_plan", "plan_arrays", "plan_launches"]

SOURCE: Final = Path(__file__).with_name("dense_crf.cu")
_TILE: Final = (32, 8)
_VALUES: Final = 2**31
_THREADS: Final = _TILE[0] * _TILE[1]


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel: its name, its blocks, and its arguments; a name as argument stands for a buffer."""

    kernel: str
    blocks: int
    arguments: tuple[str | int | float | None, ...]


def plan_launches(plan: CrfPlan, classes: int, iterations: int) -> tuple[tuple[Launch, ...], tuple[Launch, ...]]:
    """List the launches that make the norms of an image, and those of one inference after them.

    Buffers: logits, image, probabilities of the caller; values, tall, grid, other, smooth_scale, bilateral_scale of
    `buffer_lengths`; the rest are the arrays of the plan.

    Raises
    ------
    KernelError
        Classes, iterations or pixels are out of range.
    """
    if not 2 <= classes <= MOST_CLASSES or iterations < 1:
        raise KernelError(
            f"the CRF has {classes} classes and {iterations} iterations, expected 2 to {MOST_CLASSES} and at least 1"
        )
    steps = _Steps(plan)
    if classes * steps.height * steps.width >= _VALUES:
        raise KernelError(
            f"logits are ({classes}, {steps.height}, {steps.width}), expected below {_VALUES} values: "
            "use a smaller image"
        )
    energies = plan.energies
    smooth = "smooth_scale" if energies.smoothness_compat > 0 else None
    bilateral = "bilateral_scale" if energies.bilateral_compat > 0 else None
    norms: list[Launch] = []
    if smooth:
        norms += [steps.rows(None, None, 1), steps.scale("tall", None, smooth, energies.smoothness_compat)]
    if bilateral:
        norms += [*steps.grid(None, None, 1), steps.scale(None, "grid", bilateral, energies.bilateral_compat)]
    channels = 1 if classes == 2 else classes
    start = Launch("crf_start", steps.tiles, ("logits", "values", classes, steps.height, steps.width))
    inference = [start]
    for iteration in range(iterations):
        inference += [steps.rows("values", smooth, channels)] if smooth else []
        inference += steps.grid("values", bilateral, channels) if bilateral else []
        last = iteration == iterations - 1
        inference.append(steps.update(smooth, bilateral, classes, "probabilities" if last else None))
    return tuple(norms), tuple(inference)


def buffer_lengths(plan: CrfPlan, classes: int) -> Mapping[str, int]:
    """Return the float32 elements of every scratch buffer."""
    channels = 1 if classes == 2 else classes
    pixels = len(plan.rows.cells) * len(plan.columns.cells)
    nodes = channels * len(plan.rows.starts) * len(plan.columns.starts) * plan.bins
    return MappingProxyType(
        {
            "values": channels * pixels,
            "tall": channels * pixels,
            "grid": nodes,
            "other": nodes,
            "smooth_scale": pixels,
            "bilateral_scale": pixels,
        }
    )


def plan_arrays(plan: CrfPlan) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return what the GPU is given once for a plan."""

    def of_axis(name: str, axis: Axis) -> dict[str, np.ndarray[Any, Any]]:
        return {f"{name}_{part}": getattr(axis, part) for part in ("cells", "weights", "starts", "taps")}

    taps = {"smooth_taps": plan.smooth_taps, "level_taps": plan.level_taps}
    return MappingProxyType({**taps, **of_axis("row", plan.rows), **of_axis("column", plan.columns)})


@dataclass(frozen=True, slots=True)
class _Steps:
    """Launches with the sizes of one plan."""

    plan: CrfPlan

    @property
    def height(self) -> int:
        return len(self.plan.rows.cells)

    @property
    def width(self) -> int:
        return len(self.plan.columns.cells)

    @property
    def tiles(self) -> int:
        return math.ceil(self.width / _TILE[0]) * math.ceil(self.height / _TILE[1])

    @property
    def nodes(self) -> tuple[int, int]:
        return len(self.plan.rows.starts), len(self.plan.columns.starts)

    def rows(self, values: str | None, scale: str | None, channels: int) -> Launch:
        numbers = (channels, self.height, self.width, len(self.plan.smooth_taps) - 1)
        arguments = (values, scale, "smooth_taps", "tall", *numbers)
        return Launch("crf_smooth_rows", channels * self.tiles, arguments)

    def grid(self, values: str | None, scale: str | None, channels: int) -> list[Launch]:
        rows, columns = self.nodes
        plan, inner = self.plan, self.plan.bins
        sizes = (self.height, self.width, rows, columns, inner, plan.bin_width, len(plan.level_taps) - 1)
        axes = tuple(f"{axis}_{part}" for axis in ("row", "column") for part in ("cells", "weights", "starts"))
        splat = Launch(
            "crf_splat", rows * columns * channels, (values, scale, "image", *axes, "level_taps", "grid", *sizes)
        )
        blocks = math.ceil(channels * rows * columns * inner / _THREADS)
        across = (channels * rows, columns, inner, len(plan.columns.taps) - 1)
        down = (channels, rows, columns * inner, len(plan.rows.taps) - 1)
        return [
            splat,
            Launch("crf_blur_nodes", blocks, ("grid", "column_taps", "other", *across)),
            Launch("crf_blur_nodes", blocks, ("other", "row_taps", "grid", *down)),
        ]

    def scale(self, tall: str | None, grid: str | None, out: str, compat: float) -> Launch:
        plan, reach = self.plan, len(self.plan.smooth_taps) - 1
        sizes = (self.height, self.width, reach, self.nodes[1], plan.bins, plan.bin_width, float(compat))
        arguments = (tall, "smooth_taps", grid, "image", *_CELLS, out, *sizes)
        return Launch("crf_scale", self.tiles, arguments)

    def update(self, smooth: str | None, bilateral: str | None, classes: int, out: str | None) -> Launch:
        plan, reach = self.plan, len(self.plan.smooth_taps) - 1
        sizes = (classes, self.height, self.width, reach, *self.nodes, plan.bins, plan.bin_width)
        inputs = ("logits", "tall", "smooth_taps", smooth, "grid", bilateral, "image", *_CELLS)
        return Launch("crf_update", self.tiles, (*inputs, "values", out, *sizes))


_CELLS: Final = ("row_cells", "row_weights", "column_cells", "column_weights")


@dataclass(frozen=True, slots=True)
class OpenPlan:
    """A plan on a GPU: its arrays, scratch and kernels; inference allocates nothing."""

    gpu: Gpu
    plan: CrfPlan
    classes: int
    iterations: int
    functions: Mapping[str, Any]
    buffers: Mapping[str, DeviceArray]
    _kept: tuple[Any, ...] = field(default=())

    def infer(
        self, logits: DeviceArray, image: DeviceArray, probabilities: DeviceArray, *, stream: Any = None
    ) -> None:
        """Start the inference for one image, norms included.

        Parameters
        ----------
        logits, probabilities : DeviceArray
            (K, H, W) float32.
        image : DeviceArray
            (H, W) uint8, no level at or above the plan's.
        stream : object or None
            Of `Gpu.stream`; None is the default stream.

        Raises
        ------
        KernelError
            Shapes or types are not those of the plan.
        """
        named = self._named(logits, image, probabilities)
        norms, inference = plan_launches(self.plan, self.classes, self.iterations)
        for launch in (*norms, *inference):
            arguments = [named[value] if isinstance(value, str) else value for value in launch.arguments]
            self.gpu.launch(self.functions[launch.kernel], launch.blocks, (_THREADS, 1), arguments, stream)

    def record(self, logits: DeviceArray, image: DeviceArray, probabilities: DeviceArray) -> LaunchGraph:
        """Record `infer` of these arrays as one graph, to be started for image after image in the same memory.

        Raises
        ------
        KernelError
            Shapes or types are not those of the plan, or no graph can be recorded here.
        """
        self._named(logits, image, probabilities)
        return record_graph(self.gpu, lambda stream: self.infer(logits, image, probabilities, stream=stream))

    def _named(self, logits: DeviceArray, image: DeviceArray, probabilities: DeviceArray) -> dict[str, DeviceArray]:
        size = (len(self.plan.rows.cells), len(self.plan.columns.cells))
        given = [(array.shape, array.dtype) for array in (logits, probabilities, image)]
        if given != [((self.classes, *size), "f32")] * 2 + [(size, "u8")]:
            raise KernelError(
                f"logits, probabilities and image are {given}, expected ({self.classes}, {size[0]}, {size[1]}) f32 "
                f"twice and {size} u8: open a plan for this size"
            )
        return {**self.buffers, "logits": logits, "image": image, "probabilities": probabilities}


def open_plan(gpu: Gpu, plan: CrfPlan, classes: int, iterations: int, cache: Path) -> OpenPlan:
    """Put a plan on a GPU.

    Raises
    ------
    KernelError
        Classes or iterations are out of range, or the kernels cannot be compiled.
    """
    launches = itertools.chain(*plan_launches(plan, classes, iterations))
    binary, _ = module_binary(Compilation(SOURCE, gpu.architecture), {}, cache)
    module = gpu.load(binary)
    # Taken now: a driver may load a kernel only here, which it must not do while launches are recorded.
    functions = {name: module.get_function(name) for name in {launch.kernel for launch in launches}}
    kept = {name: gpu.upload(array) for name, array in plan_arrays(plan).items()}
    kept |= {name: gpu.allocate(4 * length) for name, length in buffer_lengths(plan, classes).items()}
    buffers = {name: DeviceArray(int(memory), (), "f32") for name, memory in kept.items()}
    taken = MappingProxyType(functions), MappingProxyType(buffers)
    return OpenPlan(gpu, plan, classes, iterations, *taken, (module, *kept.values()))
