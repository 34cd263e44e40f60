"""Float32 graph and ranges to an explicitly quantized graph: Q/DQ pairs round the layers that compute in 8 bits.

Where pairs stand decides how fast an engine is, and how exact:

- one pair per tensor, behind the activation, which all readers share: an engine fuses it into the layer that makes
  the tensor, which then writes 8-bit values;
- none behind a concatenation or a pooling: their results lie on the grid of what they read, and a second pair would
  quantize twice. The inputs of a concatenation therefore share one scale;
- weights are stored as int8, symmetric, one scale per output channel; biases stay float;
- a layer that a plan keeps in floating point reads the tensor itself, not its rounded copy; what has no weights
  reads the copy, so that no layer has to write its result in two types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.onnx.graph import check, infer_types
from unetx_exporters.quantize.calibrate import load_graph
from unetx_exporters.quantize.fold import fold_factors, refuse_unfolded
from unetx_exporters.quantize.grids import Quantizer
from unetx_exporters.quantize.ranges import TensorRange
from unetx_exporters.quantize.schemes import Form, get_form
from unetx_exporters.quantize.tensors import CARRIERS, Flow
from unetx_exporters.quantize.weights import quantize_weights
from unetx_opt.errors import ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="quantizing a graph")

__all__ = ["QuantizePlan", "insert_qdq", "planned_types"]

_TYPES: Final = frozenset({"int8", "float16", "float32"})


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """Which layers of a graph compute in 8 bits, and for which targets.

    Attributes
    ----------
    scheme : str
        A key of `unetx_exporters.quantize.schemes.FORMS`.
    layer_types : mapping of str to str
        Node to "int8", "float16" or "float32". A layer that is not named has the scheme's floating-point type; so
        has one in int8 that the scheme has no integer arithmetic for (`planned_types` says which).
    bias_shifts : mapping of str to numpy.ndarray
        Layer -> (output channels,) float32 that is added to its bias if it is int8.
    """

    scheme: str
    layer_types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    bias_shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=lambda: MappingProxyType({}))


def planned_types(graph: Path | onnx.ModelProto, plan: QuantizePlan) -> dict[str, str]:
    """Type that `insert_qdq` gives every layer with weights: what an attestation compares with.

    Raises
    ------
    ExportError
        The plan names a node that the graph does not have, or a type that there is not.
    """
    return _planned_types(Flow(load_graph(graph)), plan, get_form(plan.scheme))


def insert_qdq(
    graph: Path | onnx.ModelProto, ranges: Mapping[str, TensorRange], plan: QuantizePlan
) -> onnx.ModelProto:
    """Quantize a graph.

    Parameters
    ----------
    graph : pathlib.Path or onnx.ModelProto
        Float32 graph with batch normalisation folded.
    ranges : mapping of str to TensorRange
        Of the tensors that the plan needs; `calibrate_ranges` gives all that any plan needs.
    plan : QuantizePlan
        Types of the layers.

    Returns
    -------
    onnx.ModelProto
        A copy; its input and output stay float32 and keep their names, and so does every node. In the scheme
        "tensorrt" what is neither 8-bit nor planned as float32 is float16.

    Raises
    ------
    ExportError
        The plan or the ranges do not fit the graph.
    """
    form = get_form(plan.scheme)
    source = load_graph(graph)
    refuse_unfolded(source)
    types = _planned_types(Flow(source), plan, form)
    model = fold_factors(source)
    flow = Flow(model)
    kept = {name for name, dtype in plan.layer_types.items() if dtype == "float32"}
    insertion = _Insertion(model, flow, form, types | dict.fromkeys(kept, "float32"))
    insertion.shifts = plan.bias_shifts
    insertion.run(ranges)
    if form.float_dtype == "float16":
        from unetx_exporters.onnx.precision import convert_fp16

        return convert_fp16(model, kept & set(flow.nodes))
    typed = infer_types(model)
    check(typed)
    return typed


def _planned_types(flow: Flow, plan: QuantizePlan, form: Form) -> dict[str, str]:
    unknown = sorted(set(plan.layer_types) - set(flow.nodes))
    if unknown:
        raise ExportError(f"a type is planned for {', '.join(unknown)}: the graph has no node of that name")
    wrong = sorted(set(plan.layer_types.values()) - _TYPES)
    if wrong:
        raise ExportError(
            f"the plan names the types {', '.join(wrong)}, expected some of {', '.join(sorted(_TYPES))}"
        )
    types = {}
    for name, node in flow.nodes.items():
        if flow.is_layer(node):
            dtype = plan.layer_types.get(name, form.float_dtype)
            if dtype == "float16" or (dtype == "int8" and node.op_type not in form.layers):
                dtype = form.float_dtype
            types[name] = dtype
    return types


class _Insertion:
    """One pass over a graph: which tensors get a pair, then every reader gets the copy that it wants.

    `carriers` are the nodes that pass 8-bit values on, or add them, for a layer in int8.
    """

    def __init__(self, model: onnx.ModelProto, flow: Flow, form: Form, types: Mapping[str, str]) -> None:
        self.graph = model.graph
        self.flow = flow
        self.form = form
        self.types = types
        self.parent: dict[str, str] = {}
        self.carriers: set[str] = set()
        self.pairs: dict[str, None] = {}
        self.added: list[onnx.TensorProto] = []
        self.shifts: Mapping[str, NDArray[np.float32]] = {}

    def run(self, ranges: Mapping[str, TensorRange]) -> None:
        for node in self.flow.nodes.values():
            if self.types.get(node.name) == "int8":
                self._demand(node.input[0])
        if self.form.additions:
            self._quantize_additions()
        quantizers = self._fit(ranges)
        nodes: list[onnx.NodeProto] = []
        for value in self.graph.input:
            nodes.extend(self._pair(value.name, quantizers))
        for node in self.graph.node:
            made = onnx.NodeProto()
            made.CopyFrom(node)
            nodes.extend(self._rewire(made))
            nodes.append(made)
            for name in node.output:
                nodes.extend(self._pair(name, quantizers))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(self.added)
        self._drop_unused()

    def _demand(self, name: str) -> None:
        """Ask for a tensor in 8 bits: from whoever carries it, else by a pair of its own."""
        if name in self.pairs or name in self.parent:
            return
        self.parent[name] = name
        sources = self.flow.carried(name)
        node = self.flow.made_by.get(name)
        if not sources or node is None or self.types.get(node.name) == "float32":
            self.pairs[name] = None
            return
        self.carriers.add(node.name)
        for source in sources:
            self._demand(source)
            self.parent[self._root(source)] = self._root(name)

    def _quantize_additions(self) -> None:
        for node in self.flow.nodes.values():
            if not self.flow.is_junction(node) or node.output[0] not in self.pairs:
                continue
            if self.types.get(node.name) != "float32":
                self.carriers.add(node.name)
                for name in self.flow.data_inputs(node):
                    self._demand(name)

    def _root(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def _fit(self, ranges: Mapping[str, TensorRange]) -> dict[str, tuple[str, Quantizer]]:
        """Name and numbers of the quantizer of every tensor: one for all that are tied by carriers."""
        limits: dict[str, tuple[float, float]] = {}
        for name in self.pairs:
            for source in self.flow.sources(name):
                if source not in ranges:
                    raise ExportError(f"there is no range for tensor {source}: calibrate this graph, not another one")
                low, high = limits.get(self._root(name), (0.0, 0.0))
                limits[self._root(name)] = min(low, ranges[source].low), max(high, ranges[source].high)
        fitted = {root: (root, self.form.activations.fit(*limit)) for root, limit in limits.items()}
        for root, quantizer in fitted.values():
            self._store(root, quantizer.scale, quantizer.zero_point, quantizer.dtype)
        return {name: fitted[self._root(name)] for name in self.pairs}

    def _pair(self, name: str, quantizers: Mapping[str, tuple[str, Quantizer]]) -> list[onnx.NodeProto]:
        if name not in quantizers:
            return []
        root, _ = quantizers[name]
        parameters = [f"{root}.scale", f"{root}.zero_point"]
        make = onnx.helper.make_node
        return [
            make("QuantizeLinear", [name, *parameters], [f"{name}.quantized"], name=f"{name}.quantize"),
            make(
                "DequantizeLinear",
                [f"{name}.quantized", *parameters],
                [f"{name}.dequantized"],
                name=f"{name}.dequantize",
            ),
        ]

    def _rewire(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Let a node read rounded copies where it should; gives what its weights need in front of it."""
        if not self._reads_rounded(node):
            return []
        for index, name in enumerate(node.input):
            if name in self.pairs:
                node.input[index] = f"{name}.dequantized"
        return self._weights(node) if self.types.get(node.name) == "int8" else []

    def _reads_rounded(self, node: onnx.NodeProto) -> bool:
        """Whether a node takes 8-bit values: not a layer in floating point, nor what only passes data on to one."""
        dtype = self.types.get(node.name)
        if self.flow.is_layer(node) or dtype == "float32":
            return dtype == "int8"
        if node.name in self.carriers or node.op_type not in CARRIERS:
            return True
        return all(self._reads_rounded(reader) for name in node.output for reader in self.flow.read_by.get(name, []))

    def _weights(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        name = node.input[1]
        weights = quantize_weights(node, onnx.numpy_helper.to_array(self.flow.stored[name]))
        node.input[1] = f"{name}.dequantized"
        if node.name in self.shifts:
            self._correct_bias(node)
        if any(tensor.name == f"{name}.quantized" for tensor in self.added):
            return []
        self._store(name, weights.scales, np.zeros(len(weights.scales), np.int8), np.dtype(np.int8))
        self.added.append(onnx.numpy_helper.from_array(weights.codes, f"{name}.quantized"))
        inputs = [f"{name}.quantized", f"{name}.scale", f"{name}.zero_point"]
        return [
            onnx.helper.make_node(
                "DequantizeLinear", inputs, [f"{name}.dequantized"], name=f"{name}.dequantize", axis=weights.axis
            )
        ]

    def _correct_bias(self, node: onnx.NodeProto) -> None:
        shift = self.shifts[node.name]
        bias = onnx.numpy_helper.to_array(self.flow.stored[node.input[2]]) if len(node.input) > 2 else 0.0
        name = f"{node.name}.bias.corrected"
        self.added.append(onnx.numpy_helper.from_array(np.asarray(bias + shift, np.float32), name))
        del node.input[2:]
        node.input.append(name)

    def _store(self, name: str, scale: Any, zero_point: Any, dtype: np.dtype[Any]) -> None:
        arrays = {"scale": np.asarray(scale, np.float32), "zero_point": np.asarray(zero_point, dtype)}
        self.added.extend(onnx.numpy_helper.from_array(array, f"{name}.{key}") for key, array in arrays.items())

    def _drop_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in self.graph.initializer if t.name in used]
        del self.graph.initializer[:], self.graph.value_info[:]
        self.graph.initializer.extend(kept)
