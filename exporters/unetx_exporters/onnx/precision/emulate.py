"""What a float16 engine computes, on a CPU that computes in float32.

ONNX Runtime's CPU provider has float16 kernels for next to nothing. It runs a float16 graph in float32, and takes
the casts that it puts round each node out again, at every optimisation level: nothing is rounded between nodes
and nothing overflows. Casts that are part of the graph it leaves alone. So the rounding is written into the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from unetx_exporters.onnx.graph import check, infer_types, tensor_types
from unetx_exporters.onnx.operators import EXACT
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="emulating float16")

__all__ = ["emulate_fp16"]

_FLOAT: Final = 1  # TensorProto.FLOAT
_HALF: Final = 10  # TensorProto.FLOAT16


def emulate_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn a typed graph into a float32 graph that rounds to float16 where the typed one would.

    Parameters
    ----------
    model : onnx.ModelProto
        As `convert_fp16` gives it.

    Returns
    -------
    onnx.ModelProto
        Float32 graph; each tensor keeps its name and holds, as float32, the value that it has in float16:
        rounded to nearest even, infinite beyond 65504, with subnormals. Within a node sums are float32, as on
        GPUs that accumulate in float32. Reading and writing of the rounded value is what an engine does that
        fuses nothing, so a real engine may round less often.
    """
    typed = infer_types(model)
    types = tensor_types(typed)
    nodes: list[onnx.NodeProto] = []
    for node in typed.graph.node:
        nodes.extend(_emulated(node, types))
    graph = onnx.GraphProto(node=nodes)
    del typed.graph.node[:], typed.graph.value_info[:]
    typed.graph.node.extend(graph.node)
    for tensor in typed.graph.initializer:
        if tensor.data_type == _HALF:
            tensor.CopyFrom(_single_copy(tensor))
    for value in (*typed.graph.input, *typed.graph.output):
        if value.type.tensor_type.elem_type == _HALF:
            value.type.tensor_type.elem_type = _FLOAT
    emulated = infer_types(typed)
    check(emulated)
    return emulated


def _emulated(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    halves = [index for index, name in enumerate(made.output) if types.get(name) == _HALF]
    if made.op_type == "Cast" and types.get(made.input[0]) == _HALF and types.get(made.output[0]) == _FLOAT:
        # Its input is rounded already; a Cast from float32 to float32 would stand in the way of nothing.
        made.op_type = "Identity"
        del made.attribute[:]
    for attribute in made.attribute:
        if made.op_type == "Cast" and attribute.name == "to" and attribute.i == _HALF:
            attribute.i = _FLOAT
        if attribute.HasField("t") and attribute.t.data_type == _HALF:
            attribute.t.CopyFrom(_single_copy(attribute.t))
    if not halves or (made.op_type in EXACT and made.op_type != "Cast"):
        return [made]
    rounding = []
    for index in halves:
        name = made.output[index]
        exact, half = f"{name}.exact", f"{name}.rounded"
        made.output[index] = exact
        rounding.append(onnx.helper.make_node("Cast", [exact], [half], name=f"{half}.to_float16", to=_HALF))
        rounding.append(onnx.helper.make_node("Cast", [half], [name], name=f"{half}.to_float32", to=_FLOAT))
    return [made, *rounding]


def _single_copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
