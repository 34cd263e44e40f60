"""Weights stored in float16 for graphs that compute in float32."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from unetx_exporters.onnx.graph import check, infer_types, opset_of, prepend
from unetx_exporters.onnx.operators import takes_half
from unetx_exporters.onnx.precision.convert import half_copy, half_problem
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="storing weights as float16")

__all__ = ["store_fp16"]

_FLOAT: Final = 1  # TensorProto.FLOAT


def store_fp16(model: onnx.ModelProto, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """Store the float32 weights of a graph as float16, and cast them back in front of their readers.

    For targets without float16 arithmetic: the file is half as large and the weights are those of the float16
    engine; the arithmetic, its result and (once the engine has folded the casts at load) its speed are those of
    float32.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.
    keep_fp32 : collection of str
        Names of nodes whose weights stay float32.

    Returns
    -------
    onnx.ModelProto
        Graph whose tensors keep their names: a weight ``W`` is the output of a Cast of the initializer
        ``W.float16``. Scalars, parameters that must be constants (the scales of Resize) and tensors that float16
        cannot hold stay as they are.
    """
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    graph = stored.graph
    constant = _must_stay_constant(stored)
    constant |= {name for node in graph.node if node.name in keep_fp32 for name in node.input}
    casts = []
    for tensor in graph.initializer:
        if (
            tensor.data_type != _FLOAT
            or math.prod(tensor.dims) < 2
            or tensor.name in constant
            or half_problem(tensor)
        ):
            continue
        name = tensor.name
        tensor.CopyFrom(half_copy(tensor, f"{name}.float16"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], name=f"{name}.to_float32", to=_FLOAT))
    prepend(graph, casts)
    typed = infer_types(stored)
    check(typed)
    return typed


def _must_stay_constant(model: onnx.ModelProto) -> set[str]:
    opset = opset_of(model)
    return {
        name
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if not takes_half(node, index, opset)
    }
