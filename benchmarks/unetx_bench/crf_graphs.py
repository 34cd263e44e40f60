"""The CRF as a graph of standard ONNX operators, in several ways: what it would take to ship it inside an engine.

Two classes, one image, a fixed size. Both norms and every iteration are unrolled. The inputs are ``logit`` and
``grey`` (0 to 255), both float32 (H, W), the output is ``refined``, the logit after the CRF.
`unetx_bench.crf_in_engine` compares them with the separate step and says why none is part of a build.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_kernels.dense_crf.plan import CrfPlan, plan_crf
from unetx_kernels.dense_crf.reference import Energies
from unetx_opt.optional import require

__all__ = ["FORMULATIONS", "Formulation", "crf_model"]

Matrix = NDArray[np.float32]
#: Takes the name of a tensor (H, W), gives the name of that tensor filtered.
Filter = Callable[[str], str]

_LEVELS: Final = 256
_OPSET: Final = 18
_BLOCK: Final = 16  # pixels that a strided convolution makes at once, as its channels
_CELL_PX: Final = 40  # of the low-rank form: half a usual width
_LEAST_EIGENVALUE: Final = 1e-3


class _Graph:
    """Nodes and constants of a model, with names of their own."""

    def __init__(self, size: tuple[int, int], plan: CrfPlan) -> None:
        self.onnx = require("onnx", purpose="writing the CRF as a graph")
        self.size, self.plan = size, plan
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"constant.{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}.{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def shaped(self, tensor: str, *shape: int) -> str:
        return self.node("Reshape", tensor, self.integers(*shape))

    def model(self, output: str) -> Any:
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        self.nodes.append(helper.make_node("Identity", [output], ["refined"], name="refined"))
        inputs, outputs = (
            [helper.make_tensor_value_info(name, kind, self.size) for name in names]
            for names in (("logit", "grey"), ("refined",))
        )
        graph = helper.make_graph(self.nodes, "crf", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        self.onnx.checker.check_model(model, full_check=True)
        return model


@dataclass(frozen=True, slots=True)
class Formulation:
    """One way to write the CRF's two filters, each made by a function of the graph."""

    name: str
    summary: str
    smoothness: Callable[[_Graph], Filter]
    bilateral: Callable[[_Graph], Filter]


def crf_model(size: tuple[int, int], formulation: Formulation, energies: Energies, iterations: int) -> Any:
    """Write the CRF of one size of image as an ONNX model."""
    plan = plan_crf(size, energies)
    graph = _Graph(size, plan)
    smooth, bilateral = formulation.smoothness(graph), formulation.bilateral(graph)
    # The norm of positions depends on the size alone; that of intensities is computed from the image.
    along = [_toeplitz(length, plan.smooth_taps).sum(1) for length in size]
    smooth_scale = graph.constant(np.sqrt(energies.smoothness_compat / np.outer(*along)))
    total = bilateral(graph.constant(np.ones(size)))
    root = graph.constant(math.sqrt(energies.bilateral_compat))
    bilateral_scale = graph.node("Div", root, graph.node("Sqrt", total))
    half, current = graph.constant(0.5), "logit"
    for _ in range(iterations):
        difference = graph.node("Tanh", graph.node("Mul", current, half))
        messages = [
            graph.node("Mul", scale, kernel(graph.node("Mul", difference, scale)))
            for scale, kernel in ((smooth_scale, smooth), (bilateral_scale, bilateral))
        ]
        current = graph.node("Add", graph.node("Add", "logit", messages[0]), messages[1])
    return graph.model(current)


def _smooth_by_convolutions(graph: _Graph) -> Filter:
    """Convolve along each axis: one channel in, one out."""
    taps = np.concatenate([graph.plan.smooth_taps[:0:-1], graph.plan.smooth_taps])
    reach = len(taps) // 2
    across, down = graph.constant(taps.reshape(1, 1, 1, -1)), graph.constant(taps.reshape(1, 1, -1, 1))

    def smooth(values: str) -> str:
        image = graph.shaped(values, 1, 1, *graph.size)
        image = graph.node("Conv", image, across, pads=[0, reach, 0, reach])
        return graph.shaped(graph.node("Conv", image, down, pads=[reach, 0, reach, 0]), *graph.size)

    return smooth


def _smooth_by_blocks(graph: _Graph) -> Filter:
    """Convolve along each axis, sixteen pixels a step as sixteen channels: a matrix product for the engine."""
    taps = np.concatenate([graph.plan.smooth_taps[:0:-1], graph.plan.smooth_taps])
    reach = len(taps) // 2
    kernel = np.zeros((_BLOCK, _BLOCK + 2 * reach))
    for index in range(_BLOCK):
        kernel[index, index : index + len(taps)] = taps
    across, down = (graph.constant(kernel.reshape(_BLOCK, *shape)) for shape in ((1, 1, -1), (1, -1, 1)))

    def smooth(values: str) -> str:
        image = graph.shaped(values, 1, 1, *graph.size)
        image = graph.node("Conv", image, across, strides=[1, _BLOCK], pads=[0, reach, 0, reach])
        image = graph.shaped(graph.node("Transpose", image, perm=[0, 2, 3, 1]), 1, 1, *graph.size)
        image = graph.node("Conv", image, down, strides=[_BLOCK, 1], pads=[reach, 0, reach, 0])
        return graph.shaped(graph.node("Transpose", image, perm=[0, 2, 1, 3]), *graph.size)

    return smooth


def _smooth_by_matrices(graph: _Graph) -> Filter:
    """Multiply with a banded matrix on either side."""
    down, across = (graph.constant(_toeplitz(length, graph.plan.smooth_taps)) for length in graph.size)
    return lambda values: graph.node("MatMul", down, graph.node("MatMul", values, across))


def _bilateral_by_moments(scatter: str) -> Callable[[_Graph], Filter]:
    """Make the grid of the processor's backend: of a cell and level four sums are scattered, and four gathered."""

    def make(graph: _Graph) -> Filter:
        plan, pixels = graph.plan, math.prod(graph.size)
        rows, columns = len(plan.rows.starts) - 1, len(plan.columns.starts) - 1
        first = (plan.rows.cells[:, None] * columns + plan.columns.cells) * _LEVELS
        place = graph.node("Add", graph.node("Cast", "grey", to=7), graph.constant(first, np.int64))
        flat, rows_of_one = graph.shaped(place, pixels), graph.shaped(place, pixels, 1)
        spread = graph.node("Expand", rows_of_one, graph.integers(pixels, 4))
        down, across = (
            plan.rows.weights[:, None] + np.zeros(graph.size),
            plan.columns.weights + np.zeros(graph.size),
        )
        weights = graph.constant(np.stack([np.ones(graph.size), across, down, down * across], -1).reshape(pixels, 4))
        zeros = graph.constant(np.zeros((rows * columns * _LEVELS, 4)))
        axes = ((plan.rows, rows), (plan.columns, columns))
        blur_rows, blur_columns = (graph.constant(_between(_toeplitz(count + 1, axis.taps))) for axis, count in axes)
        blur_levels = graph.constant(_toeplitz(_LEVELS, plan.level_taps))

        def bilateral(values: str) -> str:
            terms = graph.node("Mul", graph.shaped(values, pixels, 1), weights)
            if scatter == "ScatterND":
                sums = graph.node("ScatterND", zeros, rows_of_one, terms, reduction="add")
            else:
                sums = graph.node("ScatterElements", zeros, spread, terms, axis=0, reduction="add")
            grid = graph.node("Transpose", graph.shaped(sums, rows, columns, _LEVELS, 2, 2), perm=[0, 3, 1, 4, 2])
            grid = graph.node("MatMul", graph.shaped(grid, 2 * rows, 2 * columns, _LEVELS), blur_levels)
            grid = graph.node("MatMul", blur_columns, grid)
            grid = graph.node("MatMul", blur_rows, graph.shaped(grid, 2 * rows, 2 * columns * _LEVELS))
            grid = graph.node("Transpose", graph.shaped(grid, rows, 2, columns, 2, _LEVELS), perm=[0, 2, 4, 1, 3])
            read = graph.node("Gather", graph.shaped(grid, rows * columns * _LEVELS, 4), flat, axis=0)
            sliced = graph.node("ReduceSum", graph.node("Mul", read, weights), graph.integers(1), keepdims=0)
            return graph.shaped(sliced, *graph.size)

        return bilateral

    return make


def _bilateral_by_nearest(spacing_px: int, bin_width: int) -> Callable[[_Graph], Filter]:
    """Make a finer grid of which a pixel touches one node: one value is scattered, and one gathered."""

    def make(graph: _Graph) -> Filter:
        energies, pixels = graph.plan.energies, math.prod(graph.size)
        nodes = [-(-length // spacing_px) for length in graph.size]
        bins = (_LEVELS - 1) // bin_width + 1
        width = energies.bilateral_srgb / math.sqrt(3)
        down, across = (_gaussian(count, energies.bilateral_sxy, spacing_px) for count in nodes)
        blurs = [graph.constant(matrix) for matrix in (down, across, _gaussian(bins, width, bin_width))]
        row, column = (np.arange(length) // spacing_px for length in graph.size)
        level = graph.node("Div", graph.node("Cast", "grey", to=7), graph.integers(bin_width))
        place = graph.constant((row[:, None] * nodes[1] + column) * bins, np.int64)
        flat = graph.node("Cast", graph.shaped(graph.node("Add", level, place), pixels), to=6)
        zeros = graph.constant(np.zeros(nodes[0] * nodes[1] * bins))

        def bilateral(values: str) -> str:
            terms = graph.shaped(values, pixels)
            sums = graph.node("ScatterElements", zeros, flat, terms, axis=0, reduction="add")
            grid = graph.node("MatMul", graph.shaped(sums, *nodes, bins), blurs[2])
            grid = graph.shaped(graph.node("MatMul", blurs[1], grid), nodes[0], nodes[1] * bins)
            grid = graph.shaped(graph.node("MatMul", blurs[0], grid), nodes[0] * nodes[1] * bins)
            return graph.shaped(graph.node("Gather", grid, flat, axis=0), *graph.size)

        return bilateral

    return make


def _bilateral_by_rank(graph: _Graph) -> Filter:
    """Write the kernel of intensities as a sum of products: matrix products alone, nothing is scattered or gathered.

    A pixel's intensity becomes a row of as many numbers as the kernel has eigenvalues, 42 for the usual width.
    """
    energies = graph.plan.energies
    high, wide = (-(-length // _CELL_PX) for length in graph.size)
    padded = (high * _CELL_PX, wide * _CELL_PX)
    kernel = _gaussian(_LEVELS, energies.bilateral_srgb / math.sqrt(3), 1).astype(np.float64)
    values_of, vectors = np.linalg.eigh(kernel)
    kept = values_of > _LEAST_EIGENVALUE * values_of[-1]
    rank, area = int(kept.sum()), _CELL_PX**2
    ramp = np.arange(_CELL_PX) / _CELL_PX
    corners = np.stack(np.broadcast_arrays(1, ramp, ramp[:, None], ramp * ramp[:, None])).reshape(4, area)
    pads = graph.integers(0, 0, padded[0] - graph.size[0], padded[1] - graph.size[1])

    def cells(tensor: str) -> str:
        blocks = graph.shaped(graph.node("Pad", tensor, pads), high, _CELL_PX, wide, _CELL_PX)
        return graph.shaped(graph.node("Transpose", blocks, perm=[0, 2, 1, 3]), high * wide, area)

    table = graph.constant(vectors[:, kept] * np.sqrt(values_of[kept]))
    features = graph.node("Gather", table, graph.node("Cast", cells("grey"), to=7), axis=0)
    width = math.sqrt((energies.bilateral_sxy / _CELL_PX) ** 2 - 2 * float(np.mean(ramp * (1 - ramp))))
    blur_rows, blur_columns = (graph.constant(_between(_gaussian(count + 1, width, 1))) for count in (high, wide))
    before, after = graph.constant(corners[None]), graph.constant(corners.T[None])

    def bilateral(values: str) -> str:
        terms = graph.node("Mul", graph.shaped(cells(values), high * wide, 1, area), before)
        grid = graph.shaped(graph.node("MatMul", terms, features), high, wide, 2, 2, rank)
        grid = graph.shaped(graph.node("Transpose", grid, perm=[0, 2, 1, 3, 4]), 2 * high, 2 * wide, rank)
        grid = graph.node("MatMul", blur_columns, grid)
        grid = graph.node("MatMul", blur_rows, graph.shaped(grid, 2 * high, 2 * wide * rank))
        grid = graph.node("Transpose", graph.shaped(grid, high, 2, wide, 2, rank), perm=[0, 2, 4, 1, 3])
        read = graph.node("MatMul", features, graph.shaped(grid, high * wide, rank, 4))
        sliced = graph.node("ReduceSum", graph.node("Mul", read, after), graph.integers(2), keepdims=0)
        image = graph.node("Transpose", graph.shaped(sliced, high, wide, _CELL_PX, _CELL_PX), perm=[0, 2, 1, 3])
        bounds = (graph.integers(0, 0), graph.integers(*graph.size), graph.integers(0, 1))
        return graph.node("Slice", graph.shaped(image, *padded), *bounds)

    return bilateral


def _toeplitz(length: int, taps: NDArray[np.float32]) -> Matrix:
    """Return the filter of symmetric taps, zeros outside, as a matrix."""
    distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    return np.asarray(np.where(distance < len(taps), taps[np.minimum(distance, len(taps) - 1)], 0), dtype=np.float32)


def _gaussian(length: int, width: float, spacing: int) -> Matrix:
    """Return a Gaussian between nodes that each stand for the mean of some places, as a matrix."""
    variance = (width**2 - (spacing**2 - 1) / 6) / spacing**2
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    return np.asarray(np.exp(-0.5 * distance**2 / variance), dtype=np.float32)


def _between(blur: Matrix) -> Matrix:
    """Return (2 cells, 2 cells): from sums of values, plain and times the share of the farther node, of every cell to
    the blurred grid's value at its nearer node and the slope to the farther one.
    """
    nodes = len(blur)
    spread, read = np.zeros((nodes, 2 * nodes - 2)), np.zeros((2 * nodes - 2, nodes))
    for cell in range(nodes - 1):
        spread[cell, 2 * cell : 2 * cell + 2] = 1, -1
        spread[cell + 1, 2 * cell + 1] = 1
        read[2 * cell, cell] = 1
        read[2 * cell + 1, cell : cell + 2] = -1, 1
    return np.asarray(read @ blur @ spread, dtype=np.float32)


_ROWS: Final = (
    Formulation(
        "moments, ScatterElements",
        "the processor's grid, exactly; smoothness by convolutions of one channel",
        _smooth_by_convolutions,
        _bilateral_by_moments("ScatterElements"),
    ),
    Formulation(
        "moments, ScatterND",
        "the processor's grid, exactly; smoothness by convolutions of sixteen channels",
        _smooth_by_blocks,
        _bilateral_by_moments("ScatterND"),
    ),
    Formulation("low rank", "matrix products alone, in both filters", _smooth_by_matrices, _bilateral_by_rank),
    Formulation("nearest, 8 px", "one node a pixel, 2 levels a bin", _smooth_by_blocks, _bilateral_by_nearest(8, 2)),
    Formulation(
        "nearest, 20 px", "one node a pixel, 2 levels a bin", _smooth_by_blocks, _bilateral_by_nearest(20, 2)
    ),
)

#: Name -> formulation.
FORMULATIONS: Final[Mapping[str, Formulation]] = MappingProxyType({row.name: row for row in _ROWS})
