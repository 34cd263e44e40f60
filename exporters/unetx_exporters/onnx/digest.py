"""Hashes of a graph: of its bytes, and of its structure without weights and names."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="hashing a graph")

__all__ = ["graph_sha256", "structure_sha256"]

# INT64 and BOOL. Other integers are the weights, biases and zero points of a quantized graph.
_STRUCTURAL: Final = frozenset({7, 9})


def graph_sha256(model: onnx.ModelProto) -> str:
    """Hash a graph with its weights and names: the SHA-256 of the file it makes, as lower-case hexadecimal."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def structure_sha256(model: onnx.ModelProto) -> str:
    """Hash what a graph computes but for its weights, as lower-case hexadecimal.

    Two graphs have the same structure hash if and only if (but for a collision of SHA-256) they have the same
    operators in the same order with the same attributes on the same tensors: an engine has the same work to do for
    both. Values of weights, and all names, do not count; their types and shapes do, and so do the values of 64-bit
    integers, which are indices, paddings and axes.
    """
    graph = model.graph
    numbers: dict[str, int] = {"": -1}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers) - 1)

    canonical: dict[str, list[Any]] = {
        "opsets": sorted((entry.domain, entry.version) for entry in model.opset_import),
        "inputs": [[number(value.name), *_type(value)] for value in graph.input],
        "nodes": [],
        "initializers": [],
        "outputs": [],
    }
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for name in node.input:
            if name in stored and name not in numbers:
                canonical["initializers"].append([number(name), *_stored(stored[name])])
        attributes = sorted((_attribute(attribute) for attribute in node.attribute), key=lambda pair: pair[0])
        ends = [[number(name) for name in names] for names in (node.input, node.output)]
        canonical["nodes"].append([node.domain, node.op_type, *ends, attributes])
    canonical["outputs"] = [[number(value.name), *_type(value)] for value in graph.output]
    text = json.dumps(canonical, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _type(value: onnx.ValueInfoProto) -> list[Any]:
    tensor = value.type.tensor_type
    return [tensor.elem_type, [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]]


def _stored(tensor: onnx.TensorProto) -> list[Any]:
    described: list[Any] = [tensor.data_type, list(tensor.dims)]
    if tensor.data_type in _STRUCTURAL:
        described.append(onnx.numpy_helper.to_array(tensor).tolist())
    return described


def _attribute(attribute: onnx.AttributeProto) -> list[Any]:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        value = [value.data_type, list(value.dims), onnx.numpy_helper.to_array(value).tolist()]
    elif isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    elif not isinstance(value, int | float):
        value = [item.hex() if isinstance(item, bytes) else item for item in value]
    return [attribute.name, value]
