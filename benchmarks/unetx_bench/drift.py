"""Drift of engines beside their latency: the gate's rules on images of this run, pictures of the worst of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.gate import DriftMeasurement, DriftOptions, Engine, measure_drift
from unetx_exporters.gate_cases import CaseView
from unetx_exporters.gate_figures import case_png
from unetx_exporters.gate_images import GateImages
from unetx_opt.files import write_file
from unetx_opt.imaging.files import write_overlay_png
from unetx_opt.imaging.refinement import decide_labels
from unetx_opt.metrics.gates import GateDecision, decide_gate, decision_to_json, drift_to_json
from unetx_opt.runtime.opening import open_refiner

if TYPE_CHECKING:
    from unetx_opt.bundle.manifest import Manifest

__all__ = ["BundleDrift", "drift_rows", "measure_bundle_drift", "write_case_pictures"]

#: Which masks a picture shows -> its part of the file name.
_PICTURES: Final = ("reference", "engine", "difference")


@dataclass(frozen=True, slots=True)
class BundleDrift:
    """Engines of one bundle, and peers of its checkpoint, against the FP32 reference.

    Attributes
    ----------
    measurement : DriftMeasurement
        Of all, image by image.
    decisions : mapping of str to GateDecision
        By name.
    """

    measurement: DriftMeasurement
    decisions: Mapping[str, GateDecision]


def measure_bundle_drift(
    reference: Engine, candidates: Mapping[str, Engine], images: GateImages, manifest: Manifest, gate: str
) -> BundleDrift:
    """Compare candidates with the reference of one checkpoint, and decide a gate for each.

    Parameters
    ----------
    reference : callable
        The FP32 model.
    candidates : mapping of str to callable
        Logits for (1, C, H, W); by name.
    images : GateImages
        What is compared on.
    manifest : Manifest
        Of the bundle: labels, input contract, step after the engine.
    gate : str
        Name of the gate.

    Raises
    ------
    GateError
        There are too few images to decide.
    """
    names = tuple(label.name for label in manifest.labels)[1:]
    decide = functools.partial(decide_labels, refiner=open_refiner(manifest))
    measurement = measure_drift(
        reference, candidates, images, manifest.input, DriftOptions(class_names=names, decide_pixels=decide)
    )
    decisions = {name: decide_gate(gate, drifts) for name, drifts in measurement.drifts.items()}
    return BundleDrift(measurement, MappingProxyType(decisions))


def drift_rows(found: BundleDrift, name: str, pictures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the drift of one candidate into plain JSON types: decision, every image, the worst cases' pictures."""
    return {
        "decision": decision_to_json(found.decisions[name]),
        "images": [drift_to_json(drift) for drift in found.measurement.drifts[name]],
        "worst": list(pictures),
    }


def write_case_pictures(found: BundleDrift, name: str, folder: Path, stem: str) -> tuple[dict[str, Any], ...]:
    """Write pictures of the images where a candidate's masks differ most.

    Parameters
    ----------
    found : BundleDrift
        The measurement.
    name : str
        The candidate.
    folder : pathlib.Path
        Where to; created.
    stem : str
        Beginning of the files' names.

    Returns
    -------
    tuple of dict
        For each case: image, class_name, differing_px, and the names of its pictures: reference and engine (the
        same view with either mask), difference, and both side by side with an enlargement.
    """
    rows = []
    for index, case in enumerate(found.measurement.worst_cases[name]):
        files = {"both": f"{stem}-{index}-both.png"}
        write_file(_made(folder) / files["both"], case_png(case))
        for kind in _PICTURES:
            files[kind] = f"{stem}-{index}-{kind}.png"
            write_overlay_png(folder / files[kind], case.overview.grey, _labels(case.overview, kind))
        rows.append(
            {
                "image": case.drift.name,
                "class_name": case.drift.class_name,
                "differing_px": case.differing_px,
                "pictures": files,
            }
        )
    return tuple(rows)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _labels(view: CaseView, kind: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(getattr(view, kind), dtype=np.uint8)
