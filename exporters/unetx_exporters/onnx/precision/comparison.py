"""The largest value and the largest difference at every tensor of two graphs, in one run that keeps no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.onnx.graph import INPUT_NAME, infer_types, opset_of, producers, tensor_types
from unetx_exporters.onnx.verify import GraphRunner
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="comparing two graphs")

__all__ = ["Extremes", "compare_nodes"]

_FLOAT: Final = 1  # TensorProto.FLOAT
_REFERENCE: Final = "reference/"
_STATISTICS: Final = ("peak", "error", "undefined")
_RESULT: Final = "statistics"


@dataclass(frozen=True, slots=True)
class Extremes:
    """What a tensor reaches over all images.

    Attributes
    ----------
    peak : float
        Largest magnitude in the reference graph.
    error : float
        Largest difference between the two graphs; infinite where the other graph is not finite.
    """

    peak: float
    error: float


def compare_nodes(
    reference: onnx.ModelProto, other: onnx.ModelProto, images: Sequence[np.ndarray]
) -> dict[str, Extremes]:
    """Compare the float tensors that two float32 graphs have under the same names.

    Parameters
    ----------
    reference, other : onnx.ModelProto
        Float32 graphs with one input of the same name.
    images : sequence of numpy.ndarray
        (N, C, H, W) float32.

    Returns
    -------
    dict of str to Extremes
        By tensor name, in the order of the reference graph.
    """
    typed = infer_types(reference)
    types, elsewhere = tensor_types(typed), producers(other.graph)
    names = [name for name in producers(typed.graph) if types.get(name) == _FLOAT and name in elsewhere]
    with GraphRunner(_joint_graph(reference, other, names), keep_memory=False) as runner:
        runs = [runner.run(image) for image in images]
    rows = np.max([run[_RESULT].reshape(len(names), len(_STATISTICS)) for run in runs], axis=0)
    peak, error, undefined = rows.T
    error = np.where(undefined > 0, np.inf, error)
    return {name: Extremes(float(high), float(off)) for name, high, off in zip(names, peak, error, strict=True)}


def _joint_graph(reference: onnx.ModelProto, other: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Put both graphs behind one input, with one vector (three values per tensor) as output.

    The tensors themselves never become outputs: at full resolution those of an attention gate would fill gigabytes.
    The vector grows by one tensor at a time, so that the engine, which orders nodes by what they depend on, is done
    with a pair of tensors before it computes the next.
    """
    prefixed = onnx.compose.add_prefix(reference, _REFERENCE, rename_inputs=False)
    nodes = [*prefixed.graph.node, *other.graph.node]
    so_far: list[str] = []
    for index, name in enumerate(names):
        nodes.extend(_reductions(index, f"{_REFERENCE}{name}", name))
        result = _RESULT if index == len(names) - 1 else f"statistics/{index}"
        values = [f"{statistic}/{index}" for statistic in _STATISTICS]
        nodes.append(onnx.helper.make_node("Concat", [*so_far, *values], [result], axis=0))
        so_far = [result]
    vector = onnx.numpy_helper.from_array(np.array([1], np.int64), "statistics/vector")
    graph = onnx.helper.make_graph(
        nodes,
        "comparison",
        [value for value in reference.graph.input if value.name == INPUT_NAME],
        [onnx.helper.make_tensor_value_info(_RESULT, _FLOAT, [len(names) * len(_STATISTICS)])],
        [*prefixed.graph.initializer, *other.graph.initializer, vector],
    )
    opset = onnx.helper.make_opsetid("", opset_of(reference))
    joint: onnx.ModelProto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=reference.ir_version)
    return joint


def _reductions(index: int, expected: str, actual: str) -> list[onnx.NodeProto]:
    steps = (
        ("Abs", [expected], "expected/magnitude"),
        ("ReduceMax", ["expected/magnitude"], "expected/largest"),
        ("Reshape", ["expected/largest", "vector"], "peak"),
        ("Sub", [actual, expected], "difference"),
        ("Abs", ["difference"], "difference/magnitude"),
        ("ReduceMax", ["difference/magnitude"], "difference/largest"),
        ("Reshape", ["difference/largest", "vector"], "error"),
        # A maximum may pass over what is not a number, so that is looked for apart.
        ("IsNaN", ["difference"], "nan"),
        ("Cast", ["nan"], "nan/number"),
        ("ReduceMax", ["nan/number"], "nan/largest"),
        ("Reshape", ["nan/largest", "vector"], "undefined"),
    )

    def named(name: str) -> str:
        if name in (expected, actual):
            return name
        if name in _STATISTICS:
            return f"{name}/{index}"
        return "statistics/vector" if name == "vector" else f"statistics/{index}/{name}"

    attributes: dict[str, dict[str, Any]] = {"ReduceMax": {"keepdims": 0}, "Cast": {"to": _FLOAT}}
    return [
        onnx.helper.make_node(
            operator, [named(name) for name in inputs], [named(result)], **attributes.get(operator, {})
        )
        for operator, inputs, result in steps
    ]
