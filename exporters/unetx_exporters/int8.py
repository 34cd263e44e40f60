"""What an int8 build does besides: images for the ranges, a search for each family of targets, and their record."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from unetx_exporters.assembly import label_names
from unetx_exporters.evaluation import torch_reference
from unetx_exporters.gate import DriftOptions
from unetx_exporters.gate_images import GateImages
from unetx_exporters.graphs import GraphRequest, GraphSet, choose_kept
from unetx_exporters.quantize.images import CalibrationSet, calibration_set, refuse_shared_images
from unetx_exporters.quantize.likeness import grey_statistics, likeness_warnings
from unetx_exporters.quantize.pareto import pareto_svg, pareto_to_json
from unetx_exporters.quantize.request import GateTask, QuantizedGraph, QuantizeRequest
from unetx_exporters.quantize.stage import Quantization
from unetx_exporters.quantize.state import search_folder
from unetx_exporters.targets import TargetRow
from unetx_opt.bundle.parts import KeptLayer
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.imaging.refinement import decide_labels
from unetx_opt.optional import require
from unetx_opt.specs import InputContract

if TYPE_CHECKING:
    from unetx_exporters.options import BuildOptions
    from unetx_opt.imaging.refinement import Refiner
    from unetx_opt.models.checkpoint import Checkpoint
    from unetx_opt.models.unet import UNet

__all__ = [
    "choose_calibration",
    "drift_options",
    "gate_task",
    "open_quantization",
    "quantize_request",
    "search_to_json",
    "turing_notes",
    "with_quantized",
    "write_search_evidence",
]

Progress = Callable[[str, int, int], None]


def choose_calibration(options: BuildOptions, contract: InputContract, images: GateImages | None) -> CalibrationSet:
    """Choose the images for the ranges, apart from those of the gate and of reports.

    Raises
    ------
    DataError
        There are none, one is noise, or one serves two purposes.
    """
    chosen = calibration_set(options.data, contract.height, options.seed)
    if images is None:
        return chosen
    refuse_shared_images(chosen, images, options.data)
    prepared = (prepare_image(image.pixels, contract, image.spacing_mm)[0][np.newaxis] for image in images)
    gate = grey_statistics(prepared, contract.value_range)
    unlike = likeness_warnings(grey_statistics(chosen.prepared(contract), contract.value_range), gate)
    return dataclasses.replace(chosen, notes=(*chosen.notes, *unlike))


def drift_options(checkpoint: Checkpoint, refiner: Refiner | None) -> DriftOptions:
    """Make the options by which a search compares masks, as the gate does."""
    return DriftOptions(
        class_names=label_names(checkpoint)[1:],
        worst_cases=0,
        decide_pixels=functools.partial(decide_labels, refiner=refiner),
    )


def open_quantization(
    graphs: GraphSet, request: QuantizeRequest, graph_request: GraphRequest, report: Progress
) -> Quantization:
    """Calibrate a float32 graph.

    Parameters
    ----------
    graphs : GraphSet
        With the float32 graph.
    request : QuantizeRequest
        Without what is known here: `base_types`.
    graph_request : GraphRequest
        How `graphs` was made.
    report : callable
        Progress: stage, done, total.
    """
    if "tensorrt" in request.schemes:
        onnx = require("onnx", purpose="choosing the float16 layers")
        kept = choose_kept(onnx.load(graphs.fp32), graph_request)
        base = MappingProxyType({layer.name: "float32" for layer in kept})
        request = dataclasses.replace(request, base_types=base)
    return Quantization(request, report)


def quantize_request(
    options: BuildOptions,
    graph_request: GraphRequest,
    graphs: GraphSet,
    calibration: CalibrationSet,
    targets: Sequence[TargetRow],
) -> QuantizeRequest:
    """Say what a build needs, without its gate."""
    return QuantizeRequest(
        graph=graphs.fp32,
        calibration=calibration,
        contract=graph_request.contract,
        schemes=tuple(dict.fromkeys(row.scheme for row in targets if row.scheme is not None)),
        directory=graph_request.directory,
        state=search_folder(options.output),
        budget_s=60.0 * options.budget_minutes,
        seed=options.seed,
    )


def gate_task(options: BuildOptions, model: UNet, images: GateImages | None, drift: DriftOptions) -> GateTask | None:
    """Say what decides the search; None where the gate is off."""
    if images is None:
        return None
    return GateTask(options.gate_name, images, torch_reference(model), drift)


def turing_notes(options: BuildOptions, targets: Sequence[TargetRow]) -> tuple[str, ...]:
    """Say what becomes of the GPUs that have no 8-bit convolution in TensorRT-RTX, as sentences."""
    named = options.compute_capabilities
    if all(row.name != "tensorrt-rtx" for row in targets) or (named and "7.5" not in named):
        return ()
    products = "8-bit matrix products, which move about six times the bytes of float16 convolutions"
    if named:
        return (
            f"The tensorrt-rtx engine for compute capability 7.5 computes its convolutions as {products}: measure it "
            "beside an fp16 engine on such a GPU.",
        )
    return (
        "There is no tensorrt-rtx engine for compute capability 7.5: TensorRT-RTX has no 8-bit convolution there. "
        "Build such GPUs an fp16 bundle. Where that capability is asked for by name, the convolutions become "
        f"{products}.",
    )


def with_quantized(graphs: GraphSet, quantized: Mapping[str, QuantizedGraph]) -> GraphSet:
    """Put 8-bit graphs into a set, with the record of what was kept wider and why."""
    kept: dict[str, list[str]] = {}
    types: Counter[str] = Counter()
    for graph in quantized.values():
        types.update(graph.asked_types.values())
        for name, reason in graph.kept().items():
            kept.setdefault(name, []).append(reason)
    precision = graphs.precision.model_copy(
        update={
            "kept_fp32": tuple(KeptLayer(name=name, reason="; ".join(reasons)) for name, reasons in kept.items()),
            "dtype_counts": dict(types),
        }
    )
    return dataclasses.replace(graphs, precision=precision, quantized=MappingProxyType(dict(quantized)))


def search_to_json(graph: QuantizedGraph) -> dict[str, Any]:
    """Describe a search in plain JSON types; losses that are not finite become null."""
    result = graph.result
    rows: Sequence[Any] = () if result is None else result.sensitivities
    groups = [
        {
            "name": group.name,
            "layers": list(group.layers),
            "dtype": dtype,
            "operations": group.operations,
            "sensitivity": _finite(dataclasses.asdict(rows[index])) if rows else None,
        }
        for index, (group, dtype) in enumerate(zip(graph.groups, graph.plan.types, strict=True))
    ]
    steps = [
        {
            "action": step.action,
            "nominal_s": step.cost,
            "int8_share": round(step.plan.int8_share(graph.groups), 4),
            **dataclasses.asdict(step.verdict),
        }
        for step in (() if result is None else result.steps)
    ]
    return {
        "scheme": graph.scheme,
        "finished": None if result is None else result.finished,
        "int8_share": round(graph.plan.int8_share(graph.groups), 4),
        "groups": groups,
        "steps": steps,
        "pareto": pareto_to_json(graph.points),
    }


def write_search_evidence(
    directory: Path,
    quantized: Mapping[str, QuantizedGraph],
    calibration: CalibrationSet,
    preparation: Callable[[str], Mapping[str, Any]],
) -> None:
    """Write ``search.json`` and a picture of drift against time for each scheme that was searched.

    Parameters
    ----------
    directory : pathlib.Path
        Made where it is missing.
    quantized : mapping of str to QuantizedGraph
        By scheme.
    calibration : CalibrationSet
        Images of the ranges.
    preparation : callable
        Scheme -> ranges and steps, see `Quantization.preparation`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "schema_version": 1,
        "calibration": {
            "data": calibration.images.data,
            "split": calibration.images.split,
            "image_sha256": list(calibration.sha256),
            "notes": list(calibration.notes),
        },
        "schemes": [
            {**search_to_json(graph), "preparation": preparation(graph.scheme)} for graph in quantized.values()
        ],
    }
    (directory / "search.json").write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
    for graph in quantized.values():
        if graph.points:
            title = f"{graph.scheme} graph: drift against time of the plans that the search went through"
            (directory / f"pareto-{graph.scheme}.svg").write_text(pareto_svg(graph.points, title) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0.0 else value
