"""One attempt of a build: graphs to engines, watched at their junctions, judged by the gate, with the evidence."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unetx_exporters.assembly import Findings, label_names
from unetx_exporters.evaluation import BuiltEngine, Evaluation, GateSetup, evaluate_engines, name_engines
from unetx_exporters.gate_images import GateImages
from unetx_exporters.graphs import GraphRequest, GraphSet, break_fusions
from unetx_exporters.random_watch import watch_images, watch_random
from unetx_exporters.request import BuildRequest
from unetx_exporters.sentinel import JunctionRow, SentinelInputs, explain_junction, rows_to_json, watch_engine
from unetx_exporters.targets import TargetRow
from unetx_opt.errors import ExportError, GateError
from unetx_opt.metrics.gates import explain_failure
from unetx_opt.models.checkpoint import Checkpoint, reference_checkpoint
from unetx_opt.specs import EngineRecord, Host, InputContract, Precision

if TYPE_CHECKING:
    from unetx_exporters.options import BuildOptions
    from unetx_opt.imaging.refinement import Refiner
    from unetx_opt.models.unet import UNet

__all__ = ["EVIDENCE", "GATE_PAGE", "Attempt", "GateFailureError"]

EVIDENCE: Final = "evidence"
GATE_PAGE: Final = f"{EVIDENCE}/gate.html"
_CARD_NAME: Final = "model-card.md"
_PICTURES: Final = 4

Progress = Callable[[str, int, int], None]


class GateFailureError(GateError):
    """An engine fails the gate: other than a gate that cannot be decided, this may be mended by wider layers.

    Attributes
    ----------
    targets : tuple of str
        Of the engines that fail.
    """

    def __init__(self, message: str, targets: tuple[str, ...]) -> None:
        super().__init__(message)
        self.targets = targets


@dataclass(frozen=True, slots=True)
class _Built:
    """Engines of all targets, and what their builders tried beside them: name -> why it is no candidate."""

    engines: tuple[BuiltEngine, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What every attempt of one build shares.

    Attributes
    ----------
    options : BuildOptions
        What is asked for.
    checkpoint : Checkpoint
        What is built.
    contract : InputContract
        What the engines read.
    host : Host
        This machine.
    directory : pathlib.Path
        Root of the staged bundle.
    refiner : Refiner or None
        Step after the network.
    report : callable
        Progress: stage, done, total.
    random_rows : dict of bool to tuple of JunctionRow
        What engines with random weights gave, without and with fusions broken: found once, not with each attempt.
    """

    options: BuildOptions
    checkpoint: Checkpoint
    contract: InputContract
    host: Host
    directory: Path
    refiner: Refiner | None
    report: Progress
    random_rows: dict[bool, tuple[JunctionRow, ...]] = field(default_factory=dict)

    def run(
        self,
        model: UNet,
        graphs: GraphSet,
        targets: Sequence[TargetRow],
        images: GateImages | None,
    ) -> Findings:
        """Build the engines of all targets, and judge them.

        Raises
        ------
        GateFailureError
            An engine fails the gate.
        ExportError
            An engine cannot be built, or is not what was asked for.
        """
        built, notes = self._build_watched(model, graphs, targets, images)
        engines, left_out = built.engines, dict(built.left_out)
        card = self._copy_card()
        if images is None:
            return Findings(graphs, engines, model_card=card, left_out=left_out, notes=notes)
        setup = GateSetup(
            name=self.options.gate_name,
            class_names=label_names(self.checkpoint)[1:],
            directory=self.directory,
            report=self.report,
            worst_cases=_PICTURES if self.options.pictures else 0,
            refiner=self.refiner,
        )
        evaluation = evaluate_engines(engines, model, images, self.contract, setup)
        kept = _keep_passing(engines, evaluation)
        failing = (engine.name for engine in engines if engine not in kept)
        left_out |= {name: explain_failure(evaluation.decisions[name], shown=1) for name in failing}
        self._write_evidence(evaluation, engines, kept, images)
        return Findings(
            graphs,
            kept,
            evaluation.decisions,
            evaluation.measurement,
            images,
            model_card=card,
            left_out=left_out,
            notes=notes,
        )

    def build_engines(
        self, targets: Sequence[TargetRow], graphs: GraphSet, directory: Path
    ) -> tuple[BuiltEngine, ...]:
        """Build the engines of all targets under a directory."""
        return self._build(targets, graphs, directory).engines

    def _build(self, targets: Sequence[TargetRow], graphs: GraphSet, directory: Path) -> _Built:
        left_out: dict[str, str] = {}
        request = BuildRequest(
            graph_fp32=graphs.fp32,
            graph=graphs.typed,
            graph_stored=graphs.stored,
            precision=self.options.precision,
            directory=directory,
            layer_types=graphs.layer_types,
            graph_int8={name: graph.path for name, graph in graphs.quantized.items()},
            graph_gated=graphs.gated,
            compute_capabilities=self.options.compute_capabilities,
            options=self.options.target_options,
            leave_out=left_out.__setitem__,
        )
        records: list[EngineRecord] = []
        sources: list[Path] = []
        for index, row in enumerate(targets):
            self.report(row.name, index, len(targets))
            graph, types = graphs.of_scheme(row.scheme)
            built = row.build(dataclasses.replace(request, graph=graph, layer_types=types))
            records.extend(built)
            # CPU targets lack float16 arithmetic, and take the graph that only stores it.
            source = graphs.stored if self._reads_stored(row) else graph
            sources.extend(row.judged_graph(record, source) for record in built)
        return _Built(name_engines(records, sources, self.host), left_out)

    def _build_watched(
        self, model: UNet, graphs: GraphSet, targets: Sequence[TargetRow], images: GateImages | None
    ) -> tuple[_Built, tuple[str, ...]]:
        """Build engines that compute what they should at every junction, if need be with fusions broken there."""
        if not self.options.compare:
            return self._build(targets, graphs, self.directory), ("Nothing was compared with PyTorch.",)
        built, rows = self._watch(model, graphs, targets, images)
        problem = explain_junction(rows)
        notes: tuple[str, ...] = ()
        if problem is not None:
            break_fusions(graphs)
            built, rows = self._watch(model, graphs, targets, images, unfused=True)
            remaining = explain_junction(rows)
            if remaining is not None:
                raise ExportError(
                    f"{problem}; with fusions broken at the junctions, {remaining}: leave the target out, or install "
                    "another version of its runtime"
                )
            notes = (f"Fusions are broken at the skip junctions, because {problem}.",)
        evidence = self.directory / EVIDENCE
        evidence.mkdir(exist_ok=True)
        document = {"schema_version": 1, "rows": rows_to_json(rows)}
        (evidence / "junctions.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        return built, notes

    def _watch(
        self,
        model: UNet,
        graphs: GraphSet,
        targets: Sequence[TargetRow],
        images: GateImages | None,
        *,
        unfused: bool = False,
    ) -> tuple[_Built, tuple[JunctionRow, ...]]:
        shutil.rmtree(self.directory / "engines", ignore_errors=True)
        built = self._build(targets, graphs, self.directory)
        self.report("junctions", 0, 1)
        request = GraphRequest(
            self.options.precision,
            self.contract,
            graphs.fp32.parent,
            images,
            self.options.seed,
            compress_weights=graphs.compressed,
        )
        inputs = SentinelInputs(model, "trained", graphs.junctions, watch_images(request), self.directory)
        rows = [row for engine in built.engines for row in watch_engine(engine, inputs)]
        if images is not None and unfused not in self.random_rows:
            found = watch_random(self.checkpoint.spec, request, targets, self.build_engines, unfused=unfused)
            self.random_rows[unfused] = found
        rows.extend(self.random_rows.get(unfused, ()))
        return built, tuple(rows)

    def _reads_stored(self, row: TargetRow) -> bool:
        return row.scheme == "cpu" and self.options.precision is not Precision.INT8

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
        write_gate_report(self.directory / EVIDENCE, evidence)


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
            failing = tuple(dict.fromkeys(engine.record.target for engine in alternatives))
            raise GateFailureError("; ".join(reasons) + ": keep a wider precision, or choose another gate", failing)
        kept.extend(sorted(passing, key=lambda engine: evaluation.measurement.median_call_ms(engine.name)))
    if not kept:
        raise ExportError("no engine was built")
    return tuple(kept)
