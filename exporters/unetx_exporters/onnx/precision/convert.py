"""Float32 graph to a typed graph that computes in float16, but for the nodes that must not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from unetx_exporters.onnx.graph import check, infer_types, opset_of, producers, tensor_types
from unetx_exporters.onnx.operators import GATE_DOMAIN, MOVEMENT, WEIGHTED, takes_half
from unetx_opt.errors import ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="choosing the precision of a graph")

__all__ = ["convert_fp16", "half_copy", "half_problem", "layer_types", "unfit_for_fp16"]

_FLOAT: Final = 1  # TensorProto.FLOAT
_HALF: Final = 10  # TensorProto.FLOAT16
_NAMES: Final = {_FLOAT: "float32", _HALF: "float16"}
_MIN_NORMAL: Final = 2.0**-14


def convert_fp16(model: onnx.ModelProto, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """Give every float tensor of a graph the type float16.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.
    keep_fp32 : collection of str
        Names of nodes that read and write float32. Nodes that cannot be anything else (`unfit_for_fp16`) are kept
        as well; `layer_types` of the result says so.

    Returns
    -------
    onnx.ModelProto
        Strongly typed graph. Its inputs and outputs stay float32; every tensor keeps its name, the copy of it in
        the other type is called ``<name>.float16`` or ``<name>.float32`` and is made by one Cast however many
        nodes read it.

    Raises
    ------
    ExportError
        `keep_fp32` names a node that the graph does not have, or the graph has nested graphs.
    """
    nodes = {node.name for node in model.graph.node}
    unknown = sorted(set(keep_fp32) - nodes)
    if unknown:
        raise ExportError(f"cannot keep {', '.join(unknown)} in float32: the graph has no node of that name")
    if any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute):
        raise ExportError("the graph has nested graphs (If, Loop), which have no float16 form here: trace it anew")
    converted = infer_types(_lift_constants(model))
    _Conversion(converted, set(keep_fp32) | set(unfit_for_fp16(converted))).run()
    typed = infer_types(converted)
    check(typed)
    return typed


def unfit_for_fp16(model: onnx.ModelProto) -> dict[str, str]:
    """Nodes that cannot compute in float16 whatever the input, each with the reason.

    A weight beyond 65504 would become infinite. A weight tensor whose largest value is below the smallest normal
    float16 (6.1e-5) would keep few or no significant digits; single small weights beside larger ones do no harm,
    since their rounding error is below that of the larger ones. An operator of another domain has no known types.
    """
    problems = {tensor.name: half_problem(tensor) for tensor in model.graph.initializer}
    reasons: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain not in ("", GATE_DOMAIN):
            reasons[node.name] = f"operator of the domain {node.domain}"
            continue
        found = [f"{name}: {problems[name]}" for name in node.input if problems.get(name)]
        if found:
            reasons[node.name] = found[0]
    return reasons


def half_problem(tensor: onnx.TensorProto) -> str | None:
    """Say why a float32 initializer cannot be stored as float16; None where it can."""
    if tensor.data_type != _FLOAT:
        return None
    largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))
    if not np.isfinite(largest):
        return "holds a value that is not finite"
    if largest >= 65520.0:  # what rounds to infinity
        return f"holds {largest:.4g}, beyond the largest float16 (65504)"
    if 0.0 < largest < _MIN_NORMAL:
        return f"its largest value is {largest:.3g}, below the smallest normal float16 (6.1e-5)"
    return None


def layer_types(model: onnx.ModelProto) -> Mapping[str, str]:
    """Type in which every computing node of a typed graph computes.

    Returns
    -------
    mapping of str to str
        Node name to "float32", "float16", or "int8" for a layer whose input and weights both come from
        DequantizeLinear. Nodes that only move data are not listed.
    """
    typed = infer_types(model)
    types, made_by = tensor_types(typed), producers(typed.graph)
    found: dict[str, str] = {}
    for node in typed.graph.node:
        if node.op_type in MOVEMENT or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        sources = [made_by[name].op_type if name in made_by else "" for name in node.input[:2]]
        if node.op_type in WEIGHTED and sources == ["DequantizeLinear"] * 2:
            found[node.name] = "int8"
        elif types.get(node.output[0]) in _NAMES:
            found[node.name] = _NAMES[types[node.output[0]]]
    return found


class _Conversion:
    """One pass over a graph: every tensor has a home type, and each reader gets the type it wants."""

    def __init__(self, model: onnx.ModelProto, kept: Collection[str]) -> None:
        self.graph = model.graph
        self.opset = opset_of(model)
        self.kept = kept
        self.home = dict.fromkeys((value.name for value in model.graph.input), _FLOAT)
        self.floats = {name for name, kind in tensor_types(model).items() if kind == _FLOAT}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.stored: dict[str, onnx.TensorProto] = {}
        self.copies: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in self.graph.node:
            self._convert(node)
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(self.stored.values())

    def _convert(self, node: onnx.NodeProto) -> None:
        half = node.name not in self.kept
        for index, name in enumerate(node.input):
            wanted = _HALF if half and takes_half(node, index, self.opset) else _FLOAT
            if name in self.weights:
                node.input[index] = self._weight(name, wanted)
            elif name in self.floats:
                node.input[index] = self._copy(name, wanted)
        if half:
            _retype_attributes(node)
        # A copy, since the field that owns the node is emptied in the end.
        made = onnx.NodeProto()
        made.CopyFrom(node)
        self.nodes.append(made)
        for index, name in enumerate(made.output):
            if name not in self.floats:
                continue
            self.home[name] = _HALF if half else _FLOAT
            if half and name in self.outputs:
                made.output[index] = f"{name}.float16"
                self._cast(made.output[index], name, _FLOAT)
                self.home[name] = _FLOAT
                self.copies[name, _HALF] = made.output[index]

    def _copy(self, name: str, wanted: int) -> str:
        if self.home[name] == wanted:
            return name
        if (name, wanted) not in self.copies:
            self.copies[name, wanted] = f"{name}.{_NAMES[wanted]}"
            self._cast(name, self.copies[name, wanted], wanted)
        return self.copies[name, wanted]

    def _cast(self, name: str, result: str, kind: int) -> None:
        # Named after the tensor that it reads, once per type: that is unique.
        cast = onnx.helper.make_node("Cast", [name], [result], name=f"{name}.to_{_NAMES[kind]}", to=kind)
        self.nodes.append(cast)

    def _weight(self, name: str, wanted: int) -> str:
        tensor = self.weights[name]
        kind = wanted if tensor.data_type == _FLOAT else tensor.data_type
        if (name, kind) not in self.copies:
            # The first reader's type keeps the plain name; few tensors, if any, are read in both.
            result = name if name not in self.stored else f"{name}.{_NAMES[kind]}"
            self.copies[name, kind] = result
            self.stored[result] = (
                half_copy(tensor, result) if kind != tensor.data_type else _plain_copy(tensor, result)
            )
        return self.copies[name, kind]


def half_copy(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """Round a float32 initializer to float16, under another name."""
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), name)


def _plain_copy(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copied = onnx.TensorProto()
    copied.CopyFrom(tensor)
    copied.name = name
    return copied


def _retype_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = _HALF
        if node.op_type == "ConstantOfShape" and attribute.name == "value" and attribute.t.data_type == _FLOAT:
            attribute.t.CopyFrom(half_copy(attribute.t, attribute.t.name))


def _lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with its Constant nodes as initializers, so that each reader decides their type."""
    lifted = onnx.ModelProto()
    lifted.CopyFrom(model)
    nodes = []
    for node in model.graph.node:
        values = _constant(node)
        if values is None:
            nodes.append(node)
        else:
            lifted.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
    del lifted.graph.node[:]
    lifted.graph.node.extend(nodes)
    return lifted


def _constant(node: onnx.NodeProto) -> np.ndarray | None:
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    readers: dict[str, Callable[[], np.ndarray]] = {
        "value": lambda: np.asarray(onnx.numpy_helper.to_array(value)),
        "value_float": lambda: np.array(value, np.float32),
        "value_floats": lambda: np.array(value, np.float32),
        "value_int": lambda: np.array(value, np.int64),
        "value_ints": lambda: np.array(value, np.int64),
    }
    reader = readers.get(attribute.name)
    return None if reader is None else reader()
