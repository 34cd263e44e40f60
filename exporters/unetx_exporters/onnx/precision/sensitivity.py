"""Which nodes must stay float32, decided by running the graph in float32 and in emulated float16 on images."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from unetx_exporters.onnx.graph import OUTPUT_NAME
from unetx_exporters.onnx.operators import EXACT
from unetx_exporters.onnx.precision.comparison import Extremes, compare_nodes
from unetx_exporters.onnx.precision.convert import convert_fp16, layer_types, unfit_for_fp16
from unetx_exporters.onnx.precision.emulate import emulate_fp16
from unetx_exporters.onnx.verify import GraphRunner
from unetx_opt.errors import ExportError

if TYPE_CHECKING:
    import onnx

__all__ = ["Fp32Choice", "HalfLimits", "NodeRecord", "choose_fp32_nodes"]

_LARGEST_HALF: Final = 65504.0


@dataclass(frozen=True, slots=True)
class HalfLimits:
    """What a float16 graph must hold.

    Attributes
    ----------
    logit_error : float
        Largest difference of a logit to the float32 graph, relative to the largest magnitude of the float32 logits
        over all images. It catches a float16 graph that is wrong; whether one that rounds is good enough, the drift
        gates decide on masks. Trained networks with every layer in float16 were seen at 0.003 to 0.014, their masks
        at a Dice of 0.9998 and more against float32.
    headroom : float
        Activations may grow by this factor on images that were not measured before they overflow.
    """

    logit_error: float = 0.03
    headroom: float = 8.0


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What was measured at one computing node.

    Attributes
    ----------
    name, op_type : str
        The node.
    dtype : str
        Type that it computes in after the choice: "float16" or "float32".
    peak : float
        Largest magnitude of its output in float32.
    error : float or None
        Largest difference of its output to float32 in the graph with no more than the unavoidable nodes kept;
        None where it is not a finite number.
    reason : str or None
        Why it is kept in float32; None where it is not.
    """

    name: str
    op_type: str
    dtype: str
    peak: float
    error: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Fp32Choice:
    """The nodes to keep, and the evidence; ``dataclasses.asdict`` gives plain JSON types.

    Attributes
    ----------
    keep_fp32 : tuple of str
        For `convert_fp16`, in the order of the graph.
    logit_error : float
        As in `HalfLimits`, of the chosen graph in emulated float16.
    limits : HalfLimits
        What was asked.
    images : int
        Number of images measured.
    nodes : tuple of NodeRecord
        One row for each computing node, in the order of the graph.
    """

    keep_fp32: tuple[str, ...]
    logit_error: float
    limits: HalfLimits
    images: int
    nodes: tuple[NodeRecord, ...]


def choose_fp32_nodes(
    model: onnx.ModelProto, images: Sequence[np.ndarray], limits: HalfLimits | None = None
) -> Fp32Choice:
    """Find the nodes that a float16 graph must keep in float32.

    First those that cannot be float16 at all, then both ends of every tensor that comes within
    `HalfLimits.headroom` of 65504. If the logits are still too far off, whole blocks follow, the one whose
    float16 form alone disturbs the logits most first, until the limit holds: a block at a time, since a cast at
    each of its borders costs less than one at each node.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.
    images : sequence of numpy.ndarray
        Inputs (N, C, H, W) float32 of the graph's size, as the network will see them; not those that the drift
        gates use.
    limits : HalfLimits or None
        None for the defaults.

    Raises
    ------
    ExportError
        There are no images, or the float32 logits themselves are not finite.
    """
    if not images:
        raise ExportError("choosing the float16 layers needs images: pass at least one")
    limits = limits or HalfLimits()
    reference = _logits(model, images)
    if not all(np.isfinite(logits).all() for logits in reference):
        raise ExportError("the float32 graph gives logits that are not finite: check the checkpoint and the images")
    reasons = unfit_for_fp16(model)
    extremes = compare_nodes(model, emulate_fp16(convert_fp16(model, reasons)), images)
    reasons |= _overflow_reasons(model, extremes, limits.headroom, reasons)
    search = _Search(model, images, reference)
    error = search.logit_error(reasons)
    if error > limits.logit_error:
        error = search.add_blocks(reasons, limits.logit_error)
    reasons |= _bridges(model, reasons)
    return Fp32Choice(
        keep_fp32=tuple(node.name for node in model.graph.node if node.name in reasons),
        logit_error=error,
        limits=limits,
        images=len(images),
        nodes=_records(model, extremes, reasons),
    )


def _overflow_reasons(
    model: onnx.ModelProto, extremes: Mapping[str, Extremes], headroom: float, known: Collection[str]
) -> dict[str, str]:
    """Reasons for the nodes that write or read a tensor too near to the end of float16."""
    high = {name: found.peak for name, found in extremes.items() if found.peak * headroom > _LARGEST_HALF}
    reasons: dict[str, str] = {}
    for node in model.graph.node:
        for verb, names in (("writes", node.output), ("reads", node.input)):
            for name in names:
                if name in high and node.name not in known:
                    reasons.setdefault(
                        node.name, f"{verb} {name}, which reaches {high[name]:.4g} of 65504 (headroom {headroom:g})"
                    )
    return reasons


class _Search:
    """Logit errors of float16 graphs that differ in the nodes they keep."""

    def __init__(self, model: onnx.ModelProto, images: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> None:
        self.model = model
        self.images = images
        self.reference = reference
        self.scale = max(float(np.abs(logits).max()) for logits in reference) or 1.0

    def logit_error(self, keep: Collection[str]) -> float:
        kept = {*keep, *_bridges(self.model, keep)}
        halves = _logits(emulate_fp16(convert_fp16(self.model, kept)), self.images)
        worst = max(
            float(np.abs(half - single).max()) if np.isfinite(half).all() else math.inf
            for half, single in zip(halves, self.reference, strict=True)
        )
        return worst / self.scale

    def add_blocks(self, reasons: dict[str, str], limit: float) -> float:
        """Add the nodes of whole blocks to `reasons` until the limit holds; give the error that is left."""
        blocks = _blocks(self.model)
        every = {node.name for node in self.model.graph.node}
        alone = {
            path: self.logit_error(every - (set(nodes) - set(reasons)))
            for path, nodes in blocks.items()
            if not set(nodes) <= set(reasons)
        }
        error = math.inf
        for path in sorted(alone, key=lambda path: -alone[path]):
            reason = f"in float16 the block {path} alone moves the logits by {alone[path]:.2g} of their range"
            reasons |= {name: reason for name in blocks[path] if name not in reasons}
            error = self.logit_error(reasons)
            if error <= limit:
                break
        return error


def _blocks(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Module path to its nodes, of the modules that round at all."""
    blocks: dict[str, list[str]] = {}
    rounding = set()
    for node in model.graph.node:
        path = node.name.rpartition(".")[0] or node.name
        blocks.setdefault(path, []).append(node.name)
        if node.op_type not in EXACT:
            rounding.add(path)
    return {path: names for path, names in blocks.items() if path in rounding}


def _bridges(model: onnx.ModelProto, keep: Collection[str]) -> dict[str, str]:
    """Nodes that round nothing and lie between nodes that are kept: in float16 they would cost casts and digits."""
    graph = model.graph
    made_by = {name: node.name for node in graph.node for name in node.output}
    neighbours: dict[str, set[str]] = {node.name: set() for node in graph.node}
    for node in graph.node:
        for source in {made_by[name] for name in node.input if name in made_by}:
            neighbours[node.name].add(source)
            neighbours[source].add(node.name)
    bridges = {node.name for node in graph.node if node.op_type in EXACT} - set(keep)
    # Chains of such nodes hold one another up until one of them touches a float16 node.
    while broken := {name for name in bridges if not neighbours[name] <= bridges | set(keep)}:
        bridges -= broken
    return {node.name: "lies between float32 nodes" for node in graph.node if node.name in bridges}


def _records(
    model: onnx.ModelProto, extremes: Mapping[str, Extremes], reasons: Mapping[str, str]
) -> tuple[NodeRecord, ...]:
    types = layer_types(convert_fp16(model, reasons))
    return tuple(
        NodeRecord(
            name=node.name,
            op_type=node.op_type,
            dtype=types[node.name],
            peak=found.peak,
            error=found.error if math.isfinite(found.error) else None,
            reason=reasons.get(node.name),
        )
        for node in model.graph.node
        if node.name in types and (found := extremes.get(node.output[0])) is not None
    )


def _logits(model: onnx.ModelProto, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    with GraphRunner(model) as runner:
        return [runner.run(image)[OUTPUT_NAME] for image in images]
