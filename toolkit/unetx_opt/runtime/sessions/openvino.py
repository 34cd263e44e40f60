"""OpenVINO engines on the CPU: an IR file pair, compiled when it is opened."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import EngineError
from unetx_opt.lifetime import Closing
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.base import INPUT_NAME, OpenRequest, OtherArithmeticError
from unetx_opt.runtime.sessions.integers import why_not_int8
from unetx_opt.specs import EngineRecord, Host

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DEVICE",
    "INFERENCE_PRECISIONS",
    "ExecutedLayer",
    "OpenVINOSession",
    "arithmetic_dtype",
    "compile_settings",
    "open_openvino",
    "read_layers",
    "why_not_openvino_cpu",
]

DEVICE: Final = "CPU"

#: Precision hint -> the CPU flags of which one gives that arithmetic ("bf16" and "fp16" are what Arm's Linux and
#: `probe_host` without ``/proc/cpuinfo`` say); empty: every CPU has it.
INFERENCE_PRECISIONS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "f32": frozenset(),
        "bf16": frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"}),
        "f16": frozenset({"avx512_fp16", "amx_fp16", "fp16", "asimdhp"}),
    }
)

#: OpenVINO's element type -> ONNX name. Both 8-bit types are one arithmetic: the sign is the activation's.
_DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "int8"}
)

# What OpenVINO adds to a name: where it takes the bias of a convolution, or the scale of an 8-bit one, out of it.
_SUFFIXES: Final = re.compile(r"/WithoutBiases$|_original$")

#: Executed layers that do the arithmetic; all others move, scale or compare data.
_ARITHMETIC: Final = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})


@dataclass(frozen=True, slots=True)
class ExecutedLayer:
    """A layer that a compiled model executes.

    Attributes
    ----------
    kind : str
        OpenVINO's word for it: "Convolution", "Reorder", ...
    names : tuple of str
        Operations of the graph that it stands for; empty for one that the plugin put in between.
    dtype : str
        ONNX name of the type that it computes in.
    """

    kind: str
    names: tuple[str, ...]
    dtype: str

    @property
    def is_arithmetic(self) -> bool:
        """Whether it is a convolution or a matrix product."""
        return self.kind in _ARITHMETIC


def why_not_openvino_cpu(host: Host, record: EngineRecord | None = None) -> str | None:
    """Say why an OpenVINO engine cannot run on a machine."""
    if "openvino" not in host.packages:
        return "the package openvino is not installed: run pip install 'unetx-opt[cpu]'"
    hint = "f32" if record is None else record.settings.get("inference_precision", "f32")
    if hint not in INFERENCE_PRECISIONS:
        return f"its precision {hint!r} is unknown, expected one of {', '.join(INFERENCE_PRECISIONS)}"
    needed = INFERENCE_PRECISIONS[hint]
    # Unknown features are no reason: opening the engine reads its real precision back and refuses another one.
    if needed and host.cpu_features and not needed & host.cpu_features:
        return f"it was measured with {hint} arithmetic, which this CPU lacks: rebuild it on such a machine"
    return why_not_int8(host, record)


def open_openvino(request: OpenRequest) -> OpenVINOSession:
    """Compile an IR from its verified bytes.

    Parameters
    ----------
    request : OpenRequest
        A record whose files are the ``.xml`` and the ``.bin``.

    Raises
    ------
    EngineError
        The IR cannot be read or compiled.
    OtherArithmeticError
        It computes in another type than its record says: its accuracy was measured in that type only.
    """
    record = request.record
    if len(record.files) != 2:
        raise EngineError(f"{record.target} has {len(record.files)} files, expected model.xml and model.bin")
    openvino = require("openvino", purpose="running an openvino-cpu engine")
    xml, weights = (request.read(name) for name in record.files)
    try:
        core = openvino.Core()
        model = core.read_model(model=xml, weights=weights)
        compiled = core.compile_model(model, DEVICE, compile_settings(record.settings, request.threads))
    except Exception as error:  # OpenVINO raises RuntimeError, ValueError and types of its own
        raise EngineError(f"OpenVINO cannot load {record.files[0]}: {_first_line(error)}") from error
    dtype = arithmetic_dtype(read_layers(compiled))
    if dtype != record.compute_dtype:
        raise OtherArithmeticError(
            f"{record.target} computes {dtype} on this machine, its accuracy was measured in "
            f"{record.compute_dtype}: choose another --target, or rebuild the bundle on this machine"
        )
    return OpenVINOSession(compiled, record.target, dtype)


def compile_settings(settings: Mapping[str, str], threads: int | None = None) -> dict[str, Any]:
    """Turn a record's settings into OpenVINO's properties: one image at a time, as soon as possible."""
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": settings.get("inference_precision", "f32"),
    }
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    return properties


def read_layers(compiled: Any) -> tuple[ExecutedLayer, ...]:
    """Read back what a compiled model executes, without constants, inputs and outputs.

    Parameters
    ----------
    compiled : openvino.CompiledModel
        The engine.
    """
    layers = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        keys = ("layerType", "runtimePrecision", "originalLayersNames")
        kind, precision, origin = (str(node.rt_info[key].astype(str)) for key in keys)
        if kind not in ("Const", "Input", "Output"):
            names = tuple(_SUFFIXES.sub("", name) for name in origin.split(",") if name)
            dtype = _DTYPES.get(precision.lower(), precision.lower())
            layers.append(ExecutedLayer(kind, tuple(dict.fromkeys(names)), dtype))
    return tuple(layers)


def arithmetic_dtype(layers: Iterable[ExecutedLayer]) -> str:
    """Name the type that most convolutions and matrix products compute in; float32 where there is none."""
    counts = Counter(layer.dtype for layer in layers if layer.is_arithmetic)
    return counts.most_common(1)[0][0] if counts else "float32"


class OpenVINOSession(Closing):
    """A compiled OpenVINO model with one infer request, which a lock hands to one caller at a time.

    With the latency hint one inference uses every thread, so that a second one beside it would gain nothing.
    """

    def __init__(self, compiled: Any, target: str, compute_dtype: str) -> None:
        self._request = compiled.create_infer_request()
        self._shape = compiled.input(INPUT_NAME).get_partial_shape()
        self._target = target
        self._compute_dtype = compute_dtype
        self._lock = threading.Lock()

    @property
    def target(self) -> str:
        """Name of the target."""
        return self._target

    @property
    def compute_dtype(self) -> str:
        """Type of the arithmetic, as read back from the compiled model."""
        return self._compute_dtype

    def infer(self, image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the engine; see `Session.infer`."""
        with self._lock:
            if self._request is None:
                raise EngineError(f"{self._target} is closed: open the engine again")
            try:
                results = self._request.infer({INPUT_NAME: image_nchw}, share_inputs=True, share_outputs=True)
            except Exception as error:  # see open_openvino
                raise EngineError(
                    f"{self._target} failed on an input of shape {image_nchw.shape}, expected {self._shape}: "
                    f"{_first_line(error)}"
                ) from error
            # The result lies in memory that the next inference overwrites.
            logits: NDArray[np.float32] = results[0].copy()
        return logits

    def close(self) -> None:
        """Free the compiled model."""
        with self._lock:
            self._request = None


def _first_line(error: Exception) -> str:
    # OpenVINO begins with the place in its own source that raised; the reason comes last.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
