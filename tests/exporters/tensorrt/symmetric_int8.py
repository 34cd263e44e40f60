"""Q/DQ pairs as TensorRT-RTX takes them: symmetric int8 for the data and the weights of every convolution."""

from __future__ import annotations

from typing import Any

import numpy as np


def quantize(model: Any, *operations: str) -> Any:
    """Insert a Q/DQ pair before data and weights of all nodes of these operations."""
    import onnx

    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    tensors = {"scale": np.float32(0.01), "zero": np.int8(0)}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items())
    nodes = []
    for node in graph.node:
        if node.op_type in operations:
            for index in (0, 1):
                name = f"{node.name}.{index}"
                source, middle, result = node.input[index], f"{name}.int8", f"{name}.float"
                nodes.append(_node("QuantizeLinear", [source, *tensors], middle))
                nodes.append(_node("DequantizeLinear", [middle, *tensors], result))
                node.input[index] = result
        nodes.append(node)
    copies = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)
    return quantized


def _node(operation: str, inputs: list[str], output: str) -> Any:
    import onnx

    return onnx.helper.make_node(operation, inputs, [output], name=output)
