"""What is taken into the weights of a graph before it is quantized: constant factors behind a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from unetx_exporters.onnx.graph import prune
from unetx_exporters.quantize.tensors import Flow
from unetx_opt.errors import ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="quantizing a graph")

__all__ = ["fold_factors", "refuse_unfolded"]

_NOT_FOLDED: Final = "BatchNormalization"


def refuse_unfolded(model: onnx.ModelProto) -> None:
    """Refuse a graph with batch normalisation: its factors belong into the weights that are quantized.

    Raises
    ------
    ExportError
        There is one.
    """
    left = [node.name for node in model.graph.node if node.op_type == _NOT_FOLDED]
    if left:
        raise ExportError(
            f"batch normalisation is not folded ({', '.join(left)}): trace the model in evaluation mode"
        )


def fold_factors(model: onnx.ModelProto) -> onnx.ModelProto:
    """Multiply the weights of a layer by the constant that its result is multiplied by.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.

    Returns
    -------
    onnx.ModelProto
        A copy without those multiplications; the layer's result takes the name of theirs.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    flow = Flow(folded)
    graph = folded.graph
    for node in list(graph.node):
        factor = _factor_behind(flow, node)
        if factor is None:
            continue
        readers = flow.read_by[node.output[0]]
        for index, name in enumerate(node.input[1:3], start=1):
            values = onnx.numpy_helper.to_array(flow.stored[name]) * np.float32(factor)
            node.input[index] = f"{name}.folded"
            graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.input[index]))
        node.output[0] = readers[0].output[0]
        gone = next(other for other in graph.node if other.name == readers[0].name)
        graph.node.remove(gone)
    prune(folded)
    return folded


def _factor_behind(flow: Flow, node: onnx.NodeProto) -> float | None:
    """Constant that the only reader of a layer multiplies its result by; None where there is none."""
    readers = flow.read_by.get(node.output[0], []) if node.output else []
    if not flow.is_layer(node) or len(readers) != 1 or readers[0].op_type != "Mul":
        return None
    others = [name for name in readers[0].input if name != node.output[0]]
    if len(others) != 1 or others[0] not in flow.stored:
        return None
    values = onnx.numpy_helper.to_array(flow.stored[others[0]])
    return float(values.ravel()[0]) if values.size == 1 else None
