"""Engines watched at every skip junction: against PyTorch, and against their own graph run without optimisation.

A fused convolution that reads a wrong view of a concatenation gives numbers, no error. It shows where the skip
connections join: there an engine is compared tensor by tensor, once with the junctions marked as outputs and once,
at the logits, as it is shipped, since marking a tensor keeps an engine from fusing across it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.evaluation import BuiltEngine
from unetx_exporters.junction_limits import LIMITS, follows_graph, is_exact, limit_of
from unetx_exporters.onnx.graph import JUNCTION_PREFIX, OUTPUT_NAME, mark_outputs
from unetx_exporters.tensor_error import fit_channels, relative_error
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.base import INPUT_NAME, OpenRequest
from unetx_opt.runtime.sessions.table import SESSIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unetx_opt.models.unet import UNet

__all__ = [
    "JunctionRow",
    "SentinelInputs",
    "explain_junction",
    "rows_to_json",
    "watch_engine",
]

Tensors = Mapping[str, "NDArray[np.float32]"]
Probe = Callable[["NDArray[np.float32]"], Tensors]


@dataclass(frozen=True, slots=True)
class JunctionRow:
    """One tensor of one engine.

    Attributes
    ----------
    engine, weights : str
        Which engine, and of which weights: "trained" or "random".
    against : str
        "PyTorch" or "ONNX Runtime".
    tensor : str
        Name in the graph; "logits as shipped" is the engine without marked outputs.
    error : float
        Largest `relative_error` over the images.
    limit : float
        See `LIMITS`.
    decisive : bool
        Whether to be beyond the limit is a fault. Where the engine rounds otherwise than what it is compared with,
        it may be the rounding of a network that suffers from it: what that does to masks the gate decides.
    """

    engine: str
    weights: str
    against: str
    tensor: str
    error: float
    limit: float
    decisive: bool = True

    @property
    def passed(self) -> bool:
        """Whether the tensor is within its limit."""
        return self.error <= self.limit


@dataclass(frozen=True, slots=True)
class SentinelInputs:
    """What engines are watched with.

    Attributes
    ----------
    model : UNet
        The module that the engines come from.
    weights : str
        "trained" or "random".
    junctions : tuple of str
        Tensor names, in the order of computation.
    images : sequence of numpy.ndarray
        (1, C, H, W) float32: first one of noise, then radiographs or phantoms.
    directory : pathlib.Path
        Root of the engines' files.
    """

    model: UNet
    weights: str
    junctions: tuple[str, ...]
    images: Sequence[NDArray[np.float32]]
    directory: Path


def watch_engine(engine: BuiltEngine, inputs: SentinelInputs) -> tuple[JunctionRow, ...]:
    """Compare an engine that can run here with PyTorch and with its own unoptimised graph.

    Parameters
    ----------
    engine : BuiltEngine
        One of a target with a row in the table of probes.
    inputs : SentinelInputs
        Module, junctions and images.

    Returns
    -------
    tuple of JunctionRow
        In the order of computation, the engine as it is shipped last; empty for an engine that cannot run here or
        whose target gives no access to its tensors.
    """
    make_probe = _PROBES.get(engine.record.target)
    if engine.why_graph is not None or make_probe is None:
        return ()
    limit = limit_of(engine.record)
    narrow = limit is LIMITS["int8"]
    names = (*inputs.junctions, OUTPUT_NAME)
    errors: dict[tuple[str, str], float] = {}

    def note(against: str, tensor: str, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> None:
        found = relative_error(expected, actual)
        errors[tensor, against] = max(errors.get((tensor, against), 0.0), found)

    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(make_probe(engine, inputs))
        plain = stack.enter_context(_unoptimised(engine.graph, inputs.junctions))
        shipped = stack.enter_context(_shipped(engine, inputs.directory))
        for index, image in enumerate(inputs.images):
            actual, expected = dict(probe(image)), dict(plain(image))
            actual[_SHIPPED], expected[_SHIPPED] = shipped(image), expected[OUTPUT_NAME]
            for name in (*names, _SHIPPED):
                note("ONNX Runtime", name, expected[name], actual[name])
            if narrow and index == 0:
                continue  # 8-bit ranges are those of radiographs: noise leaves them, and is cut off
            module = dict(_torch_tensors(inputs.model, image))
            module[_SHIPPED] = module[OUTPUT_NAME]
            for name in (*names, _SHIPPED):
                scaled = narrow and name in inputs.junctions
                note(
                    "PyTorch",
                    name,
                    module[name],
                    fit_channels(actual[name], module[name]) if scaled else actual[name],
                )
    limits = {
        "PyTorch": (limit.torch, is_exact(engine.record)),
        "ONNX Runtime": (limit.graph, follows_graph(engine.record)),
    }
    return tuple(
        JunctionRow(engine.name, inputs.weights, against, tensor, error, *limits[against])
        for tensor in (*names, _SHIPPED)
        for against in limits
        if (error := errors.get((tensor, against))) is not None
    )


def explain_junction(rows: Sequence[JunctionRow]) -> str | None:
    """Name the first tensor that is at fault, nearest to the cause; None where there is none."""
    for row in rows:
        if row.decisive and not row.passed:
            return (
                f"{row.engine} with {row.weights} weights differs from {row.against} first at {row.tensor}: "
                f"relative error {row.error:.3g}, expected at most {row.limit:g}"
            )
    return None


_SHIPPED: Final = "logits as shipped"


@contextlib.contextmanager
def _probe_onnxruntime(engine: BuiltEngine, inputs: SentinelInputs) -> Iterator[Probe]:
    from unetx_opt.runtime.sessions.onnxruntime import provider_list, session_options

    ort = require("onnxruntime", purpose="watching an engine")
    onnx = require("onnx", purpose="watching an engine")
    marked = mark_outputs(onnx.load(inputs.directory / engine.record.files[0]), inputs.junctions)
    yield _run_session(
        ort.InferenceSession(
            marked.SerializeToString(),
            session_options(),
            providers=provider_list(engine.record.target, engine.record.compute_dtype),
        )
    )


@contextlib.contextmanager
def _probe_openvino(engine: BuiltEngine, inputs: SentinelInputs) -> Iterator[Probe]:
    from unetx_opt.runtime.sessions.openvino import DEVICE, compile_settings

    openvino = require("openvino", purpose="watching an engine")
    core = openvino.Core()
    xml, weights = ((inputs.directory / name).read_bytes() for name in engine.record.files)
    model = core.read_model(model=xml, weights=weights)
    model.add_outputs(list(inputs.junctions))
    compiled = core.compile_model(model, DEVICE, compile_settings(engine.record.settings))
    request = compiled.create_infer_request()

    def run(image_nchw: NDArray[np.float32]) -> Tensors:
        results = request.infer({INPUT_NAME: image_nchw})
        return {name: results[compiled.output(name)].copy() for name in (*inputs.junctions, OUTPUT_NAME)}

    yield run


#: Target -> a function of (engine, inputs) that opens it with its junctions as further outputs.
_PROBES: Final[Mapping[str, Callable[[BuiltEngine, SentinelInputs], Any]]] = MappingProxyType(
    {
        "onnxruntime-cpu": _probe_onnxruntime,
        "onnxruntime-cuda": _probe_onnxruntime,
        "openvino-cpu": _probe_openvino,
    }
)


@contextlib.contextmanager
def _unoptimised(graph: Path, junctions: Sequence[str]) -> Iterator[Probe]:
    """Run a graph node by node, as its definition says."""
    from unetx_exporters.onnx.precision import emulate_fp16

    ort = require("onnxruntime", purpose="watching an engine")
    onnx = require("onnx", purpose="watching an engine")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    marked = mark_outputs(emulate_fp16(onnx.load(graph)), junctions)
    yield _run_session(ort.InferenceSession(marked.SerializeToString(), options, providers=["CPUExecutionProvider"]))


@contextlib.contextmanager
def _shipped(engine: BuiltEngine, directory: Path) -> Iterator[Callable[[NDArray[np.float32]], NDArray[np.float32]]]:
    request = OpenRequest(engine.record, lambda name: (directory / name).read_bytes())
    with SESSIONS[engine.record.target].open(request) as session:
        yield session.infer


def _run_session(session: Any) -> Probe:
    names = [output.name for output in session.get_outputs()]

    def run(image_nchw: NDArray[np.float32]) -> Tensors:
        values = session.run(names, {INPUT_NAME: image_nchw})
        return {name: np.asarray(value, np.float32) for name, value in zip(names, values, strict=True)}

    return run


def _torch_tensors(model: UNet, image: NDArray[np.float32]) -> Tensors:
    torch = require("torch", purpose="watching an engine")
    with torch.inference_mode():
        logits, junctions = model.forward_with_junctions(torch.tensor(image))
    named = {f"{JUNCTION_PREFIX}{name}": tensor.numpy() for name, tensor in junctions.items()}
    return {**named, OUTPUT_NAME: logits.numpy()}


def rows_to_json(rows: Sequence[JunctionRow]) -> list[dict[str, Any]]:
    """Turn rows into plain JSON types; an infinite error becomes null."""
    return [
        {**dataclasses.asdict(row), "error": row.error if np.isfinite(row.error) else None, "passed": row.passed}
        for row in rows
    ]
