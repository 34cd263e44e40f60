"""Operations and bytes of a graph, counted from its shapes: what a latency is measured against.

Conventions, per output element unless said otherwise:

- Conv, ConvTranspose, Gemm, MatMul: two operations per multiply-accumulate; the addition of the bias is not counted.
  Padding is counted as if it were image, as is usual. A transposed convolution has as many multiply-accumulates as
  the convolution it transposes.
- elementwise arithmetic and comparisons, Relu: 1. Sigmoid: 4 (negation, exponential, addition, division).
- Softmax: 5 (maximum, subtraction, exponential, sum, division).
- MaxPool, AveragePool: the size of the kernel. Reductions: 1 per *input* element.
- Resize: 0 for nearest, 7 for linear in two dimensions (four products, three sums).
- QuantizeLinear: 3 (division, rounding, clipping). DequantizeLinear: 2.
- what only moves or converts data: 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from unetx_exporters.onnx.attention_function import inline_gates
from unetx_exporters.onnx.graph import INPUT_NAME, infer_types, producers, tensor_types
from unetx_exporters.onnx.operators import MOVEMENT, WEIGHTED
from unetx_opt.errors import ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="counting the operations of a graph")

__all__ = ["OperationCount", "count_operations"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class OperationCount:
    """The arithmetic and the memory traffic of one run.

    Attributes
    ----------
    total_flop : int
        Floating-point (or, between quantized tensors, integer) operations of the whole batch.
    by_layer : mapping of str to int
        Node name to its operations, in the order of the graph; nodes without any are left out.
    by_op_type : mapping of str to int
        Operator to its operations, the largest first.
    parameters : int
        Elements of the weights and biases of all convolutions and matrix products.
    bytes_moved : int
        Bytes of every tensor that a node reads or writes, summed over the nodes: what an engine moves that fuses
        nothing and caches nothing, an upper bound.
    bytes_by_layer : mapping of str to int
        Node name to its part of `bytes_moved`, in the order of the graph.
    """

    total_flop: int
    by_layer: Mapping[str, int]
    by_op_type: Mapping[str, int]
    parameters: int
    bytes_moved: int
    bytes_by_layer: Mapping[str, int]


def count_operations(
    model: onnx.ModelProto, height: int | None = None, width: int | None = None, batch: int = 1
) -> OperationCount:
    """Count the operations of a graph.

    Parameters
    ----------
    model : onnx.ModelProto
        Any graph of this package: float32, typed, quantized.
    height, width : int or None
        Size of the image in pixels. A traced graph has it fixed, and another one is an error; None takes it.
    batch : int
        Images in one run.

    Raises
    ------
    ExportError
        The graph is of another size, or has an operator that no convention here covers.
    """
    sized = _at_size(model, height, width, batch)
    shapes, kinds = _shapes(sized), tensor_types(sized)
    by_layer: dict[str, int] = {}
    by_op_type: dict[str, int] = {}
    bytes_by_layer: dict[str, int] = {}
    for node in sized.graph.node:
        flop = _flop(node, shapes)
        if flop:
            by_layer[node.name] = flop
            by_op_type[node.op_type] = by_op_type.get(node.op_type, 0) + flop
        bytes_by_layer[node.name] = sum(_bytes(name, shapes, kinds) for name in (*node.input, *node.output) if name)
    return OperationCount(
        total_flop=sum(by_layer.values()),
        by_layer=MappingProxyType(by_layer),
        by_op_type=MappingProxyType(dict(sorted(by_op_type.items(), key=lambda item: -item[1]))),
        parameters=_count_parameters(sized.graph, shapes),
        bytes_moved=sum(bytes_by_layer.values()),
        bytes_by_layer=MappingProxyType(bytes_by_layer),
    )


def _at_size(model: onnx.ModelProto, height: int | None, width: int | None, batch: int) -> onnx.ModelProto:
    sized = onnx.ModelProto()
    sized.CopyFrom(inline_gates(model))
    image = next(value for value in sized.graph.input if value.name == INPUT_NAME)
    dims = image.type.tensor_type.shape.dim
    for dim, wanted, axis in zip(dims, (batch, None, height, width), ("batch", "", "height", "width"), strict=True):
        if wanted is None:
            continue
        if dim.HasField("dim_value") and dim.dim_value != wanted:
            raise ExportError(f"the graph's {axis} is {dim.dim_value}, got {wanted}: trace the model at that size")
        dim.dim_value = wanted
    # The output's shape names the symbolic batch, which would contradict the one set above.
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    return infer_types(sized)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") for dim in dims):
            raise ExportError(f"the shape of {value.name} depends on values that are known at run time only")
        shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _flop(node: onnx.NodeProto, shapes: Shapes) -> int:
    if node.op_type in MOVEMENT:
        return 0
    rule = _RULES.get(node.op_type)
    if rule is None:
        raise ExportError(
            f"no rule counts the operations of {node.op_type} (node {node.name}): add one to its table of rules"
        )
    return rule(node, shapes)


def _convolution(node: onnx.NodeProto, shapes: Shapes) -> int:
    # (M, C / groups, *kernel): every output element is a sum over all but the first axis.
    return 2 * _size(shapes[node.output[0]]) * _size(shapes[node.input[1]][1:])


def _transposed_convolution(node: onnx.NodeProto, shapes: Shapes) -> int:
    # (C, M / groups, *kernel): every input element is multiplied with all but the first axis.
    return 2 * _size(shapes[node.input[0]]) * _size(shapes[node.input[1]][1:])


def _matrix_product(node: onnx.NodeProto, shapes: Shapes) -> int:
    summed = shapes[node.input[0]][-2 if _attribute(node, "transA", 0) else -1]
    return 2 * _size(shapes[node.output[0]]) * summed


def _pooling(node: onnx.NodeProto, shapes: Shapes) -> int:
    return _size(shapes[node.output[0]]) * _size(_attribute(node, "kernel_shape", ()))


def _reduction(node: onnx.NodeProto, shapes: Shapes) -> int:
    return _size(shapes[node.input[0]])


def _resize(node: onnx.NodeProto, shapes: Shapes) -> int:
    mode = _attribute(node, "mode", b"nearest")
    costs = {b"nearest": 0, b"linear": 7}
    if mode not in costs:
        raise ExportError(f"no rule counts Resize with mode {mode.decode()} (node {node.name})")
    return costs[mode] * _size(shapes[node.output[0]])


def _per_element(cost: int) -> Callable[[onnx.NodeProto, Shapes], int]:
    return lambda node, shapes: cost * _size(shapes[node.output[0]])


_ELEMENTWISE: Final = (
    *(
        "Abs",
        "Add",
        "And",
        "Clip",
        "Div",
        "Equal",
        "Exp",
        "Greater",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "Log",
        "Max",
        "Min",
    ),
    *("Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Sqrt", "Sub"),
)
_REDUCTIONS: Final = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")

#: Operator -> a function of (node, shapes) that counts its operations.
_RULES: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = MappingProxyType(
    {
        "Conv": _convolution,
        "ConvTranspose": _transposed_convolution,
        "Gemm": _matrix_product,
        "MatMul": _matrix_product,
        "MaxPool": _pooling,
        "AveragePool": _pooling,
        "Resize": _resize,
        "Sigmoid": _per_element(4),
        "Softmax": _per_element(5),
        "QuantizeLinear": _per_element(3),
        "DequantizeLinear": _per_element(2),
        **dict.fromkeys(_ELEMENTWISE, _per_element(1)),
        **dict.fromkeys(_REDUCTIONS, _reduction),
    }
)


def _count_parameters(graph: onnx.GraphProto, shapes: Shapes) -> int:
    made_by = producers(graph)
    stored = {tensor.name for tensor in graph.initializer}
    found = set()
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        for name in node.input[1:]:
            source = name
            # Weights may pass through a Cast or a DequantizeLinear on their way from the file.
            while source in made_by and made_by[source].op_type in ("Cast", "DequantizeLinear", "QuantizeLinear"):
                source = made_by[source].input[0]
            if source in stored:
                found.add(source)
    return sum(_size(shapes[name]) for name in found)


def _bytes(name: str, shapes: Shapes, kinds: Mapping[str, int]) -> int:
    return _size(shapes[name]) * int(onnx.helper.tensor_dtype_to_np_dtype(kinds[name]).itemsize)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _size(dims: tuple[int, ...]) -> int:
    return math.prod(dims)
