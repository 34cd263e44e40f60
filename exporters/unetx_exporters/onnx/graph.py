"""What every step on an ONNX graph needs: its types, its dead parts, and tensors marked as outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

from unetx_opt.errors import ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="working on an ONNX graph")

_Message = TypeVar("_Message", "onnx.NodeProto", "onnx.TensorProto", "onnx.ValueInfoProto")

__all__ = [
    "INPUT_NAME",
    "JUNCTION_PREFIX",
    "OUTPUT_NAME",
    "check",
    "infer_types",
    "mark_outputs",
    "opset_of",
    "prepend",
    "producers",
    "prune",
    "tensor_types",
]

INPUT_NAME: Final = "image"
OUTPUT_NAME: Final = "logits"
#: What the names of the tensors at the skip junctions start with.
JUNCTION_PREFIX: Final = "junction."


def infer_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer the type and shape of every tensor afresh.

    Parameters
    ----------
    model : onnx.ModelProto
        Its ``value_info`` is not read, so that what it held before a conversion cannot contradict the nodes.

    Returns
    -------
    onnx.ModelProto
        A copy with ``value_info`` for every tensor between nodes.

    Raises
    ------
    ExportError
        A node is given types that its operator does not take.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"the graph is not typed: {_first_line(error)}; this is a defect of the exporter"
        ) from error


def check(model: onnx.ModelProto) -> None:
    """Run the full checker of ONNX, types and shapes included.

    Raises
    ------
    ExportError
        The graph breaks a rule of ONNX.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the graph is not valid ONNX: {_first_line(error)}; this is a defect of the exporter"
        ) from error


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor name to ONNX element type, for inputs, outputs, initializers and every typed tensor between."""
    graph = model.graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for values in (graph.input, graph.value_info, graph.output)
        for value in values
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operator set that a graph uses."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Tensor name to the node that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def prepend(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put nodes in front of all others of a graph, in place."""
    whole = onnx.GraphProto(node=[*nodes, *graph.node])
    del graph.node[:]
    graph.node.extend(whole.node)


def prune(model: onnx.ModelProto) -> None:
    """Remove, in place, the nodes and initializers that no output depends on."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    # What is taken over must be copied before the field that owns it is cleared.
    kept = [_copy(node) for node in reversed(nodes)]
    initializers = [_copy(tensor) for tensor in graph.initializer if tensor.name in needed]
    values = [_copy(value) for value in graph.value_info if value.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    graph.value_info.extend(values)


def mark_outputs(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Mark tensors as further outputs of a graph.

    Parameters
    ----------
    model : onnx.ModelProto
        Any graph.
    names : collection of str
        Tensor names, each made by a node; outputs already marked are left as they are.

    Returns
    -------
    onnx.ModelProto
        A copy with `names` appended to its outputs, in the order given.

    Raises
    ------
    ExportError
        The graph has no tensor of such a name.
    """
    marked = infer_types(model)
    present = {value.name for value in marked.graph.output}
    typed = {value.name: value for value in marked.graph.value_info}
    for name in names:
        if name in present:
            continue
        if name not in typed:
            raise ExportError(f"the graph has no tensor {name!r} to mark as an output: trace the model again")
        marked.graph.output.add().CopyFrom(typed[name])
        present.add(name)
    return marked


def _copy(message: _Message) -> _Message:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
