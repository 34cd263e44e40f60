"""What a TensorRT engine really computes in, compared with what was asked for.

A builder may take an fp16 graph and run its convolutions in float without a word. Every convolution and matrix
product of the graph is therefore looked up among the layers of the built engine, by the ONNX node names that
TensorRT keeps with each layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unetx_exporters.tensorrt.layers import EngineLayer, EngineTensor, parse_inspector_json, parse_layer_dump
from unetx_opt.errors import ExportError
from unetx_opt.optional import require

__all__ = ["ARITHMETIC", "Attestation", "arithmetic_nodes", "attest_layers", "read_layers"]

#: ONNX operators that do the arithmetic of a U-Net; every other one moves, scales or compares data.
ARITHMETIC: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

#: Engine layers that surround the arithmetic and may carry its node name too: generated pointwise kernels.
_POINTWISE: Final = frozenset({"kgen", "reformat", "noop", "shape_call"})

_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class Attestation:
    """Data types that were read back from an engine.

    Attributes
    ----------
    layers : mapping of str to str
        ONNX node to the type that it computes in, for every node of `ARITHMETIC`.
    compute_dtype : str
        Type of most of them.
    storage_dtype : str
        Type of most of their stored weights.
    """

    layers: Mapping[str, str]
    compute_dtype: str
    storage_dtype: str


def arithmetic_nodes(graph: Path) -> tuple[str, ...]:
    """List the nodes of an ONNX file whose types are attested.

    Raises
    ------
    ExportError
        The file is no ONNX graph, or such a node has no name to find it by.
    """
    onnx = require("onnx", purpose="attesting a TensorRT engine")
    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf raises types of its own
        raise ExportError(f"{graph.name} is not an ONNX graph ({_first_line(error)}): export it again") from error
    nodes = [node for node in model.graph.node if node.op_type in ARITHMETIC]
    if any(not node.name for node in nodes):
        raise ExportError(f"{graph.name} has arithmetic nodes without a name: name each node when it is exported")
    return tuple(node.name for node in nodes)


def read_layers(reports: Iterable[tuple[str, str]], nodes: Sequence[str]) -> tuple[EngineLayer, ...]:
    """Take the first report that tells the type of every node.

    Parameters
    ----------
    reports : iterable of (str, str)
        Form ("log" or "json") and text of what TensorRT says about the engine.
    nodes : sequence of str
        ONNX nodes to find.

    Raises
    ------
    ExportError
        No report does; nodes that could not be found are listed.
    """
    reasons = []
    for form, text in reports:
        try:
            layers = _PARSERS[form](text)
        except ExportError as error:
            reasons.append(str(error))
            continue
        unknown = [node for node in nodes if not _compute_dtype(layers, node)]
        if not unknown:
            return layers
        reasons.append(f"the {form} report says nothing about {_list(unknown)}")
    raise ExportError(
        f"the engine's data types cannot be read back: {'; '.join(reasons) or 'TensorRT reports no layers'}"
    )


def attest_layers(
    target: str, layers: Sequence[EngineLayer], nodes: Sequence[str], asked: Mapping[str, str]
) -> Attestation:
    """Compare the types of an engine with those asked for.

    Parameters
    ----------
    target : str
        Name of the target, for the message.
    layers : sequence of EngineLayer
        Every layer of the engine.
    nodes : sequence of str
        ONNX nodes that do the arithmetic.
    asked : mapping of str to str
        ONNX node to type by ONNX name; every one of `nodes` is in it.

    Raises
    ------
    ExportError
        A node computes in another type than was asked for, or none was asked for it; they are listed.
    """
    missing = [node for node in nodes if node not in asked]
    if missing:
        raise ExportError(f"no type was asked for {_list(missing)}: name every layer in the request's layer_types")
    actual = {node: _compute_dtype(layers, node) for node in nodes}
    wrong = [f"{node} ({asked[node]} asked, {actual[node]})" for node in nodes if actual[node] != asked[node]]
    if wrong:
        raise ExportError(
            f"{target}: {len(wrong)} of {len(nodes)} layers do not compute in the type asked for: {_list(wrong)}; "
            "ask for a type that these GPUs have for such layers, or leave the target out"
        )
    stored = (_weights_dtype(layer) for node in nodes for layer in _layers_of(layers, node)[:1])
    return Attestation(actual, _most(actual.values()), _most(dtype for dtype in stored if dtype))


def _compute_dtype(layers: Sequence[EngineLayer], node: str) -> str:
    """Type that a node computes in; "a/b" where its data and its weights differ; empty where unknown."""
    for layer in _layers_of(layers, node):
        weights = _weights_dtype(layer)
        data = {tensor.dtype for tensor in layer.inputs if tensor.is_dynamic and tensor.dtype}
        # A generated kernel converts its data itself; a library kernel takes both in one type.
        if weights and (not data or weights in data or _is_pointwise(layer)):
            return weights
        if weights:
            return f"{'+'.join(sorted(data))}/{weights}"
        if len(data) == 1:
            return data.pop()
    return ""


def _layers_of(layers: Sequence[EngineLayer], node: str) -> list[EngineLayer]:
    """Layers that a node was fused into, the one that does its arithmetic first."""
    found = [layer for layer in layers if layer.stands_for(node)]
    return sorted(found, key=_is_pointwise)


def _is_pointwise(layer: EngineLayer) -> bool:
    return layer.kind.lower() in _POINTWISE


def _weights_dtype(layer: EngineLayer) -> str:
    if layer.weights_dtype:
        return layer.weights_dtype
    # Weights that another layer dequantises arrive as an input. Scales and biases are smaller than weights.
    fed = [tensor for tensor in layer.inputs if _is_matrix(tensor)]
    stored = [tensor for tensor in layer.constants if _is_matrix(tensor)]
    return max(fed or stored, key=lambda tensor: tensor.elements).dtype if fed or stored else ""


def _is_matrix(tensor: EngineTensor) -> bool:
    return len(tensor.dims) >= 2 and not tensor.is_dynamic


def _most(dtypes: Iterable[str]) -> str:
    counts = Counter(dtypes)
    return counts.most_common(1)[0][0] if counts else "float32"


def _list(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_PARSERS: Final[Mapping[str, Callable[[str], tuple[EngineLayer, ...]]]] = {
    "log": parse_layer_dump,
    "json": parse_inspector_json,
}
