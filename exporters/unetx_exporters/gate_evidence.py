"""What a gate's report is made of, and the same as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from unetx_exporters.gate import DriftMeasurement, MeasuredImage
from unetx_exporters.gate_cases import DriftCase
from unetx_exporters.gate_images import GateImages
from unetx_opt.errors import GateError
from unetx_opt.metrics.bootstrap import RESAMPLES
from unetx_opt.metrics.gates import MINIMUM_IMAGES, GateDecision, ImageDrift, decision_to_json, drift_to_json

__all__ = ["GateReport", "TargetEvidence", "collect_evidence", "report_to_json"]


@dataclass(frozen=True, slots=True)
class TargetEvidence:
    """One engine: the decision about it and what led to it.

    Attributes
    ----------
    name : str
        The target, with what tells it from others of the report: "openvino-cpu bf16".
    decision : GateDecision
        Passed or not, rule by rule.
    drifts : tuple of ImageDrift
        Every image and class.
    call_ms : tuple of float
        Time of its one call per image, see `unetx_exporters.gate.DriftMeasurement`.
    cases : tuple of DriftCase
        The images where it differs most, the worst first.
    note : str
        What a reader must know about this engine, for instance that its graph ran in its place; may be empty.
    kept : bool
        Whether the bundle holds it; an alternative that fails beside one that passes is left out.
    """

    name: str
    decision: GateDecision
    drifts: tuple[ImageDrift, ...]
    call_ms: tuple[float, ...]
    cases: tuple[DriftCase, ...] = ()
    note: str = ""
    kept: bool = True


@dataclass(frozen=True, slots=True)
class GateReport:
    """Everything that one gate decided in one build.

    Attributes
    ----------
    gate : str
        Name of the gate.
    reference : str
        What the engines were compared with, in one line: framework, precision, variant, checkpoint hash.
    data : str
        "phantom", or the name of the data folder.
    split : str or None
        Split of the data folder.
    note : str
        What a reader must know about the images.
    images : tuple of MeasuredImage
        The images, by hash.
    targets : tuple of TargetEvidence
        At least one, all decided by `gate`.
    pictures : bool
        Whether the page shows parts of the images.
    """

    gate: str
    reference: str
    data: str
    split: str | None
    note: str
    images: tuple[MeasuredImage, ...]
    targets: tuple[TargetEvidence, ...]
    pictures: bool = True

    def __post_init__(self) -> None:
        if not self.targets:
            raise GateError("a gate's report has no targets, expected at least one")
        for target in self.targets:
            if target.decision.name != self.gate:
                raise GateError(
                    f"target {target.name} was decided by the gate {target.decision.name}, expected {self.gate}"
                )

    @property
    def kept(self) -> tuple[TargetEvidence, ...]:
        """The targets that the bundle holds."""
        return tuple(target for target in self.targets if target.kept)

    @property
    def passed(self) -> bool:
        """Every target that the bundle holds passed, and it holds one."""
        return bool(self.kept) and all(target.decision.passed for target in self.kept)


def collect_evidence(
    measurement: DriftMeasurement,
    decisions: Mapping[str, GateDecision],
    images: GateImages,
    reference: str,
    notes: Mapping[str, str] | None = None,
    left_out: Collection[str] = (),
) -> GateReport:
    """Put a measurement and its decisions together.

    Parameters
    ----------
    measurement : DriftMeasurement
        Of all engines.
    decisions : mapping of str to GateDecision
        The engines to report, by the names of the measurement and in the order of the report.
    images : GateImages
        What the measurement went through.
    reference : str
        See `GateReport`.
    notes : mapping of str to str, optional
        A note for each engine that needs one.
    left_out : collection of str
        Engines that the bundle does not hold.

    Raises
    ------
    GateError
        There is no decision, or decisions are by different gates.
    """
    targets = tuple(
        TargetEvidence(
            name=name,
            decision=decision,
            drifts=measurement.drifts[name],
            call_ms=measurement.call_ms[name],
            cases=measurement.worst_cases[name],
            note=(notes or {}).get(name, ""),
            kept=name not in left_out,
        )
        for name, decision in decisions.items()
    )
    return GateReport(
        gate=targets[0].decision.name if targets else "",
        reference=reference,
        data=images.data,
        split=images.split,
        note=images.note,
        images=measurement.images,
        targets=targets,
    )


def report_to_json(report: GateReport) -> dict[str, Any]:
    """Turn a report into plain JSON types; infinite values become null, and pictures are left out."""
    return {
        "schema_version": 1,
        "gate": report.gate,
        "passed": report.passed,
        "reference": report.reference,
        "data": report.data,
        "split": report.split,
        "note": report.note,
        "method": {
            "minimum_images": MINIMUM_IMAGES,
            "lower_bound": f"one-sided 95 % percentile bootstrap of the mean, {RESAMPLES} resamples, seed 0",
            "percentile": "rank ceil(0.95 (n - 1)) of the sorted values, numpy method 'higher'",
            "hausdorff": "larger one of the two directed 95th percentiles between 4-connected mask boundaries",
            "call_ms": "one wall-clock call per image, engines in turns: a ranking, not a benchmark",
        },
        "images": [
            {"name": image.name, "sha256": image.sha256, "height_px": image.height_px, "width_px": image.width_px}
            for image in report.images
        ],
        "targets": [_target_to_json(target) for target in report.targets],
    }


def _target_to_json(target: TargetEvidence) -> dict[str, Any]:
    return {
        "name": target.name,
        "passed": target.decision.passed,
        "kept": target.kept,
        "note": target.note,
        "median_call_ms": round(statistics.median(target.call_ms), 3),
        "call_ms": [round(took_ms, 3) for took_ms in target.call_ms],
        "decision": decision_to_json(target.decision),
        "drifts": [drift_to_json(drift) for drift in target.drifts],
    }
