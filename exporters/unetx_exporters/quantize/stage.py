"""The stage of a build between the float32 graph and the 8-bit graphs: ranges, search, and the graphs found."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.gate import Engine
from unetx_exporters.quantize.candidates import Plan, Scheme, get_scheme, list_groups
from unetx_exporters.quantize.fold import fold_factors
from unetx_exporters.quantize.pareto import choose_plans, pareto_points
from unetx_exporters.quantize.request import GateTask, QuantizedGraph, QuantizeRequest
from unetx_exporters.quantize.search import (
    SearchOptions,
    SearchProblem,
    SearchResult,
    search_plan,
)
from unetx_exporters.quantize.sensitivity import rank_groups
from unetx_exporters.quantize.state import SearchState
from unetx_exporters.quantize.trials import StoredReference, Trials, TrialSetup
from unetx_opt import __version__
from unetx_opt.errors import GateError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

    from unetx_exporters.quantize.calibrate import Calibration
    from unetx_exporters.quantize.prepare import PreparedGraph

__all__ = ["Quantization", "open_quantized"]

_PARETO_ROUNDS: Final = 3

Progress = Callable[[str, int, int], None]


class Quantization:
    """Calibrated ranges of one float32 graph, and the graphs that searches make from them.

    Parameters
    ----------
    request : QuantizeRequest
        What is asked for.
    report : callable
        Progress: stage, done, total.

    Raises
    ------
    UnetxError
        The graph cannot be calibrated.
    """

    def __init__(self, request: QuantizeRequest, report: Progress) -> None:
        self._request = request
        self._report = report
        self._model: ModelProto = require("onnx", purpose="quantizing a graph").load(request.graph)
        self._nodes = {node.name for node in fold_factors(self._model).graph.node}
        self._groups = {name: list_groups(self._model, get_scheme(name)) for name in request.schemes}
        self._calibration = _calibrate(request, report)
        self._prepared = {name: self._prepare(name) for name in request.schemes}
        self._trials = {} if request.gate is None else self._make_trials(request.gate)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the evidence must know about the calibration, as sentences."""
        return self._calibration.warnings

    def preparation(self, scheme: str) -> dict[str, Any]:
        """Describe the ranges and what was done to the graph before, in plain JSON types."""
        prepared = self._prepared[scheme]
        return {
            "steps": [step.to_json() for step in prepared.steps],
            "ranges": {name: found.to_json() for name, found in prepared.ranges.items()},
        }

    def graphs(self) -> dict[str, QuantizedGraph]:
        """Search each scheme's graph.

        Returns
        -------
        dict of str to QuantizedGraph
            By scheme.

        Raises
        ------
        GateError
            No plan of a scheme keeps the gate with enough layers in int8, or none was found within the budget.
        """
        started = time.monotonic()
        found: dict[str, QuantizedGraph] = {}
        for position, name in enumerate(self._request.schemes):
            left_s = self._request.budget_s - (time.monotonic() - started)
            found[name] = self._search(get_scheme(name), left_s / (len(self._request.schemes) - position))
        return found

    def widen(self, graph: QuantizedGraph) -> QuantizedGraph | None:
        """Raise the most sensitive layer that is still int8: an engine of this graph failed where the graph passed.

        Returns
        -------
        QuantizedGraph or None
            None where too little would be left in int8, or there was no search.
        """
        if graph.result is None:
            return None
        scheme = get_scheme(graph.scheme)
        for index in rank_groups(graph.result.sensitivities):
            wider = graph.plan.changed(index, scheme.types[-1])
            if graph.plan.types[index] == "int8" and wider.int8_share(graph.groups) >= self._request.minimum_share:
                return dataclasses.replace(graph, plan=wider, path=self._write(scheme, wider))
        return None

    def _search(self, scheme: Scheme, seconds: float) -> QuantizedGraph:
        groups = self._groups[scheme.name]
        plan = Plan.narrowest(groups)
        if self._request.gate is None:
            return QuantizedGraph(scheme.name, self._write(scheme, plan), plan, groups)
        trials = self._trials[scheme.name]
        deadline = time.monotonic() + seconds

        def report(stage: str, done: int, total: int) -> None:
            self._report(f"{stage} {scheme.name}", done, total)

        options = SearchOptions(lambda: time.monotonic() > deadline, self._request.seed, report=report)
        result = search_plan(SearchProblem(groups, scheme, trials, self._request.minimum_share), options)
        if not result.passed:
            raise self._failure(scheme, result)
        report("pareto", 0, 1)
        plans = choose_plans(result, groups)
        measured = trials.measure_together(plans, _PARETO_ROUNDS)
        points = pareto_points(plans, measured, groups, scheme, result.plan)
        path = self._write(scheme, result.plan)
        return QuantizedGraph(scheme.name, path, result.plan, groups, result, points)

    def _failure(self, scheme: Scheme, result: SearchResult) -> GateError:
        explanation = self._trials[scheme.name].gate(result.plan, complete=True).explanation
        worst = result.sensitivities[rank_groups(result.sensitivities)[0]]
        share = result.plan.int8_share(self._groups[scheme.name])
        advice = (
            "choose fp16, another gate, or train the model again"
            if result.finished
            else "the budget is spent: run the same command again to go on, or raise --budget"
        )
        return GateError(
            f"no {scheme.name} graph with at least {self._request.minimum_share:.0%} of its operations in int8 was "
            f"found that keeps the gate; with {share:.0%} in int8 {explanation}; the most sensitive layer is "
            f"{worst.group} (alone in int8 it takes {worst.alone.disagreement:.3g} off the Dice coefficient): "
            f"{advice}"
        )

    def _make_trials(self, gate: GateTask) -> dict[str, Trials]:
        request = self._request
        reference = StoredReference(gate.reference, request.directory / "reference")
        identity = _fingerprint(request, gate)
        made = {}
        for name in request.schemes:
            setup = TrialSetup(
                groups=self._groups[name],
                quantize=functools.partial(self._quantize, name),
                open_graph=_OPENERS[name],
                reference=reference,
                images=gate.images,
                contract=request.contract,
                gate=gate.name,
                drift=gate.drift,
            )
            path = None if request.state is None else request.state / f"{name}.json"
            made[name] = Trials(setup, SearchState(path, f"{identity}:{name}"))
        return made

    def _quantize(self, scheme: str, types: Mapping[str, str]) -> ModelProto:
        from unetx_exporters.quantize.insert import QuantizePlan

        # A layer that float16 cannot hold may still be int8, but where it is not it is float32.
        base = {name: dtype for name, dtype in self._request.base_types.items() if name in self._nodes}
        planned = {name: base.get(name, dtype) if dtype == "float16" else dtype for name, dtype in types.items()}
        return self._prepared[scheme].quantize(QuantizePlan(scheme, {**base, **planned}))

    def _prepare(self, scheme: str) -> PreparedGraph:
        from unetx_exporters.quantize.prepare import prepare_graph

        self._report(f"ranges {scheme}", 0, 1)
        return prepare_graph(self._model, self._calibration, scheme)

    def _write(self, scheme: Scheme, plan: Plan) -> Path:
        path = self._request.directory / f"int8-{scheme.name}.onnx"
        model = self._quantize(scheme.name, plan.layer_types(self._groups[scheme.name]))
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path


@contextlib.contextmanager
def open_quantized(model: ModelProto) -> Iterator[Engine]:
    """Run an 8-bit graph of the scheme "cpu" as the engine of onnxruntime-cpu runs it."""
    from unetx_exporters.onnxruntime.integer_form import integer_form

    with _open(integer_form(model)) as engine:
        yield engine


@contextlib.contextmanager
def _open_emulated(model: ModelProto) -> Iterator[Engine]:
    """Run an 8-bit graph with float16 layers on the CPU, rounded as `emulate_fp16` says."""
    from unetx_exporters.onnx.precision import emulate_fp16

    with _open(emulate_fp16(model)) as engine:
        yield engine


@contextlib.contextmanager
def _open(model: ModelProto) -> Iterator[Engine]:
    from unetx_exporters.onnx.graph import OUTPUT_NAME
    from unetx_exporters.onnx.verify import GraphRunner

    with GraphRunner(model) as runner:

        def run(image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = runner.run(image_nchw)[OUTPUT_NAME]
            return logits

        yield run


#: Scheme -> how its graphs are run on the machine of the build.
_OPENERS: Final = MappingProxyType({"cpu": open_quantized, "tensorrt": _open_emulated})


def _calibrate(request: QuantizeRequest, report: Progress) -> Calibration:
    from unetx_exporters.quantize.calibrate import CalibrationOptions, calibrate_ranges

    def images() -> Iterator[NDArray[np.float32]]:
        for done, image in enumerate(request.calibration.prepared(request.contract)):
            report("calibration", done, len(request.calibration))
            yield image

    options = CalibrationOptions() if request.measured else CalibrationOptions(probes=0)
    return calibrate_ranges(request.graph, images(), options)


def _fingerprint(request: QuantizeRequest, gate: GateTask) -> str:
    """Identity of everything that a measurement of the search depends on."""
    ort = require("onnxruntime", purpose="running a graph")
    parts: Sequence[str] = (
        hashlib.sha256(request.graph.read_bytes()).hexdigest(),
        *request.calibration.sha256,
        gate.name,
        *(image.sha256 for image in gate.images),
        repr(request.contract),
        f"unetx-opt {__version__}, numpy {np.__version__}, onnxruntime {ort.__version__}",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
