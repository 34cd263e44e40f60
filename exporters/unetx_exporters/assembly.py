"""The manifest of a build: what was made, from what, by what, and what the gate said."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unetx_exporters.gate import DriftMeasurement
from unetx_exporters.gate_images import GateImages
from unetx_opt import __version__
from unetx_opt.bundle.manifest import Manifest
from unetx_opt.bundle.parts import (
    Build,
    Engine,
    EngineGate,
    GateEvidence,
    ImageSet,
    Label,
    Postprocess,
    Product,
    SkippedTarget,
    SourceCheckpoint,
)
from unetx_opt.bundle.write import build_time, command_line, host_summary
from unetx_opt.errors import CheckpointError
from unetx_opt.metrics.gates import GateDecision
from unetx_opt.models.postprocess import read_step

if TYPE_CHECKING:
    from unetx_exporters.evaluation import BuiltEngine
    from unetx_exporters.graphs import GraphSet
    from unetx_exporters.options import BuildOptions
    from unetx_exporters.quantize.images import CalibrationSet
    from unetx_opt.models.checkpoint import Checkpoint
    from unetx_opt.specs import Host, InputContract

__all__ = ["Findings", "assemble_manifest", "label_names"]

#: Number of classes -> label names where the checkpoint names none. One class is the product's own task; four are
#: those of the CheXmask annotations, sides as the patient's.
_LABELS: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("background", "lungs"),
    4: ("background", "left lung", "right lung", "heart"),
}
_NOTES: Final = (
    "Compared with the PyTorch FP32 reference of the same checkpoint only; no statement about clinical accuracy.",
)
_REFERENCE_NOTE: Final = (
    "Reference weights: for research and benchmarking, non-commercial, not for clinical use; see the model card."
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What a build found out, for the manifest.

    Attributes
    ----------
    graphs : GraphSet
        Graphs with their types and operations.
    engines : sequence of BuiltEngine
        Those that the bundle keeps, in the order of preference within a target.
    decisions : mapping of str to GateDecision
        By the engine's name; empty where the gate is off.
    measurement : DriftMeasurement or None
        None where the gate is off.
    images : GateImages or None
        What the gate was decided on.
    skipped : mapping of str to str
        Target -> why it was not built.
    model_card : str or None
        Name of the card in the bundle.
    calibration : CalibrationSet or None
        Images that 8-bit ranges come from.
    left_out : mapping of str to str
        Engine that was tried beside others of its target, and is not in the bundle -> why.
    notes : tuple of str
        Further sentences for a reader of the manifest.
    """

    graphs: GraphSet
    engines: Sequence[BuiltEngine]
    decisions: Mapping[str, GateDecision] = field(default_factory=dict)
    measurement: DriftMeasurement | None = None
    images: GateImages | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    model_card: str | None = None
    calibration: CalibrationSet | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def label_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Name the values of a mask, the background first.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its metadata may hold ``labels``, a JSON list of names.

    Raises
    ------
    CheckpointError
        The list does not have a name for each class.
    """
    classes = checkpoint.spec.num_classes
    if "labels" not in checkpoint.metadata:
        return _LABELS.get(classes, ("background", *(f"class {index}" for index in range(1, classes))))
    try:
        names = json.loads(checkpoint.metadata["labels"])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or len(names) != max(2, classes) or not all(isinstance(n, str) for n in names):
        raise CheckpointError(
            f"{checkpoint.source}: its labels are {checkpoint.metadata['labels'][:80]!r}, expected a JSON list of "
            f"{max(2, classes)} names"
        )
    return tuple(names)


def assemble_manifest(
    options: BuildOptions, checkpoint: Checkpoint, contract: InputContract, host: Host, findings: Findings
) -> Manifest:
    """Put a manifest together.

    Parameters
    ----------
    options : BuildOptions
        What was asked for.
    checkpoint : Checkpoint
        What it was made from.
    contract : InputContract
        What the engines read.
    host : Host
        Where it was made.
    findings : Findings
        What came out.
    """
    engines = tuple(
        Engine.from_record(engine.record, _engine_gate(engine, findings.decisions)) for engine in findings.engines
    )
    left_out = (f"Tried and left out: {name}: {reason}." for name, reason in findings.left_out.items())
    notes = (*_NOTES, *findings.notes, *left_out)
    return Manifest(
        product=Product(name="unetx-opt", version=__version__),
        variant=options.variant,
        spec=checkpoint.spec,
        labels=tuple(Label(index=index, name=name) for index, name in enumerate(label_names(checkpoint))),
        input=contract,
        postprocess=_postprocess(checkpoint),
        precision=findings.graphs.precision,
        operations=findings.graphs.operations,
        engines=engines,
        skipped=tuple(SkippedTarget(target=name, reason=reason) for name, reason in findings.skipped.items()),
        checkpoint=SourceCheckpoint(
            sha256=checkpoint.sha256, source=Path(checkpoint.source).name, variant=checkpoint.variant
        ),
        gate=_gate_evidence(options, findings),
        build=Build(
            command=command_line(options.command or ("unetx-opt", "build")),
            seeds={"gate images": options.seed, "parity inputs": options.seed},
            tools=_tools(host),
            host=host_summary(host),
            created=build_time(),
        ),
        model_card=findings.model_card,
        calibration=_calibration_images(findings),
        notes=(*notes, _REFERENCE_NOTE) if options.checkpoint is None else notes,
    )


def _postprocess(checkpoint: Checkpoint) -> Postprocess | None:
    step = read_step(checkpoint)
    return None if step is None else Postprocess(name=step.name, grid="input", parameters=dict(step.parameters))


def _engine_gate(engine: BuiltEngine, decisions: Mapping[str, GateDecision]) -> EngineGate | None:
    decision = decisions.get(engine.name)
    return None if decision is None else EngineGate.from_decision(decision, engine.why_graph)


def _gate_evidence(options: BuildOptions, findings: Findings) -> GateEvidence:
    if findings.images is None or findings.measurement is None:
        return GateEvidence(name="off", images=None)
    images = ImageSet(
        data=findings.images.data,
        split=findings.images.split,
        count=len(findings.measurement.images),
        image_sha256=tuple(image.sha256 for image in findings.measurement.images),
    )
    return GateEvidence(name=options.gate_name, images=images)


def _calibration_images(findings: Findings) -> ImageSet | None:
    found = findings.calibration
    if found is None:
        return None
    return ImageSet(data=found.images.data, split=found.images.split, count=len(found), image_sha256=found.sha256)


def _tools(host: Host) -> dict[str, str]:
    used = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt_rtx", "tensorrt")
    versions = {name: host.packages[name] for name in used if name in host.packages}
    return {"python": platform.python_version(), **versions}
