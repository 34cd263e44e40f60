"""What a mixed-precision search may change: groups of layers, the types that each may have, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from unetx_exporters.onnx.graph import infer_types
from unetx_exporters.onnx.operators import EXACT
from unetx_exporters.quantize.schemes import get_form
from unetx_exporters.quantize.tensors import Flow
from unetx_opt.errors import ExportError, SpecError

if TYPE_CHECKING:
    import onnx

__all__ = ["SCHEMES", "LayerGroup", "Plan", "Rate", "Scheme", "get_scheme", "list_groups", "plan_cost"]

_INT8: Final = "int8"


@dataclass(frozen=True, slots=True)
class Rate:
    """Nominal speed of one arithmetic; only ratios between rates of one scheme mean anything.

    Attributes
    ----------
    operations_per_s : float
        Multiplications and additions.
    element_bytes : int
        Size of one activation.
    """

    operations_per_s: float
    element_bytes: int


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a family of targets computes 8-bit graphs.

    Attributes
    ----------
    name : str
        "cpu" or "tensorrt", as `QuantizePlan` names them.
    rates : mapping of str to Rate
        Types that a layer may have, the cheapest first.
    bytes_per_s : float
        Nominal memory bandwidth.
    emulated : bool
        Whether the machine of the build only imitates its arithmetic, so that times measured there say nothing.
    """

    name: str
    rates: Mapping[str, Rate]
    bytes_per_s: float
    emulated: bool = False

    @property
    def types(self) -> tuple[str, ...]:
        """Types that a layer may have, the cheapest first."""
        return tuple(self.rates)


#: Scheme -> its rates. Of the CPU: what a U-Net of width 64 reached on two cores with AVX-512 VNNI. Of TensorRT:
#: the ratios of the tensor cores' data sheets. They rank plans; nothing that is reported as a time comes from them.
SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme("cpu", MappingProxyType({_INT8: Rate(858e9, 1), "float32": Rate(209e9, 4)}), 20e9),
            Scheme(
                "tensorrt",
                MappingProxyType({_INT8: Rate(160e12, 1), "float16": Rate(80e12, 2), "float32": Rate(20e12, 4)}),
                400e9,
                emulated=True,
            ),
        )
    }
)


def get_scheme(name: str) -> Scheme:
    """Look a scheme up.

    Raises
    ------
    SpecError
        There is no scheme of that name.
    """
    if name not in SCHEMES:
        raise SpecError(f"unknown quantization scheme {name!r}: choose from {', '.join(SCHEMES)}")
    return SCHEMES[name]


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that change their type together: they read the same tensor, and so share the scale of it.

    Attributes
    ----------
    name : str
        Of its first layer.
    layers : tuple of str
        Graph nodes with weights.
    operations : int
        Of one image.
    elements : int
        Activations read and written for one image.
    types : tuple of str
        What they may compute in, the cheapest first.
    followers : tuple of str
        Nodes that hand the layers' values on unchanged: in float32 they follow the layers, so that a value that
        float16 cannot hold does not overflow behind them.
    """

    name: str
    layers: tuple[str, ...]
    operations: int
    elements: int
    types: tuple[str, ...]
    followers: tuple[str, ...] = ()

    def seconds(self, scheme: Scheme, dtype: str) -> float:
        """Nominal duration in one type: arithmetic and traffic, one after the other."""
        rate = scheme.rates[dtype]
        return self.operations / rate.operations_per_s + self.elements * rate.element_bytes / scheme.bytes_per_s


@dataclass(frozen=True, slots=True)
class Plan:
    """A type for every group.

    Attributes
    ----------
    types : tuple of str
        In the order of the groups.
    """

    types: tuple[str, ...]

    @classmethod
    def narrowest(cls, groups: Sequence[LayerGroup]) -> Plan:
        """Give every group its cheapest type."""
        return cls(tuple(group.types[0] for group in groups))

    @classmethod
    def widest(cls, groups: Sequence[LayerGroup]) -> Plan:
        """Give every group its dearest type."""
        return cls(tuple(group.types[-1] for group in groups))

    @property
    def key(self) -> str:
        """Identity as a short string, for files."""
        return ",".join(self.types)

    def changed(self, index: int, dtype: str) -> Plan:
        """Copy with another type for one group."""
        return dataclasses.replace(self, types=(*self.types[:index], dtype, *self.types[index + 1 :]))

    def layer_types(self, groups: Sequence[LayerGroup]) -> dict[str, str]:
        """Node name to type."""
        found: dict[str, str] = {}
        for group, dtype in zip(groups, self.types, strict=True):
            found |= dict.fromkeys(group.layers, dtype)
            if dtype == "float32":
                found |= dict.fromkeys(group.followers, dtype)
        return found

    def int8_share(self, groups: Sequence[LayerGroup]) -> float:
        """Share of the groups' operations that compute in int8, 0 to 1."""
        total = sum(group.operations for group in groups)
        narrow = sum(group.operations for group, dtype in zip(groups, self.types, strict=True) if dtype == _INT8)
        return narrow / total if total else 0.0


def list_groups(model: onnx.ModelProto, scheme: Scheme) -> tuple[LayerGroup, ...]:
    """List the groups of a float32 graph.

    Parameters
    ----------
    model : onnx.ModelProto
        Traced graph; its batch may be dynamic, its size not.
    scheme : Scheme
        Types that there are.

    Returns
    -------
    tuple of LayerGroup
        In the order of the graph; those without integer arithmetic in this scheme begin at its next type.

    Raises
    ------
    ExportError
        No layer of the graph has weights.
    """
    from unetx_exporters.onnx.operations import count_operations

    flow = Flow(model)
    operations = count_operations(model).by_layer
    elements = _elements(infer_types(model))
    integer = get_form(scheme.name).layers
    by_input: dict[tuple[str, bool], list[onnx.NodeProto]] = {}
    for node in flow.nodes.values():
        if flow.is_layer(node):
            by_input.setdefault((node.input[0], node.op_type in integer), []).append(node)
    if not by_input:
        raise ExportError("the graph has no layer with weights, so there is nothing to compute in int8")
    return tuple(
        LayerGroup(
            name=nodes[0].name,
            layers=tuple(node.name for node in nodes),
            operations=sum(operations.get(node.name, 0) for node in nodes),
            elements=sum(elements[node.input[0]] + elements[node.output[0]] for node in nodes),
            types=scheme.types if in_integers else scheme.types[1:],
            followers=_followers(flow, nodes) if "float16" in scheme.types else (),
        )
        for (_, in_integers), nodes in by_input.items()
    )


def plan_cost(plan: Plan, groups: Sequence[LayerGroup], scheme: Scheme) -> float:
    """Nominal seconds of all groups under a plan; it ranks plans, see `SCHEMES`."""
    return sum(group.seconds(scheme, dtype) for group, dtype in zip(groups, plan.types, strict=True))


def _followers(flow: Flow, nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Nodes behind layers that compute nothing new."""
    found: dict[str, None] = {}
    tensors = [name for node in nodes for name in node.output]
    while tensors:
        for node in flow.read_by.get(tensors.pop(), ()):
            if node.op_type in EXACT and node.name not in found:
                found[node.name] = None
                tensors.extend(node.output)
    return tuple(found)


def _elements(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor name to its number of elements for one image."""
    found: dict[str, int] = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        count = 1
        for dim in value.type.tensor_type.shape.dim:
            count *= max(1, int(dim.dim_value))  # a symbolic batch is 0 here
        found[value.name] = count
    return found
