"""How far an engine is from the limit of the machine (Williams, Waterman and Patterson 2009).

Operations and bytes come from the float32 ONNX graph (`unetx_exporters.onnx.operations`). A layer needs at least the
longer of two times: its operations at the measured arithmetic, its bytes at the measured bandwidth. Bytes are those
of its inputs, weights and outputs in the engine's type, each moved once. Activations that follow a layer, and joints
of tensors, are taken as done on the way, as good engines do them. The limit of the graph is the sum over its layers.
Tensors that stay in the caches between two layers can beat it; arithmetic cannot be beaten but by fewer operations
(Winograd's convolutions, for one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from unetx_bench.ceilings import Ceilings
from unetx_exporters.onnx.operations import count_operations
from unetx_exporters.onnx.operators import MOVEMENT
from unetx_opt.optional import require

__all__ = ["LayerWork", "Roofline", "RooflinePoint", "count_work", "place_under_roofline"]

#: Size of a value of each type of arithmetic, in bytes.
_BYTES: Final[Mapping[str, int]] = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1})
_FUSED: Final = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "Cast", *MOVEMENT})


@dataclass(frozen=True, slots=True)
class LayerWork:
    """One layer of the graph.

    Attributes
    ----------
    name, op_type : str
        Node and operator.
    flop : int
        Operations of one image.
    bytes_float32 : int
        Inputs, weights and outputs, each once, in float32.
    fused : bool
        Taken as done on the way of a neighbour: it costs no time of its own in the limit.
    """

    name: str
    op_type: str
    flop: int
    bytes_float32: int
    fused: bool


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """One layer under the roof.

    Attributes
    ----------
    layer : str
        Node name.
    intensity : float
        Operations per byte.
    limit_ms : float
        The least time that it needs.
    bound : str
        "arithmetic" or "memory", whichever takes longer.
    """

    layer: str
    intensity: float
    limit_ms: float
    bound: str


@dataclass(frozen=True, slots=True)
class Roofline:
    """A graph in one type of arithmetic on one machine.

    Attributes
    ----------
    dtype : str
        ONNX name.
    flop : int
        Of the whole graph, one image.
    bytes_moved : int
        Of the layers that are not fused, in that type.
    limit_ms : float
        Sum over the layers.
    arithmetic_ms : float
        All operations at the measured arithmetic: less is not possible with these operations.
    points : tuple of RooflinePoint
        Layers that are not fused, in the order of the graph.
    """

    dtype: str
    flop: int
    bytes_moved: int
    limit_ms: float
    arithmetic_ms: float
    points: tuple[RooflinePoint, ...]


def count_work(graph_fp32: Path) -> tuple[LayerWork, ...]:
    """Count operations and bytes of every layer of a float32 graph, for one image."""
    onnx = require("onnx", purpose="counting the operations of a graph")
    model = onnx.load(graph_fp32)
    counted = count_operations(model)
    types = {node.name: node.op_type for node in model.graph.node}
    return tuple(
        LayerWork(name, types.get(name, "unknown"), counted.by_layer.get(name, 0), size, types.get(name) in _FUSED)
        for name, size in counted.bytes_by_layer.items()
    )


def place_under_roofline(layers: Sequence[LayerWork], ceilings: Ceilings, dtype: str) -> Roofline | None:
    """Hold a graph against the limits of a machine.

    Parameters
    ----------
    layers : sequence of LayerWork
        The graph.
    ceilings : Ceilings
        Of the machine, from the same run as the latencies.
    dtype : str
        Type of the engine's arithmetic, ONNX name.

    Returns
    -------
    Roofline or None
        None where the machine's arithmetic in that type is not known.
    """
    rate = ceilings.flop_per_s.get(dtype)
    if rate is None or dtype not in _BYTES or not ceilings.bytes_per_s:
        return None
    points, moved = [], 0
    for layer in layers:
        if layer.fused:
            continue
        size = layer.bytes_float32 * _BYTES[dtype] // 4
        moved += size
        times_ms = {"arithmetic": layer.flop / rate * 1e3, "memory": size / ceilings.bytes_per_s * 1e3}
        bound = max(times_ms, key=times_ms.__getitem__)
        points.append(RooflinePoint(layer.name, layer.flop / max(size, 1), times_ms[bound], bound))
    flop = sum(layer.flop for layer in layers)
    return Roofline(dtype, flop, moved, sum(point.limit_ms for point in points), flop / rate * 1e3, tuple(points))
