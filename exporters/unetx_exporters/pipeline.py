"""One build, from a checkpoint to a bundle: every stage in order, nothing at the output until all have passed."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from unetx_exporters.assembly import Findings, assemble_manifest
from unetx_exporters.attempt import EVIDENCE, GATE_PAGE, Attempt, GateFailureError
from unetx_exporters.evidence_page import complete_page
from unetx_exporters.gate_images import GateImages, folder_gate_images, phantom_gate_images
from unetx_exporters.graphs import GraphRequest, GraphSet, make_graphs
from unetx_exporters.native.sources import copy_native
from unetx_exporters.options import DEFAULT_SIZE_PX, BuildOptions
from unetx_exporters.quantize.images import CalibrationSet
from unetx_exporters.result import BuildResult, summarize_build
from unetx_exporters.targets import TARGETS, TargetRow, choose_targets
from unetx_exporters.tensorrt.header import check_capabilities
from unetx_exporters.tensorrt.options import read_options
from unetx_opt.bundle.write import staged_bundle, write_bundle
from unetx_opt.errors import GateError, SpecError
from unetx_opt.imaging.refinement import Refiner, make_refiner
from unetx_opt.metrics.gates import MINIMUM_IMAGES
from unetx_opt.models.checkpoint import Checkpoint, load_model, read_checkpoint, reference_checkpoint
from unetx_opt.models.postprocess import read_step
from unetx_opt.models.variants import get_variant
from unetx_opt.runtime.host import probe_host
from unetx_opt.specs import InputContract, Precision

__all__ = ["build_bundle"]

Progress = Callable[[str, int, int], None]

#: Phantoms that decide a gate without a data folder: a few more than the least that a gate accepts.
PHANTOM_COUNT = 24
#: Errors of a logit that float16 may bring, see `GraphRequest`: the next one where the gate fails. The last leaves
#: hardly a layer in float16; it is relative to the largest logit, which one odd border pixel can make huge.
_LOGIT_ERRORS = (0.03, 0.01, 0.001, 1e-5)
#: How often an int8 layer is raised because an engine fails the gate that its graph has passed.
_MOST_RAISES: Final = 8


def _no_report(stage: str, done: int, total: int) -> None:
    del stage, done, total


def build_bundle(options: BuildOptions, report: Progress = _no_report) -> BuildResult:
    """Build a bundle.

    Parameters
    ----------
    options : BuildOptions
        What is asked for.
    report : callable
        Told the stage, and how far it is.

    Returns
    -------
    BuildResult
        The bundle is complete at ``options.output``.

    Raises
    ------
    GateError
        An engine fails the gate, or there are too few images to decide it; nothing is left at the output.
    UnetxError
        Any other reason, one line; nothing is left at the output.
    """
    started = time.monotonic()
    # Settings of a builder are read by it, but a wrong one is found before minutes of work.
    read_options(options.target_options)
    check_capabilities(options.compute_capabilities)
    checkpoint = _read(options)
    host = probe_host()
    targets, skipped = choose_targets(options.targets, host, options.precision)
    size_px = _choose_size(options, checkpoint)
    contract = InputContract(height=size_px, width=size_px, channels=checkpoint.spec.in_channels)
    refiner = _bind_step(checkpoint, contract)  # what it lacks is said before minutes of work
    images = _gate_images(options, size_px)
    calibration = _calibration(options, contract, images)
    with staged_bundle(options.output, archive=options.archive, overwrite=options.overwrite) as directory:
        with tempfile.TemporaryDirectory(prefix="unetx-build-") as scratch:
            attempt = Attempt(options, checkpoint, contract, host, directory, refiner, report)
            task = _Task(attempt, Path(scratch), targets, images, calibration)
            findings = _repeat(task, _ROUTES[options.precision](task))
        findings = dataclasses.replace(findings, skipped=skipped, calibration=calibration)
        if options.native:
            copy_native(directory)
        report("manifest", 0, 1)
        manifest = assemble_manifest(options, checkpoint, contract, host, findings)
        if images is not None:
            complete_page(directory / GATE_PAGE, manifest)
        write_bundle(directory, manifest, options.signer)
    _discard_search(options)
    page = None if images is None else GATE_PAGE
    return summarize_build(options, size_px, findings, page, time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _Task:
    """What a route needs: how an attempt is made, and with what."""

    attempt: Attempt
    scratch: Path
    targets: Sequence[TargetRow]
    images: GateImages | None
    calibration: CalibrationSet | None

    def graph_request(self, logit_error: float = _LOGIT_ERRORS[0], *, compress_weights: bool = False) -> GraphRequest:
        options = self.attempt.options
        contract = self.attempt.contract
        gated = any(row.takes_gates for row in self.targets)
        return GraphRequest(
            options.precision,
            contract,
            self.scratch,
            self.images,
            options.seed,
            logit_error,
            gate_operator=gated,
            compress_weights=compress_weights,
            compare=options.compare,
        )


def _build_fp32(task: _Task) -> Findings:
    task.attempt.report("export", 0, 1)
    model = load_model(task.attempt.checkpoint)
    return task.attempt.run(model, make_graphs(model, task.graph_request()), task.targets, task.images)


def _build_fp16(task: _Task) -> Findings:
    """Build with 8-bit weights, if they were asked for and keep the gate, else with float16 ones."""
    attempt = task.attempt
    if not attempt.options.compress_weights:
        return _build_half(task)
    attempt.report("export", 0, 1)
    model = load_model(attempt.checkpoint)
    graphs = make_graphs(model, task.graph_request(compress_weights=True))
    try:
        findings = attempt.run(model, graphs, task.targets, task.images)
        note = "The CPU engines store their weights in 8 bits, with one scale for each output channel."
    except GateFailureError as error:
        findings = _build_half(dataclasses.replace(task, attempt=dataclasses.replace(attempt, random_rows={})))
        note = f"Weights in 8 bits were tried, and not taken: {error}."
    return dataclasses.replace(findings, notes=(*findings.notes, note))


def _build_half(task: _Task) -> Findings:
    """Build with ever more layers in float32, until the gate passes or there is nothing left to raise."""
    tried: list[GraphSet] = []
    failure: GateFailureError | None = None
    for logit_error in _LOGIT_ERRORS:
        task.attempt.report("export", 0, 1)
        model = load_model(task.attempt.checkpoint)
        graphs = make_graphs(model, task.graph_request(logit_error))
        if any(graphs.layer_types == earlier.layer_types for earlier in tried):
            continue
        tried.append(graphs)
        try:
            return task.attempt.run(model, graphs, task.targets, task.images)
        except GateFailureError as error:
            failure = error
    assert failure is not None  # noqa: S101 - the first limit is always tried
    raise failure


def _build_int8(task: _Task) -> Findings:
    """Search each scheme's graph, and raise layers further where an engine fails what its graph has passed."""
    from unetx_exporters import int8

    attempt = task.attempt
    attempt.report("export", 0, 1)
    assert task.calibration is not None  # noqa: S101 - chosen for this precision
    model = load_model(attempt.checkpoint)
    graphs = make_graphs(model, task.graph_request())
    request = int8.quantize_request(attempt.options, task.graph_request(), graphs, task.calibration, task.targets)
    drift = int8.drift_options(attempt.checkpoint, attempt.refiner)
    request = dataclasses.replace(request, gate=int8.gate_task(attempt.options, model, task.images, drift))
    quantization = int8.open_quantization(graphs, request, task.graph_request(), attempt.report)
    found = quantization.graphs()
    for raises in range(_MOST_RAISES + 1):
        try:
            findings = attempt.run(model, int8.with_quantized(graphs, found), task.targets, task.images)
            break
        except GateFailureError as error:
            schemes = {TARGETS[name].scheme for name in error.targets}
            wider = {name: quantization.widen(found[name]) for name in found if name in schemes}
            if raises == _MOST_RAISES or any(graph is None for graph in wider.values()):
                raise
            found |= {name: graph for name, graph in wider.items() if graph is not None}
    int8.write_search_evidence(attempt.directory / EVIDENCE, found, task.calibration, quantization.preparation)
    turing = int8.turing_notes(attempt.options, task.targets)
    notes = (*findings.notes, *task.calibration.notes, *quantization.warnings, *turing)
    return dataclasses.replace(findings, notes=notes)


def _repeat(task: _Task, findings: Findings) -> Findings:
    """Build the engines again as often as was asked for, and note how they differ."""
    options, attempt = task.attempt.options, task.attempt
    if options.repeat_builds == 1:
        return findings
    from unetx_exporters.int8 import drift_options
    from unetx_exporters.repeats import describe_variance, measure_variance, variance_to_json

    size_px = attempt.contract.height
    rows = measure_variance(
        lambda directory: attempt.build_engines(task.targets, findings.graphs, directory),
        [task.scratch / f"build-{number}" for number in range(options.repeat_builds)],
        task.images or phantom_gate_images(PHANTOM_COUNT, size_px, options.seed),
        attempt.contract,
        drift_options(attempt.checkpoint, attempt.refiner),
    )
    (attempt.directory / EVIDENCE / "repeats.json").write_text(variance_to_json(rows))
    return dataclasses.replace(findings, notes=(*findings.notes, describe_variance(rows)))


#: Precision -> how its graphs and engines are made.
_ROUTES: Final[Mapping[Precision, Callable[[_Task], Findings]]] = MappingProxyType(
    {Precision.FP32: _build_fp32, Precision.FP16: _build_fp16, Precision.INT8: _build_int8}
)


def _calibration(options: BuildOptions, contract: InputContract, images: GateImages | None) -> CalibrationSet | None:
    if options.precision is not Precision.INT8:
        return None
    from unetx_exporters.int8 import choose_calibration

    return choose_calibration(options, contract, images)


def _discard_search(options: BuildOptions) -> None:
    if options.precision is Precision.INT8:
        from unetx_exporters.quantize.state import SearchState, search_folder

        SearchState.discard(search_folder(options.output))


def _read(options: BuildOptions) -> Checkpoint:
    get_variant(options.variant)
    path = options.checkpoint if options.checkpoint is not None else reference_checkpoint(options.variant)
    return read_checkpoint(path, variant=options.variant)


def _bind_step(checkpoint: Checkpoint, contract: InputContract) -> Refiner | None:
    step = read_step(checkpoint)
    return None if step is None else make_refiner(step.name, step.parameters, contract)


def _choose_size(options: BuildOptions, checkpoint: Checkpoint) -> int:
    size_px = options.size_px or checkpoint.trained_size_px or DEFAULT_SIZE_PX
    divisor = checkpoint.spec.divisor
    if size_px % divisor:
        nearest = max(1, round(size_px / divisor)) * divisor
        raise SpecError(f"size {size_px} is not a multiple of {divisor}, as this model needs: choose {nearest}")
    return size_px


def _gate_images(options: BuildOptions, size_px: int) -> GateImages | None:
    if options.gate_name == "off":
        return None
    if options.data is None:
        return phantom_gate_images(PHANTOM_COUNT, size_px, options.seed)
    images = folder_gate_images(options.data, options.split)
    if len(images) < MINIMUM_IMAGES:  # found before minutes of work, not after
        raise GateError(
            f"split {options.split} of {images.data} has {len(images)} images, the gate needs at least "
            f"{MINIMUM_IMAGES}: add {MINIMUM_IMAGES - len(images)} more, or leave --data out to use phantoms"
        )
    return images
