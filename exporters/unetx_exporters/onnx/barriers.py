"""Fusions broken on purpose: what an engine computes wrongly across a junction, it may compute rightly up to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unetx_exporters.onnx.graph import check, infer_types, tensor_types
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="rewriting a graph")

__all__ = ["add_barriers"]


def add_barriers(model: onnx.ModelProto, junctions: Sequence[str]) -> onnx.ModelProto:
    """Put an operation that changes nothing and that no engine removes behind every junction, to break fusions.

    Parameters
    ----------
    model : onnx.ModelProto
        Any graph of this package.
    junctions : sequence of str
        Tensors of it; they keep their names and are then made by a ``Min`` with the largest number of their type.

    Returns
    -------
    onnx.ModelProto
        A copy that computes the same values.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    types = tensor_types(infer_types(model))
    nodes = []
    for node in changed.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in junctions:
                continue
            dtype = onnx.helper.tensor_dtype_to_np_dtype(types[name])
            largest = onnx.numpy_helper.from_array(np.asarray(np.finfo(dtype).max, dtype), f"{name}.largest")
            changed.graph.initializer.append(largest)
            node.output[index] = f"{name}.unfused"
            barrier = onnx.helper.make_node("Min", [f"{name}.unfused", largest.name], [name], name=f"{name}.barrier")
            nodes.append(barrier)
    graph = onnx.GraphProto(node=nodes)
    del changed.graph.node[:]
    changed.graph.node.extend(graph.node)
    typed = infer_types(changed)
    check(typed)
    return typed
