"""Weights stored in 8 bits for graphs that compute in floating point."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from unetx_exporters.onnx.graph import prepend
from unetx_exporters.onnx.operators import WEIGHTED
from unetx_exporters.onnx.precision.store import store_fp16
from unetx_exporters.quantize.weights import quantize_weights
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="storing weights in 8 bits")

__all__ = ["store_int8"]


def store_int8(model: onnx.ModelProto, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """Store the weights of a graph's layers as int8 with one scale per output channel, the rest as `store_fp16`.

    The arithmetic stays that of float32: a runtime makes the weights whole again when it loads the graph.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.
    keep_fp32 : collection of str
        Names of nodes whose weights stay float32.

    Returns
    -------
    onnx.ModelProto
        Graph whose tensors keep their names: weights ``W`` are the product of the cast initializer ``W.int8`` and of
        ``W.scale``, which stays float32. Not by DequantizeLinear, which a runtime keeps for 8-bit kernels and would
        compute anew in every inference. Weights that several layers read stay as they are.

    Raises
    ------
    ExportError
        A weight is not finite.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in changed.graph.initializer}
    readers = [name for node in model.graph.node for name in node.input]
    products: list[onnx.NodeProto] = []
    scales: list[onnx.TensorProto] = []
    for node in model.graph.node:
        name = node.input[1] if node.op_type in WEIGHTED and len(node.input) > 1 else ""
        if name not in stored or node.name in keep_fp32 or readers.count(name) > 1 or _is_grouped(node):
            continue
        weights = quantize_weights(node, onnx.numpy_helper.to_array(stored[name]))
        shape = [1] * weights.codes.ndim
        shape[weights.axis] = -1
        scales.append(onnx.numpy_helper.from_array(weights.scales.reshape(shape), f"{name}.scale"))
        stored[name].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weights.codes), f"{name}.int8"))
        make = onnx.helper.make_node
        products += [
            make("Cast", [f"{name}.int8"], [f"{name}.codes"], name=f"{name}.to_float32", to=onnx.TensorProto.FLOAT),
            make("Mul", [f"{name}.codes", f"{name}.scale"], [name], name=f"{name}.scaled"),
        ]
    changed.graph.initializer.extend(scales)
    prepend(changed.graph, products)
    return store_fp16(changed, {*keep_fp32, *(node.name for node in products)})


def _is_grouped(node: onnx.NodeProto) -> bool:
    """Whether it is a transposed convolution whose output channels lie on no single axis of its weights."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return node.op_type == "ConvTranspose" and groups != 1
