"""One build, from a checkpoint to a bundle: every stage in order, nothing at the output until all have passed."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unetx_exporters.assembly import Findings, assemble_manifest, label_names
from unetx_exporters.evaluation import BuiltEngine, Evaluation, GateSetup, evaluate_engines, name_engines
from unetx_exporters.gate_images import GateImages, folder_gate_images, phantom_gate_images
from unetx_exporters.graphs import GraphRequest, GraphSet, make_graphs
from unetx_exporters.options import DEFAULT_SIZE_PX, BuildOptions
from unetx_exporters.request import BuildRequest
from unetx_exporters.result import BuildResult, summarize_build
from unetx_exporters.targets import TargetRow, choose_targets
from unetx_exporters.tensorrt.header import check_capabilities
from unetx_exporters.tensorrt.options import read_options
from unetx_opt.bundle.write import staged_bundle, write_bundle
from unetx_opt.errors import ExportError, GateError, SpecError
from unetx_opt.imaging.refinement import Refiner, make_refiner
from unetx_opt.metrics.gates import MINIMUM_IMAGES, explain_failure
from unetx_opt.models.checkpoint import Checkpoint, load_model, read_checkpoint, reference_checkpoint
from unetx_opt.models.postprocess import read_step
from unetx_opt.models.variants import get_variant
from unetx_opt.runtime.host import probe_host
from unetx_opt.specs import EngineRecord, Host, InputContract, Precision

if TYPE_CHECKING:
    from unetx_opt.models.unet import UNet

__all__ = ["build_bundle"]

Progress = Callable[[str, int, int], None]

#: Phantoms that decide a gate without a data folder: a few more than the least that a gate accepts.
PHANTOM_COUNT = 24
#: Errors of a logit that float16 may bring, see `GraphRequest`: the next one where the gate fails. The last leaves
#: hardly a layer in float16; it is relative to the largest logit, which one odd border pixel can make huge.
_LOGIT_ERRORS = (0.03, 0.01, 0.001, 1e-5)
_CARD_NAME = "model-card.md"
_EVIDENCE = "evidence"
_PICTURES = 4
_GATE_PAGE = f"{_EVIDENCE}/gate.html"


class _GateFailureError(GateError):
    """An engine fails the gate: other than a gate that cannot be decided, this may be mended by wider layers."""


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
    targets, skipped = choose_targets(options.targets, host)
    size_px = _choose_size(options, checkpoint)
    contract = InputContract(height=size_px, width=size_px, channels=checkpoint.spec.in_channels)
    _bind_step(checkpoint, contract)  # what it lacks is said before minutes of work
    images = _gate_images(options, size_px)
    with staged_bundle(options.output, archive=options.archive, overwrite=options.overwrite) as directory:
        with tempfile.TemporaryDirectory(prefix="unetx-build-") as scratch:
            build = _Build(options, checkpoint, contract, host, directory, report)
            findings = build.run(Path(scratch), targets, images, skipped)
        report("manifest", 0, 1)
        write_bundle(directory, assemble_manifest(options, checkpoint, contract, host, findings), options.signer)
    page = None if images is None else _GATE_PAGE
    return summarize_build(options, size_px, findings, page, time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _Build:
    options: BuildOptions
    checkpoint: Checkpoint
    contract: InputContract
    host: Host
    directory: Path
    report: Progress

    def run(
        self,
        scratch: Path,
        targets: Sequence[TargetRow],
        images: GateImages | None,
        skipped: Mapping[str, str],
    ) -> Findings:
        """Build with ever more layers in float32, until the gate passes or there is nothing left to raise."""
        limits = _LOGIT_ERRORS if self.options.precision is Precision.FP16 else _LOGIT_ERRORS[:1]
        tried: list[GraphSet] = []
        failure: _GateFailureError | None = None
        for logit_error in limits:
            self.report("export", 0, 1)
            model = load_model(self.checkpoint)
            graphs = make_graphs(
                model,
                GraphRequest(self.options.precision, self.contract, scratch, images, self.options.seed, logit_error),
            )
            if any(graphs.layer_types == earlier.layer_types for earlier in tried):
                continue
            tried.append(graphs)
            try:
                return self._run_gate(model, graphs, targets, images, skipped)
            except _GateFailureError as error:
                failure = error
                shutil.rmtree(self.directory / "engines")
        assert failure is not None  # noqa: S101 - the first limit is always tried
        raise failure

    def _run_gate(
        self,
        model: UNet,
        graphs: GraphSet,
        targets: Sequence[TargetRow],
        images: GateImages | None,
        skipped: Mapping[str, str],
    ) -> Findings:
        engines = self._build_engines(targets, graphs)
        card = self._copy_card()
        if images is None:
            return Findings(graphs, engines, skipped=skipped, model_card=card)
        setup = GateSetup(
            name=self.options.gate_name,
            class_names=label_names(self.checkpoint)[1:],
            directory=self.directory,
            report=self.report,
            worst_cases=_PICTURES if self.options.pictures else 0,
            refiner=_bind_step(self.checkpoint, self.contract),
        )
        evaluation = evaluate_engines(engines, model, images, self.contract, setup)
        kept = _keep_passing(engines, evaluation)
        self._write_evidence(evaluation, engines, kept, images)
        return Findings(graphs, kept, evaluation.decisions, evaluation.measurement, images, skipped, card)

    def _build_engines(self, targets: Sequence[TargetRow], graphs: GraphSet) -> tuple[BuiltEngine, ...]:
        request = BuildRequest(
            graph_fp32=graphs.fp32,
            graph=graphs.typed,
            graph_stored=graphs.stored,
            precision=self.options.precision,
            directory=self.directory,
            layer_types=graphs.layer_types,
            compute_capabilities=self.options.compute_capabilities,
            options=self.options.target_options,
        )
        records: list[EngineRecord] = []
        for index, row in enumerate(targets):
            self.report(row.name, index, len(targets))
            records.extend(row.build(request))
        return name_engines(records, graphs.typed, self.host)

    def _copy_card(self) -> str | None:
        if self.options.checkpoint is not None:
            return None
        card = reference_checkpoint(self.options.variant).with_suffix(".md")
        if not card.is_file():
            return None
        shutil.copyfile(card, self.directory / _CARD_NAME)
        return _CARD_NAME

    def _write_evidence(
        self,
        evaluation: Evaluation,
        engines: Sequence[BuiltEngine],
        kept: Sequence[BuiltEngine],
        images: GateImages,
    ) -> None:
        from unetx_exporters.gate_evidence import collect_evidence
        from unetx_exporters.gate_report import write_gate_report

        notes = {
            engine.name: f"Its typed graph ran in its place, under ONNX Runtime on the CPU: {engine.why_graph}."
            for engine in engines
            if engine.why_graph is not None
        }
        reference = (
            f"PyTorch FP32, variant {self.options.variant}, checkpoint {self.checkpoint.sha256[:16]}, "
            f"{self.contract.height} x {self.contract.width} px"
        )
        evidence = collect_evidence(
            evaluation.measurement,
            evaluation.decisions,
            images,
            reference,
            notes,
            left_out=[engine.name for engine in engines if engine not in kept],
        )
        evidence = dataclasses.replace(evidence, pictures=self.options.pictures)
        write_gate_report(self.directory / _EVIDENCE, evidence)


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


def _keep_passing(engines: Sequence[BuiltEngine], evaluation: Evaluation) -> tuple[BuiltEngine, ...]:
    """Of each target keep what passes, the fastest first; a target of which nothing passes fails the build."""
    kept: list[BuiltEngine] = []
    for target in dict.fromkeys(engine.record.target for engine in engines):
        alternatives = [engine for engine in engines if engine.record.target == target]
        passing = [engine for engine in alternatives if evaluation.decisions[engine.name].passed]
        # Engines for different devices stand beside each other and must all pass; settings are a choice.
        devices = {engine.record.compute_capabilities for engine in alternatives}
        if devices - {engine.record.compute_capabilities for engine in passing}:
            reasons = [
                f"{engine.name}: {explain_failure(evaluation.decisions[engine.name])}"
                for engine in alternatives
                if not evaluation.decisions[engine.name].passed
            ]
            raise _GateFailureError("; ".join(reasons) + ": keep a wider precision, or choose another gate")
        kept.extend(sorted(passing, key=lambda engine: evaluation.measurement.median_call_ms(engine.name)))
    if not kept:
        raise ExportError("no engine was built")
    return tuple(kept)
