"""A graph run on the CPU, and whether it computes what the torch module computes at every skip junction."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.onnx.graph import JUNCTION_PREFIX, OUTPUT_NAME, mark_outputs
from unetx_opt.errors import ExportError
from unetx_opt.lifetime import Closing
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx

    from unetx_opt.models.unet import UNet

__all__ = [
    "FP32_LIMIT",
    "GraphRunner",
    "JunctionParity",
    "ParityLimit",
    "compare_tensors",
    "junction_parity",
    "require_parity",
    "unmarked_parity",
]

_PROVIDER: Final = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class ParityLimit:
    """How far two tensors may be apart: ``atol + rtol * max |expected|``, one figure for the whole tensor.

    Attributes
    ----------
    atol : float
        In the unit of the tensor.
    rtol : float
        Of the tensor's largest magnitude, because cancellation makes the relative error of single small values
        meaningless.
    """

    atol: float = 1e-5
    rtol: float = 1e-4


#: Two float32 implementations differ by the order of their sums only.
FP32_LIMIT: Final = ParityLimit()


@dataclass(frozen=True, slots=True)
class JunctionParity:
    """The comparison of one tensor over all inputs.

    Attributes
    ----------
    name : str
        Tensor name in the graph.
    max_abs : float
        Largest difference; infinite where exactly one of the two is not a finite number.
    rel : float
        `max_abs` relative to the largest expected magnitude.
    limit : float
        Largest difference allowed.
    passed : bool
        Whether `max_abs` is within `limit`.
    """

    name: str
    max_abs: float
    rel: float
    limit: float
    passed: bool


class GraphRunner(Closing):
    """An ONNX Runtime CPU session on a graph; a context manager.

    It computes float32 whatever the graph says: see `emulate_fp16` for a graph that is typed float16.

    Parameters
    ----------
    graph : onnx.ModelProto or bytes
        Graph with one input.
    outputs : collection of str
        Tensors to give besides the graph's own outputs; needs a `ModelProto`.
    threads : int or None
        Threads of one operator; None for all that this process may use.
    keep_memory : bool
        Keep what one run allocated for the next. False frees every tensor as soon as its last reader is done, for
        graphs that are run once or twice.

    Raises
    ------
    ExportError
        ONNX Runtime refuses the graph, or `outputs` names a tensor that it does not have.
    """

    def __init__(
        self,
        graph: onnx.ModelProto | bytes,
        *,
        outputs: Collection[str] = (),
        threads: int | None = None,
        keep_memory: bool = True,
    ) -> None:
        ort = require("onnxruntime", purpose="running an ONNX graph")
        if outputs:
            if isinstance(graph, bytes):
                raise TypeError("outputs can be marked in a ModelProto, not in bytes")
            graph = mark_outputs(graph, outputs)
        data = graph if isinstance(graph, bytes) else graph.SerializeToString()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or _usable_cores()
        options.log_severity_level = 3
        # Waiting threads would otherwise spin on cores that other work needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = options.enable_cpu_mem_arena = keep_memory
        if not keep_memory:  # the default order runs wide before it runs deep
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        try:
            self._session: Any = ort.InferenceSession(data, options, providers=[_PROVIDER])
        except Exception as error:  # its errors share no base class
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ExportError(f"ONNX Runtime {ort.__version__} refuses the graph: {reason}") from error
        self._input: str = self._session.get_inputs()[0].name
        self.outputs: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())

    def run(self, image_nchw: np.ndarray) -> Mapping[str, np.ndarray]:
        """Compute every output, by name, for an image (N, C, H, W) float32."""
        return self.run_from({self._input: image_nchw})

    def run_from(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Compute every output of a graph with several inputs, float32 tensors by name."""
        fed = {name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()}
        values = self._session.run(self.outputs, fed)
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        """Free the session; the runner cannot be used any more."""
        self._session = None


def junction_parity(
    torch_model: UNet,
    graph: onnx.ModelProto,
    inputs: Sequence[np.ndarray],
    junctions: Sequence[str],
    limit: ParityLimit = FP32_LIMIT,
) -> tuple[JunctionParity, ...]:
    """Compare a graph with the torch module at every skip junction and at the logits.

    Parameters
    ----------
    torch_model : UNet
        The module, used in evaluation mode.
    graph : onnx.ModelProto
        Graph traced from it, or converted from such a graph; float16 nodes compute in float32 here unless it was
        passed through `emulate_fp16`.
    inputs : sequence of numpy.ndarray
        Images (N, C, H, W) float32: random ones, and real ones, which reach other activations.
    junctions : sequence of str
        Names from `TracedGraph.junctions`.
    limit : ParityLimit
        For every tensor.

    Returns
    -------
    tuple of JunctionParity
        In the order in which the tensors are computed, the logits last.
    """
    rows: dict[str, list[JunctionParity]] = {name: [] for name in (*junctions, OUTPUT_NAME)}
    with GraphRunner(graph, outputs=junctions) as runner:
        for image in inputs:
            expected, actual = _torch_tensors(torch_model, image), runner.run(image)
            for name, found in rows.items():
                found.append(compare_tensors(name, expected[name], actual[name], limit))
    return tuple(_worst(found) for found in rows.values())


def unmarked_parity(graph: onnx.ModelProto, inputs: Sequence[np.ndarray], junctions: Sequence[str]) -> JunctionParity:
    """Compare the logits of a graph as it is with those of the same graph with its junctions marked.

    Marking a tensor as an output keeps an engine from fusing across it; an engine whose fusion is wrong is right
    as long as somebody looks. Every other check marks tensors, so the graph that is shipped is compared here.

    Returns
    -------
    JunctionParity
        Named "logits"; "expected" are the marked graph's.
    """
    with GraphRunner(graph) as plain, GraphRunner(graph, outputs=junctions) as marked:
        found = [
            compare_tensors(OUTPUT_NAME, marked.run(image)[OUTPUT_NAME], plain.run(image)[OUTPUT_NAME], FP32_LIMIT)
            for image in inputs
        ]
    return _worst(found)


def require_parity(rows: Sequence[JunctionParity], what: str) -> None:
    """Raise for the first tensor that is beyond its limit.

    Parameters
    ----------
    rows : sequence of JunctionParity
        In the order of computation: the first that differs is nearest to the cause.
    what : str
        What was compared, for the message: "the ONNX graph".

    Raises
    ------
    ExportError
        A tensor differs; the message names the first.
    """
    if not rows:
        raise ExportError(f"{what} was compared at no tensor: pass at least one input and the graph's junctions")
    for row in rows:
        if not row.passed:
            raise ExportError(
                f"{what} differs from its reference first at {row.name}: by {row.max_abs:.3g}, "
                f"expected at most {row.limit:.3g}; do not use it, and report the versions that made it"
            )


def compare_tensors(name: str, expected: np.ndarray, actual: np.ndarray, limit: ParityLimit) -> JunctionParity:
    """Compare two tensors; a value that is not finite in either is a difference without bound."""
    if expected.shape != actual.shape:
        raise ExportError(f"{name} has shape {actual.shape}, expected {expected.shape}: the graph is another model's")
    finite = bool(np.isfinite(expected).all() and np.isfinite(actual).all())
    scale = float(np.abs(expected).max(initial=0.0))
    bound = limit.atol + limit.rtol * scale if np.isfinite(scale) else limit.atol
    max_abs = float(np.abs(expected.astype(np.float64) - actual).max(initial=0.0)) if finite else float("inf")
    relative = 0.0 if max_abs == 0.0 else max_abs / scale if scale else float("inf")
    return JunctionParity(name, max_abs, relative, bound, max_abs <= bound)


def _torch_tensors(torch_model: UNet, image: np.ndarray) -> dict[str, np.ndarray]:
    torch = require("torch", purpose="comparing a graph with its module")
    was_training = torch_model.training
    torch_model.eval()
    try:
        with torch.no_grad():
            logits, junctions = torch_model.forward_with_junctions(torch.tensor(image))
    finally:
        torch_model.train(was_training)
    named = {f"{JUNCTION_PREFIX}{name}": tensor for name, tensor in junctions.items()}
    return {name: tensor.numpy() for name, tensor in (named | {OUTPUT_NAME: logits}).items()}


def _worst(rows: Sequence[JunctionParity]) -> JunctionParity:
    if not rows:
        raise ExportError("nothing was compared: pass at least one input")
    return max(rows, key=lambda row: (not row.passed, row.max_abs / row.limit if row.limit else row.max_abs))


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1
