"""Engines before the gate: each one runs where this machine can run it, its typed graph where it cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetx_exporters.gate import DriftMeasurement, DriftOptions, Engine, measure_drift
from unetx_exporters.gate_images import GateImages
from unetx_opt.errors import EngineError, ExportError, MissingPackageError
from unetx_opt.imaging.refinement import decide_labels
from unetx_opt.metrics.gates import GateDecision, decide_gate
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.base import OUTPUT_NAME, OpenRequest
from unetx_opt.runtime.sessions.table import SESSIONS
from unetx_opt.specs import EngineRecord, Host, InputContract

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unetx_opt.imaging.refinement import Refiner
    from unetx_opt.models.unet import UNet

__all__ = [
    "BuiltEngine",
    "Evaluation",
    "GateSetup",
    "evaluate_engines",
    "name_engines",
    "open_engine",
    "open_graph",
    "torch_reference",
]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine in the staging directory.

    Attributes
    ----------
    name : str
        Unique among the engines of a build: the target and what tells it from others of that target.
    record : EngineRecord
        As its builder left it.
    graph : pathlib.Path
        The ONNX file that it was built from.
    why_graph : str or None
        Why it cannot run here, so that its graph is run in its place; None where it can.
    """

    name: str
    record: EngineRecord
    graph: Path
    why_graph: str | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the gate found.

    Attributes
    ----------
    measurement : DriftMeasurement
        Every engine, or graph in its place, on every image.
    decisions : mapping of str to GateDecision
        By the engine's name.
    """

    measurement: DriftMeasurement
    decisions: Mapping[str, GateDecision]


@dataclass(frozen=True, slots=True)
class GateSetup:
    """How a gate is run.

    Attributes
    ----------
    name : str
        A key of the table of gates.
    class_names : tuple of str
        Foreground classes.
    directory : pathlib.Path
        Root of the staged bundle.
    report : callable
        Progress: stage, done, total.
    worst_cases : int
        How many images of each engine are kept for pictures.
    refiner : Refiner or None
        Step after the network, of the reference as of the engines: the masks that are compared are those behind it.
    """

    name: str
    class_names: tuple[str, ...]
    directory: Path
    report: Progress
    worst_cases: int = 4
    refiner: Refiner | None = None


def name_engines(records: Sequence[EngineRecord], graphs: Sequence[Path], host: Host) -> tuple[BuiltEngine, ...]:
    """Give each engine of a build a name, and find out whether it can run on this machine.

    Parameters
    ----------
    records : sequence of EngineRecord
        The engines.
    graphs : sequence of pathlib.Path
        The graph that each was built from, to run in place of those that cannot.
    host : Host
        This machine.
    """
    return tuple(
        BuiltEngine(_name(record, records), record, graph, SESSIONS[record.target].why_not(host, record))
        for record, graph in zip(records, graphs, strict=True)
    )


def _name(record: EngineRecord, records: Sequence[EngineRecord]) -> str:
    siblings = [other for other in records if other.target == record.target]
    if len(siblings) == 1:
        return record.target
    if len({other.compute_capabilities for other in siblings}) > 1:
        return " ".join((record.target, *(f"sm{c.replace('.', '')}" for c in record.compute_capabilities)))
    differing = (
        value
        for key, value in sorted(record.settings.items())
        if any(other.settings.get(key) != value for other in siblings)
    )
    return " ".join((record.target, *differing))


def evaluate_engines(
    engines: Sequence[BuiltEngine],
    model: UNet,
    images: GateImages,
    contract: InputContract,
    gate: GateSetup,
) -> Evaluation:
    """Compare every engine with the PyTorch model, image by image, and decide the gate.

    Parameters
    ----------
    engines : sequence of BuiltEngine
        Their files lie under ``gate.directory``.
    model : UNet
        The reference, in evaluation mode.
    images : GateImages
        What the gate is decided on.
    contract : InputContract
        How images are brought to the engines.
    gate : GateSetup
        Name of the gate, class names, directory, progress.

    Raises
    ------
    ExportError
        An engine cannot be opened on the machine that built it.
    GateError
        There are too few images to decide.
    """
    done = 0

    def progress(image_name: str) -> None:
        del image_name
        nonlocal done
        done += 1
        gate.report("gate", done, len(images))

    options = DriftOptions(
        class_names=gate.class_names,
        worst_cases=gate.worst_cases,
        progress=progress,
        decide_pixels=functools.partial(decide_labels, refiner=gate.refiner),
    )
    with contextlib.ExitStack() as stack:
        candidates = {name: stack.enter_context(opened) for name, opened in _open_all(engines, gate.directory)}
        measurement = measure_drift(torch_reference(model), candidates, images, contract, options)
    decisions = {engine.name: decide_gate(gate.name, measurement.drifts[_runner_name(engine)]) for engine in engines}
    return Evaluation(_under_engine_names(measurement, engines), decisions)


def torch_reference(model: UNet) -> Engine:
    """Wrap a PyTorch model in float32 as something that a gate can call."""
    torch = require("torch", purpose="running the reference")

    def run(image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.from_numpy(image_nchw)).numpy()
        return logits

    return run


def _runner_name(engine: BuiltEngine) -> str:
    """Name what runs for an engine: those that cannot run here share one run of their graph."""
    return engine.name if engine.why_graph is None else f"graph:{engine.graph}"


def _open_all(
    engines: Sequence[BuiltEngine], directory: Path
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Engine]]]:
    opened: set[str] = set()
    for engine in engines:
        name = _runner_name(engine)
        if name not in opened:
            opened.add(name)
            yield name, open_graph(engine.graph) if engine.why_graph else open_engine(engine, directory)


@contextlib.contextmanager
def open_engine(engine: BuiltEngine, directory: Path) -> Iterator[Engine]:
    """Open an engine whose files lie under a directory, on the machine that built it."""
    request = OpenRequest(engine.record, lambda name: (directory / name).read_bytes())
    try:
        session = SESSIONS[engine.record.target].open(request)
    except (EngineError, MissingPackageError) as error:
        raise ExportError(f"engine {engine.name} was built but cannot be opened here: {error}") from error
    with session:
        yield session.infer


@contextlib.contextmanager
def open_graph(graph: Path) -> Iterator[Engine]:
    """Run a typed graph under ONNX Runtime on the CPU, rounded as `emulate_fp16` says."""
    from unetx_exporters.onnx.precision import emulate_fp16
    from unetx_exporters.onnx.verify import GraphRunner

    onnx = require("onnx", purpose="running a graph in place of its engine")
    with GraphRunner(emulate_fp16(onnx.load(graph))) as runner:

        def run(image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = runner.run(image_nchw)[OUTPUT_NAME]
            return logits

        yield run


def _under_engine_names(measurement: DriftMeasurement, engines: Sequence[BuiltEngine]) -> DriftMeasurement:
    def renamed(found: Mapping[str, Any]) -> dict[str, Any]:
        return {engine.name: found[_runner_name(engine)] for engine in engines}

    return dataclasses.replace(
        measurement,
        drifts=renamed(measurement.drifts),
        call_ms=renamed(measurement.call_ms),
        worst_cases=renamed(measurement.worst_cases),
    )
