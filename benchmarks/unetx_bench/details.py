"""What a benchmark finds besides latency about engines and peers: drift, first run, limits, profile, energy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_bench.bundles import TimedImage
from unetx_bench.candidates import Opened, OpenedBundle, OpenedCandidate, prepare_timed
from unetx_bench.ceilings import Ceilings, measure_ceilings
from unetx_bench.coldstart import ColdStart, measure_cold_start
from unetx_bench.drift import BundleDrift, drift_rows, measure_bundle_drift, write_case_pictures
from unetx_bench.energy import COUNTERS, EnergyFigure, measure_energy
from unetx_bench.profile import EngineProfile, profile_engine
from unetx_bench.report import Candidate, Drift, DriftData, Latency
from unetx_bench.request import BenchRequest, choose_images
from unetx_bench.roofline import place_under_roofline
from unetx_opt.errors import UnetxError
from unetx_opt.runtime.sessions.base import OpenRequest

__all__ = ["Details", "measure_candidates"]

_GPU_TARGETS: Final = frozenset({"tensorrt", "tensorrt-rtx", "onnxruntime-cuda"})
_PICTURES: Final = "pictures"

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Details:
    """Everything besides latency; the candidates' fractions of a limit are still empty."""

    candidates: tuple[Candidate, ...]
    ceilings: tuple[Ceilings, ...]
    drift_data: DriftData

    def with_fractions(self, row: Candidate, latencies: tuple[Latency, ...]) -> Candidate:
        """Hold a candidate's median by the span "engine" against its limit."""
        medians = [
            latency.median_ms
            for latency in latencies
            if (latency.candidate, latency.span, latency.batch) == (row.name, "engine", 1)
        ]
        if row.roofline is None or not medians or medians[0] is None:
            return row
        median_ms = medians[0].value
        return row.model_copy(
            update={
                "fraction_of_limit": row.roofline.limit_ms / median_ms,
                "fraction_of_arithmetic": row.roofline.arithmetic_ms / median_ms,
            }
        )


@dataclass(slots=True)
class _Found:
    """What is filled in for one candidate; reasons for what is not."""

    cold_start: ColdStart | None = None
    energy: list[EnergyFigure] = field(default_factory=list)
    profile: EngineProfile | None = None
    why_not: dict[str, str] = field(default_factory=dict)


def measure_candidates(opened: Opened, request: BenchRequest, image: TimedImage, folder: Path, note: Note) -> Details:
    """Measure everything besides latency; what cannot be measured is noted with its reason and stops nothing.

    Parameters
    ----------
    opened : Opened
        Engines and peers.
    request : BenchRequest
        What is asked for.
    image : TimedImage
        What profiles and energy are taken with.
    folder : pathlib.Path
        Where pictures go.
    note : callable
        Takes a line of progress.
    """
    ceilings = _measure_limits(opened, request, note) if request.details else ()
    rows: list[Candidate] = []
    data: DriftData | None = None
    reasons: list[str] = []
    for bundle in opened.bundles:
        drift, data_or_reason = _measure_drift(bundle, request, note)
        if isinstance(data_or_reason, DriftData):
            data = data_or_reason
        else:
            reasons.append(data_or_reason)
        for candidate in bundle.candidates:
            found = _measure_one(bundle, candidate, request, prepare_timed(bundle.manifest, image), note)
            if isinstance(data_or_reason, str):
                found.why_not["drift"] = data_or_reason
            rows.append(_row(bundle, candidate, found, _drift(drift, candidate, request, folder), ceilings))
    told = "; ".join(dict.fromkeys(reasons)) or "there is no bundle"
    nothing = DriftData(data=None, split=None, note=told, count=0, gate=None, image_sha256=())
    return Details(tuple(rows), ceilings, data or nothing)


def _measure_limits(opened: Opened, request: BenchRequest, note: Note) -> tuple[Ceilings, ...]:
    targets = {
        candidate.engine.record.target
        for bundle in opened.bundles
        for candidate in bundle.candidates
        if candidate.engine is not None
    }
    note("measuring the limits of this machine")
    devices = ["cpu", *(["cuda"] if targets & _GPU_TARGETS else [])]
    seconds = min(1.0, request.measure.maximum_seconds / 30)
    return tuple(measure_ceilings(device, request.threads, seconds) for device in devices)


def _measure_drift(
    bundle: OpenedBundle, request: BenchRequest, note: Note
) -> tuple[BundleDrift | None, DriftData | str]:
    if not request.images:
        return None, "it was not asked for"
    if bundle.reference is None:
        return None, "the checkpoint of this bundle was not found"
    images = choose_images(request, bundle.manifest.input.height)
    note(f"comparing masks of {bundle.opened.name} on {len(images)} images")
    candidates = {candidate.name: candidate.infer for candidate in bundle.candidates}
    try:
        found = measure_bundle_drift(bundle.reference, candidates, images, bundle.manifest, request.gate)
    except UnetxError as error:
        return None, str(error)
    hashes = tuple(image.sha256 for image in found.measurement.images)
    data = DriftData(
        data=images.data,
        split=images.split,
        note=images.note,
        count=len(images),
        gate=request.gate,
        image_sha256=hashes,
    )
    return found, data


def _drift(
    found: BundleDrift | None, candidate: OpenedCandidate, request: BenchRequest, folder: Path
) -> Drift | None:
    if found is None:
        return None
    pictures: tuple[dict[str, Any], ...] = ()
    if request.pictures:
        stem = re.sub(r"[^a-z0-9]+", "-", candidate.name.lower()).strip("-")
        pictures = write_case_pictures(found, candidate.name, folder / _PICTURES, stem)
        for row in pictures:
            row["pictures"] = {kind: f"{_PICTURES}/{name}" for kind, name in row["pictures"].items()}
    return Drift.model_validate(drift_rows(found, candidate.name, pictures))


def _measure_one(
    bundle: OpenedBundle, candidate: OpenedCandidate, request: BenchRequest, image: NDArray[np.float32], note: Note
) -> _Found:
    found = _Found()
    if not request.details:
        found.why_not = dict.fromkeys(("cold_start", "energy", "profile"), "it was not asked for")
        return found
    note(f"first run, profile and energy of {candidate.name}")
    engine = candidate.engine
    if engine is None:
        found.why_not |= dict.fromkeys(("cold_start", "profile"), "measured for engines of bundles only")
    else:
        label = engine.name.removeprefix(f"{bundle.opened.name} ")
        try:
            found.cold_start = measure_cold_start(bundle.path, label, request.threads)
        except UnetxError as error:
            found.why_not["cold_start"] = str(error)
        try:
            found.profile = profile_engine(OpenRequest(engine.record, bundle.opened.read, request.threads), image)
        except UnetxError as error:
            found.why_not["profile"] = str(error)
    for counter in COUNTERS.values():
        try:
            found.energy.append(measure_energy(lambda: candidate.infer(image), counter))
        except UnetxError as error:
            found.why_not[f"energy {counter.name}"] = str(error)
    return found


def _row(
    bundle: OpenedBundle,
    candidate: OpenedCandidate,
    found: _Found,
    drift: Drift | None,
    ceilings: tuple[Ceilings, ...],
) -> Candidate:
    engine = candidate.engine
    record = None if engine is None else engine.record
    limits: Mapping[str, Ceilings] = {row.device: row for row in ceilings}
    roofline = None
    if record is not None and bundle.layers:
        limit = limits.get("cuda" if record.target in _GPU_TARGETS else "cpu")
        roofline = None if limit is None else place_under_roofline(bundle.layers, limit, record.compute_dtype)
        if roofline is None:
            found.why_not["roofline"] = f"the machine's limit in {record.compute_dtype} was not measured"
    return Candidate(
        name=candidate.name,
        kind="peer" if engine is None else "engine",
        describes=candidate.describes,
        bundle=bundle.opened.name,
        target=None if record is None else record.target,
        storage_dtype=None if record is None else record.storage_dtype,
        compute_dtype=None if record is None else record.compute_dtype,
        settings={} if record is None else dict(record.settings),
        load_ms=None if engine is None else engine.load_ms,
        cold_start=found.cold_start,
        energy=tuple(found.energy),
        drift=drift,
        roofline=roofline,
        fraction_of_limit=None,
        fraction_of_arithmetic=None,
        profile=found.profile,
        why_not=found.why_not,
    )
