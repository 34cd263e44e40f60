"""A graph with Q/DQ pairs as ONNX Runtime's CPU provider runs most of it on integers, with the same values.

The provider fuses a convolution with the DequantizeLinear nodes before it and the QuantizeLinear behind it. Two
things between them would keep it from that:

- a pooling or concatenation of 8-bit tensors: it is moved in front of the DequantizeLinear, where it works on
  integers;
- a rectifier before a QuantizeLinear whose zero point is not the lowest code: rounding to the grid first and cutting
  off the codes below the zero point gives the same codes, because 0 lies on the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.onnx.graph import check, infer_types, prune
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="building an onnxruntime-cpu engine")

__all__ = ["integer_form"]

#: Operators that ONNX Runtime has for 8-bit integers, and that change no value.
_MOVABLE: Final = frozenset({"Concat", "MaxPool"})


def integer_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a graph with Q/DQ pairs; its results stay the same, bit by bit, for exact arithmetic.

    Parameters
    ----------
    model : onnx.ModelProto
        Graph of the scheme "cpu".

    Returns
    -------
    onnx.ModelProto
        A copy.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    _Rewrite(rewritten).run()
    prune(rewritten)
    typed = infer_types(rewritten)
    check(typed)
    return typed


class _Rewrite:
    """One pass over the nodes, in the order of computation."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.values = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made: dict[str, onnx.NodeProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.outputs = {value.name for value in model.graph.output}

    def run(self) -> None:
        for node in self.graph.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            if not (self._move(copied) or self._rectify(copied)):
                self._append(copied)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def _append(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        self.made.update(dict.fromkeys(node.output, node))

    def _move(self, node: onnx.NodeProto) -> bool:
        """Let a carrier work on integers, if all that it reads lies on one grid."""
        sources = [self.made.get(name) for name in node.input]
        pairs = [source for source in sources if source is not None and source.op_type == "DequantizeLinear"]
        if node.op_type not in _MOVABLE or len(pairs) != len(node.input) or node.output[0] in self.outputs:
            return False
        grids = {tuple(pair.input[1:]) for pair in pairs}
        if len(grids) != 1:
            return False
        result, quantized = node.output[0], f"{node.output[0]}.quantized"
        del node.input[:]
        node.input.extend(pair.input[0] for pair in pairs)
        node.output[0] = quantized
        self._append(node)
        self._append(self._node("DequantizeLinear", [quantized, *grids.pop()], result, "dequantize"))
        return True

    def _rectify(self, node: onnx.NodeProto) -> bool:
        """Quantize in front of a rectifier and cut the codes off, where the zero point keeps the two from fusing."""
        source = self.made.get(node.input[0])
        if node.op_type != "QuantizeLinear" or source is None or source.op_type != "Relu":
            return False
        codes: np.ndarray[Any, Any] = onnx.numpy_helper.to_array(self.values[node.input[2]])
        if int(codes) == np.iinfo(codes.dtype).min:
            return False
        rectified, result = source.output[0], node.output[0]
        before = f"{rectified}.unrectified"
        scale, zero_point = node.input[1:]
        self._append(self._node("QuantizeLinear", [source.input[0], scale, zero_point], before, "quantize"))
        self._append(self._node("Clip", [before, zero_point], result, "clip"))
        return True

    @staticmethod
    def _node(operator: str, inputs: list[str], output: str, word: str) -> onnx.NodeProto:
        return onnx.helper.make_node(operator, inputs, [output], name=f"{output}.{word}")
