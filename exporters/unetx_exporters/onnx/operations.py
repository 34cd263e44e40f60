"""Operations and bytes of a graph, counted from the shapes of its tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from unetx_exporters.onnx.graph import infer_types
from unetx_exporters.onnx.operators import MOVEMENT
from unetx_opt.errors import ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="counting operations")

__all__ = ["LayerOperations", "OperationCount", "count_operations"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerOperations:
    """One node.

    Attributes
    ----------
    op_type : str
        Its operator.
    flop : int
        Multiplications and additions.
    bytes_moved : int
        Bytes of its inputs and outputs, each counted once: what it moves where nothing is fused.
    """

    op_type: str
    flop: int
    bytes_moved: int


@dataclass(frozen=True, slots=True)
class OperationCount:
    """Arithmetic and traffic of one inference.

    Attributes
    ----------
    layers : mapping of str to LayerOperations
        By node name, in the order of the graph.
    parameters : int
        Elements of the initializers that are floating point.
    """

    layers: Mapping[str, LayerOperations]
    parameters: int

    @property
    def total_flop(self) -> int:
        """Multiplications and additions of all nodes."""
        return sum(layer.flop for layer in self.layers.values())

    @property
    def bytes_moved(self) -> int:
        """Bytes that all nodes move where nothing is fused."""
        return sum(layer.bytes_moved for layer in self.layers.values())

    @property
    def by_op_type(self) -> dict[str, int]:
        """Operations of each operator that has any."""
        found: Counter[str] = Counter()
        for layer in self.layers.values():
            found[layer.op_type] += layer.flop
        return {op_type: flop for op_type, flop in sorted(found.items()) if flop}


def count_operations(model: onnx.ModelProto, height: int, width: int, batch: int = 1) -> OperationCount:
    """Count what one inference computes.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 or typed graph whose one input is (batch, C, H, W).
    height, width : int
        Of the input, in pixels.
    batch : int
        Images at once.

    Returns
    -------
    OperationCount
        A convolution or matrix product counts one multiplication and one addition per weight and output element,
        its bias one addition per output element; an element-wise operator, a reduction, a pooling one operation per
        element that it reads; Softmax five per element; Resize seven per output element (bilinear). Moving data
        (Concat, Slice, Pad, Reshape, Cast, ...) is free, but its bytes are counted.

    Raises
    ------
    ExportError
        An operator has no rule, or a shape is not known at this size.
    """
    shapes, sizes = _tensor_shapes(model, (batch, height, width))
    layers: dict[str, LayerOperations] = {}
    for node in model.graph.node:
        rule = _RULES.get(node.op_type)
        if rule is None:
            raise ExportError(
                f"operator {node.op_type} ({node.name}) has no rule to count its operations by: add one"
            )
        names = [name for name in (*node.input, *node.output) if name]
        missing = [name for name in names if name not in shapes]
        if missing:
            raise ExportError(f"the shape of {missing[0]} is not known at {height} x {width}: trace the model again")
        moved = sum(math.prod(shapes[name]) * sizes[name] for name in dict.fromkeys(names))
        layers[node.name] = LayerOperations(node.op_type, rule(node, shapes), moved)
    parameters = sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in _FLOATING)
    return OperationCount(MappingProxyType(layers), parameters)


def _tensor_shapes(model: onnx.ModelProto, size: tuple[int, int, int]) -> tuple[dict[str, Shape], dict[str, int]]:
    batch, height, width = size
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value, lengths in ((fixed.graph.input[0], (batch, None, height, width)), (fixed.graph.output[0], (batch,))):
        for dim, length in zip(value.type.tensor_type.shape.dim, lengths, strict=False):
            if length is not None:
                dim.dim_value = length
    graph = infer_types(fixed).graph
    shapes: dict[str, Shape] = {}
    sizes: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
            sizes[value.name] = _byte_size(value.type.tensor_type.elem_type)
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        sizes[tensor.name] = _byte_size(tensor.data_type)
    return shapes, sizes


def _byte_size(data_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _convolution(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    weights, output = shapes[node.input[1]], shapes[node.output[0]]
    # Each output element reads C / group channels of the kernel's window: all of a weight's axes but the first.
    products = math.prod(output) * math.prod(weights[1:])
    return 2 * products + _bias(node, shapes)


def _transposed(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Each input element is spread over M / group channels and the kernel's window.
    products = math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    return 2 * products + _bias(node, shapes)


def _bias(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return math.prod(shapes[node.output[0]]) if len(node.input) > 2 and node.input[2] else 0


def _matrix_product(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    first = shapes[node.input[0]]
    inner = first[0] if node.op_type == "Gemm" and _attribute(node, "transA", 0) else first[-1]
    return 2 * math.prod(shapes[node.output[0]]) * inner + _bias(node, shapes)


def _per_output(factor: int) -> Callable[[onnx.NodeProto, Mapping[str, Shape]], int]:
    return lambda node, shapes: factor * math.prod(shapes[node.output[0]])


def _per_input(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return math.prod(shapes[node.input[0]])


def _pooling(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    window: list[int] = next(attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape")
    return math.prod(shapes[node.output[0]]) * math.prod(window)


def _free(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return 0


_Rule = Callable[["onnx.NodeProto", Mapping[str, Shape]], int]
_ELEMENTWISE: Final = ("Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Clip", "Neg", "Exp", "Sqrt", "Max", "Min")
_REDUCTIONS: Final = ("ReduceSum", "ReduceMean", "ReduceMax", "GlobalAveragePool")
#: Operator -> a function of (node, shapes) that counts it.
_RULES: Final[Mapping[str, _Rule]] = MappingProxyType(
    {
        "Conv": _convolution,
        "ConvTranspose": _transposed,
        "Gemm": _matrix_product,
        "MatMul": _matrix_product,
        "MaxPool": _pooling,
        "AveragePool": _pooling,
        "Softmax": _per_output(5),
        "Resize": _per_output(7),
        **dict.fromkeys(_ELEMENTWISE, _per_output(1)),
        **dict.fromkeys(_REDUCTIONS, _per_input),
        **dict.fromkeys((*MOVEMENT, "QuantizeLinear", "DequantizeLinear"), _free),
    }
)
_FLOATING: Final = frozenset({1, 10, 11, 16})  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
