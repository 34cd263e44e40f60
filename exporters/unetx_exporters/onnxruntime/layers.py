"""Layers of an ONNX graph, as it is shipped or as ONNX Runtime has optimised it: their names and their types."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.optional import require

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = [
    "INTEGER_OPERATIONS",
    "WEIGHT_INPUT",
    "arithmetic_nodes",
    "dtype_name",
    "layer_dtypes",
    "layer_name",
    "list_names",
    "shipped_names",
    "storage_dtype",
]

#: Operations that do the arithmetic, with the position of their weights (or second factor).
WEIGHT_INPUT: Final[Mapping[str, int]] = {
    "Conv": 1,
    "FusedConv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "FusedGemm": 1,
    "MatMul": 1,
    "FusedMatMul": 1,
    "ConvInteger": 1,
    "MatMulInteger": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "QGemm": 3,
}
#: Those of them that multiply 8-bit integers.
INTEGER_OPERATIONS: Final = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm"})

_SHOWN: Final = 8  # names in a message

# What the optimiser adds to the name of a node that it replaces.
_AFFIXES: Final = re.compile(r"^InsertedPrecisionFreeCast_|(?:_nchwc|_nhwc|_token_\d+|_quant)+$")


def arithmetic_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Go through a graph's convolutions and matrix products."""
    return (node for node in model.graph.node if node.op_type in WEIGHT_INPUT)


def layer_name(node: NodeProto) -> str:
    """Name a node, one without a name by its result."""
    name: str = node.name or node.output[0]
    return name


def layer_dtypes(model: ModelProto) -> dict[str, str]:
    """List the types in which a graph's convolutions and matrix products compute.

    Parameters
    ----------
    model : onnx.ModelProto
        Any graph, also one that ONNX Runtime has optimised.

    Returns
    -------
    dict of str to str
        Node name to the ONNX name of its type; "int8" for every operation on 8-bit integers.
    """
    types = _value_types(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    layers: dict[str, str] = {}
    for node in arithmetic_nodes(model):
        if node.op_type in INTEGER_OPERATIONS:
            dtype = "int8"
        else:
            dtype = _type_of(node.input[WEIGHT_INPUT[node.op_type]], types, producers)
        layers[layer_name(node)] = dtype
    return layers


def storage_dtype(model: ModelProto) -> str:
    """Name the type that holds most of a file's weights, counted in elements."""
    elements: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        size = 1
        for length in tensor.dims:
            size *= length
        elements[dtype_name(tensor.data_type)] += size
    return elements.most_common(1)[0][0] if elements else "float32"


def shipped_names(executed: Iterable[str], shipped: ModelProto) -> dict[str, str]:
    """Find the shipped node that each executed layer stands for.

    Parameters
    ----------
    executed : iterable of str
        Names of layers of the graph that ONNX Runtime has optimised.
    shipped : onnx.ModelProto
        The graph before that.

    Returns
    -------
    dict of str to str
        Executed name to the shipped one; to itself where none is known.
    """
    known = {name: layer_name(node) for node, names in _aliases(shipped) for name in names}
    return {name: known.get(name) or known.get(_AFFIXES.sub("", _AFFIXES.sub("", name)), name) for name in executed}


def list_names(names: Sequence[str]) -> str:
    """Put names into a message, the first few of many."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def dtype_name(number: int) -> str:
    """Name an ONNX element type as numpy does."""
    onnx = require("onnx", purpose="reading an engine's layers back")
    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return "float32" if name == "float" else name


def _aliases(model: ModelProto) -> Iterator[tuple[NodeProto, set[str]]]:
    """Names that a fused layer may bear: those of the node, its result, and of what is fused behind it."""
    consumers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node)
    for node in arithmetic_nodes(model):
        names = {node.name, node.output[0]}
        last = node
        while len(consumers[last.output[0]]) == 1:
            last = consumers[last.output[0]][0]
            if last.op_type in WEIGHT_INPUT:
                break
            names |= {last.output[0]}
        yield node, names - {""}


def _value_types(model: ModelProto) -> dict[str, str]:
    types = {tensor.name: dtype_name(tensor.data_type) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        types[value.name] = dtype_name(value.type.tensor_type.elem_type)
    return types


def _type_of(name: str, types: Mapping[str, str], producers: Mapping[str, Any]) -> str:
    """Follow a value back to something that states its type."""
    while name not in types:
        node = producers.get(name)
        if node is None:
            return "unknown"
        if node.op_type == "Cast":
            return dtype_name(next(item.i for item in node.attribute if item.name == "to"))
        # The result of a dequantisation has the type of its scale, not that of its integers.
        name = node.input[1] if node.op_type == "DequantizeLinear" else node.input[0]
    return types[name]
