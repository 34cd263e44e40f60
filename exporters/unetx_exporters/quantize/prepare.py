"""Steps that may make a graph easier to hold in 8 bits, each kept only where it makes the measured error smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.onnx.graph import INPUT_NAME, OUTPUT_NAME
from unetx_exporters.onnx.verify import GraphRunner
from unetx_exporters.quantize.bias import bias_shifts
from unetx_exporters.quantize.calibrate import Calibration, load_graph
from unetx_exporters.quantize.equalize import equalize_channels, equalize_junctions
from unetx_exporters.quantize.insert import QuantizePlan, insert_qdq
from unetx_exporters.quantize.ranges import TensorRange, choose_scales
from unetx_exporters.quantize.tensors import Flow, list_tensors

if TYPE_CHECKING:
    import onnx

__all__ = ["PreparationStep", "PreparedGraph", "prepare_graph"]

#: A step is kept if it takes at least this part off the error: less may be luck.
_GAIN: Final = 0.02


@dataclass(frozen=True, slots=True)
class PreparationStep:
    """One step that was tried.

    Attributes
    ----------
    name : str
        "junctions", "channels" or "biases".
    error_before, error_after : float
        Mean squared error of the logits with every layer in int8, on the images that the calibration kept.
    kept : bool
        Whether the prepared graph has it.
    """

    name: str
    error_before: float
    error_after: float
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """Describe it in plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class PreparedGraph:
    """A float32 graph with its ranges, ready for any plan.

    Attributes
    ----------
    model : onnx.ModelProto
        Computes what the original computes.
    ranges : mapping of str to TensorRange
        Of its tensors.
    bias_shifts : mapping of str to numpy.ndarray
        Layer -> what its bias takes up in int8; empty where that did not help.
    steps : tuple of PreparationStep
        What was tried, in order.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, TensorRange]
    bias_shifts: Mapping[str, NDArray[np.float32]]
    steps: tuple[PreparationStep, ...]

    def quantize(self, plan: QuantizePlan) -> onnx.ModelProto:
        """Insert Q/DQ pairs; see `insert_qdq`."""
        return insert_qdq(self.model, self.ranges, dataclasses.replace(plan, bias_shifts=self.bias_shifts))


def prepare_graph(graph: Path | onnx.ModelProto, calibration: Calibration, scheme: str = "cpu") -> PreparedGraph:
    """Choose ranges, then try each step on top of those that helped.

    Parameters
    ----------
    graph : pathlib.Path or onnx.ModelProto
        Float32 graph.
    calibration : Calibration
        Of this graph, with at least one image kept.
    scheme : str
        In which the steps are measured.

    Raises
    ------
    ExportError
        The calibration is of another graph.
    """
    model = load_graph(graph)
    current = PreparedGraph(model, choose_scales(calibration, model, scheme), MappingProxyType({}), ())
    if not calibration.probes:
        return current
    with GraphRunner(model, keep_memory=False) as runner:
        expected = [runner.run(image)[OUTPUT_NAME] for image in calibration.probes]

    def error_of(prepared: PreparedGraph) -> float:
        return _error(prepared, scheme, calibration.probes, expected)

    before = error_of(current)
    steps = []
    for name, change in _STEPS.items():
        changed = change(current, calibration.probes)
        after = error_of(changed)
        kept = after < (1.0 - _GAIN) * before
        steps.append(PreparationStep(name, before, after, kept))
        if kept:
            current, before = changed, after
    return dataclasses.replace(current, steps=tuple(steps))


def _error(
    prepared: PreparedGraph,
    scheme: str,
    images: Sequence[NDArray[np.float32]],
    expected: Sequence[NDArray[np.float32]],
) -> float:
    flow = Flow(prepared.model)
    layers = [node.name for node in flow.nodes.values() if flow.is_layer(node)]
    quantized = prepared.quantize(QuantizePlan(scheme, dict.fromkeys(layers, "int8")))
    with GraphRunner(quantized, keep_memory=False) as runner:
        squares = [
            float(np.mean((runner.run(image)[OUTPUT_NAME].astype(np.float64) - logits) ** 2))
            for image, logits in zip(images, expected, strict=True)
        ]
    mean = float(np.mean(squares))
    return mean if np.isfinite(mean) else float("inf")


def _equalize_junctions(prepared: PreparedGraph, images: Sequence[NDArray[np.float32]]) -> PreparedGraph:
    return _with_model(prepared, equalize_junctions(prepared.model, prepared.ranges), images)


def _equalize_channels(prepared: PreparedGraph, images: Sequence[NDArray[np.float32]]) -> PreparedGraph:
    return _with_model(prepared, equalize_channels(prepared.model), images)


def _correct_biases(prepared: PreparedGraph, images: Sequence[NDArray[np.float32]]) -> PreparedGraph:
    return dataclasses.replace(prepared, bias_shifts=bias_shifts(prepared.model, images))


def _with_model(
    prepared: PreparedGraph, model: onnx.ModelProto, images: Sequence[NDArray[np.float32]]
) -> PreparedGraph:
    """Take another graph; its ranges are the calibrated ones, scaled as its tensors are on a few images."""
    names = list_tensors(Flow(model))
    old, new = _reaches(prepared.model, names, images), _reaches(model, names, images)
    ranges = dict(prepared.ranges)
    for name in names:
        factor = new[name] / old[name] if old[name] > 0.0 else 1.0
        found = ranges[name]
        ranges[name] = dataclasses.replace(found, low=found.low * factor, high=found.high * factor)
    return dataclasses.replace(prepared, model=model, ranges=ranges)


def _reaches(model: onnx.ModelProto, names: Sequence[str], images: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    found = dict.fromkeys(names, 0.0)
    with GraphRunner(model, outputs=[name for name in names if name != INPUT_NAME], keep_memory=False) as runner:
        for image in images:
            tensors = {INPUT_NAME: image, **runner.run(image)}
            for name in names:
                found[name] = max(found[name], float(np.abs(tensors[name]).max()))
    return found


#: Step -> function of a prepared graph and images that gives the changed one.
_STEPS: Final = MappingProxyType(
    {"junctions": _equalize_junctions, "channels": _equalize_channels, "biases": _correct_biases}
)
