"""Which tensors of a graph can be held in 8 bits, and which of them must share one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unetx_exporters.onnx.graph import infer_types, producers, tensor_types
from unetx_exporters.onnx.operators import WEIGHTED

if TYPE_CHECKING:
    import onnx

__all__ = ["CARRIERS", "Flow", "list_tensors"]

#: Operators whose result lies on the same grid as what they read, so that 8-bit values pass unchanged.
CARRIERS: Final = frozenset({"Concat", "MaxPool", "Pad", "Slice"})
_FLOAT: Final = 1


class Flow:
    """The data of a float32 graph: who makes a tensor, and what passes it on.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph; its node and tensor names are unique.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        typed = infer_types(model)
        self.nodes = {node.name: node for node in typed.graph.node}
        self.made_by = producers(typed.graph)
        self.stored = {tensor.name: tensor for tensor in typed.graph.initializer}
        self._floats = {name for name, kind in tensor_types(typed).items() if kind == _FLOAT}
        self.read_by: dict[str, list[onnx.NodeProto]] = {}
        for node in typed.graph.node:
            for name in dict.fromkeys(node.input):
                self.read_by.setdefault(name, []).append(node)

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Tensors that a node reads which are neither stored nor indices."""
        return [name for name in node.input if name in self._floats and name not in self.stored]

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node has stored weights, so that it can have integer arithmetic."""
        return node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in self.stored

    def is_junction(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds two tensors of the same shape in front of a layer: a skip connection."""
        if node.op_type != "Add" or len(self.data_inputs(node)) != 2:
            return False
        return any(self.is_layer(reader) for reader in self.read_by.get(node.output[0], ()))

    def carried(self, name: str) -> list[str]:
        """What a tensor's values come from unchanged: the inputs of its carrier, or nothing."""
        node = self.made_by.get(name)
        return self.data_inputs(node) if node is not None and node.op_type in CARRIERS else []

    def sources(self, name: str) -> list[str]:
        """Tensors that a tensor's values come from unchanged, through all carriers: at least itself."""
        carried = self.carried(name)
        return [source for before in carried for source in self.sources(before)] if carried else [name]


def list_tensors(flow: Flow) -> tuple[str, ...]:
    """List the tensors that need a range: those from which the data of every layer and junction comes unchanged.

    What a carrier makes is no part of it: it has the range of what the carrier reads.
    """
    wanted: dict[str, None] = {}
    for node in flow.nodes.values():
        if flow.is_layer(node) or flow.is_junction(node):
            wanted |= dict.fromkeys(source for name in flow.data_inputs(node) for source in flow.sources(name))
    return tuple(wanted)
