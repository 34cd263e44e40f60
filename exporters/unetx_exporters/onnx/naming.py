"""Stable, readable names for the nodes and tensors of a traced graph, and nothing about where it was traced.

The exporter numbers its tensors and keeps source paths, stack traces and the text of the traced program beside
every node. Names here come from the module that a node belongs to, so that an engine's layer list can be read
against the torch module: ``encoder.0.conv1`` for a layer with weights, ``encoder.0.relu_1`` for what has none.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from unetx_exporters.onnx.graph import JUNCTION_PREFIX
from unetx_exporters.onnx.operators import WEIGHTED
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="naming the nodes of an ONNX graph")

__all__ = ["rename_graph", "strip_metadata"]

_SCOPES: Final = "pkg.torch.onnx.name_scopes"

_PARAMETER_ROLES: Final = (None, "weight", "bias")


def rename_graph(model: onnx.ModelProto, prefix: str, fixed: Collection[str]) -> None:
    """Rename every node, tensor and initializer in place.

    Parameters
    ----------
    model : onnx.ModelProto
        Graph as exported, with the exporter's metadata.
    prefix : str
        Module path that all parameters start with and that no name keeps: "network".
    fixed : collection of str
        Tensors that keep their names: inputs, outputs and junctions.
    """
    graph = model.graph
    parameters = {tensor.name for tensor in graph.initializer}
    tensors: dict[str, str] = {name: name for name in fixed}
    used: dict[str, int] = {}
    for node in graph.node:
        node.name = _unique(_node_name(node, parameters, prefix, fixed), used)
        _name_parameters(node, parameters, tensors)
        for index, output in enumerate(node.output):
            if output:
                tensors.setdefault(output, f"{node.name}.out" if index == 0 else f"{node.name}.out{index}")
    _apply(graph, tensors)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove, in place, everything that tells where and by what a graph was traced."""
    graph = model.graph
    model.producer_name = "unetx-opt"
    graph.name = "unet"
    for field in ("doc_string", "domain", "producer_version", "model_version"):
        model.ClearField(field)
    graph.ClearField("doc_string")
    del model.metadata_props[:], graph.metadata_props[:], graph.quantization_annotation[:]
    described = (graph.node, graph.initializer, graph.value_info, graph.input, graph.output)
    for messages in described:
        for message in messages:
            message.ClearField("doc_string")
            message.ClearField("metadata_props")


def _node_name(node: onnx.NodeProto, parameters: set[str], prefix: str, fixed: Collection[str]) -> str:
    if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in parameters:
        weight: str = node.input[1]
        return weight.removeprefix(f"{prefix}.").removesuffix(".weight")
    path = _module_path(node).removeprefix(prefix).removeprefix(".")
    if not path:
        # Code of the network itself: the junction that the node makes says more than its operator alone.
        path = next((name for name in node.output if name in fixed), "").removeprefix(JUNCTION_PREFIX)
    return f"{path}.{node.op_type.lower()}".removeprefix(".")


def _module_path(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes: list[str] = ast.literal_eval(entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def _name_parameters(node: onnx.NodeProto, parameters: set[str], tensors: dict[str, str]) -> None:
    for index, name in enumerate(node.input):
        if name not in parameters or name in tensors:
            continue
        is_layer = node.op_type in WEIGHTED and 0 < index < len(_PARAMETER_ROLES)
        role = _PARAMETER_ROLES[index] if is_layer else f"constant{index}"
        tensors[name] = f"{node.name}.{role}"


def _unique(name: str, used: dict[str, int]) -> str:
    count = used.get(name, 0)
    used[name] = count + 1
    return name if count == 0 else f"{name}_{count}"


def _apply(graph: onnx.GraphProto, tensors: Mapping[str, str]) -> None:
    for node in graph.node:
        for field in (node.input, node.output):
            renamed = [tensors[name] if name else "" for name in field]
            del field[:]
            field.extend(renamed)
    for tensor in graph.initializer:
        tensor.name = tensors[tensor.name]
