"""Where an engine's time goes, layer by layer, as its own runtime counts it: a run apart, for counting costs time."""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_bench.errors import MeasurementError
from unetx_exporters.onnxruntime.profile import Profile, end_profile, open_profiled
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.base import INPUT_NAME, OUTPUT_NAME, OpenRequest

__all__ = ["PROFILERS", "EngineProfile", "ProfiledLayer", "profile_engine"]

_WARM_UPS: Final = 3


@dataclass(frozen=True, slots=True)
class ProfiledLayer:
    """One executed layer.

    Attributes
    ----------
    name : str
        As the runtime calls it.
    kind : str
        The runtime's word for what it does.
    mean_ms : float
        Per inference.
    """

    name: str
    kind: str
    mean_ms: float


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Layers of one engine, the slowest first.

    Attributes
    ----------
    source : str
        What counted.
    inferences : int
        Over which the means are taken.
    total_ms : float
        Sum over the layers.
    whole_ms : float or None
        The runtime's own time of a whole inference, where it gives one: mean.
    layers : tuple of ProfiledLayer
        Those that took time.
    """

    source: str
    inferences: int
    total_ms: float
    whole_ms: float | None
    layers: tuple[ProfiledLayer, ...]


def profile_engine(request: OpenRequest, image_nchw: NDArray[np.float32], inferences: int = 20) -> EngineProfile:
    """Load an engine once more with its runtime's counters, and run it.

    Parameters
    ----------
    request : OpenRequest
        The engine.
    image_nchw : numpy.ndarray
        float32 (1, C, H, W).
    inferences : int
        At least 1; three more warm up.

    Raises
    ------
    MeasurementError
        This target's runtime gives no profile here.
    """
    target = request.record.target
    if target not in PROFILERS:
        raise MeasurementError(f"the runtime of {target} gives no profile, expected one of {', '.join(PROFILERS)}")
    return PROFILERS[target](request, image_nchw, inferences)


def _profile_onnxruntime(request: OpenRequest, image_nchw: NDArray[np.float32], inferences: int) -> EngineProfile:
    from unetx_opt.runtime.sessions.onnxruntime import session_options

    data = request.read(request.record.files[0])
    with tempfile.TemporaryDirectory() as folder:
        session = open_profiled(data, request.record, session_options(request.threads), Path(folder))
        for _ in range(_WARM_UPS + inferences):
            session.run([OUTPUT_NAME], {INPUT_NAME: image_nchw})
        found = end_profile(session)
    return average_onnxruntime(found, inferences)


def average_onnxruntime(found: Profile, inferences: int) -> EngineProfile:
    """Take means over the last inferences that ONNX Runtime's profiler saw.

    Parameters
    ----------
    found : Profile
        All runs.
    inferences : int
        How many to count, from the end.
    """
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in found.kernels:
        durations[kernel.name, kernel.operation].append(kernel.took_ms)
    layers = [
        ProfiledLayer(name, kind, float(np.sum(took_ms[-inferences:])) / inferences)
        for (name, kind), took_ms in durations.items()
    ]
    whole_ms = float(np.mean(found.runs_ms[-inferences:]))
    return _profile("ONNX Runtime's profiler", inferences, layers, whole_ms)


def _profile_openvino(request: OpenRequest, image_nchw: NDArray[np.float32], inferences: int) -> EngineProfile:
    from unetx_opt.runtime.sessions.openvino import DEVICE, compile_settings

    openvino = require("openvino", purpose="profiling an engine")
    core = openvino.Core()
    xml, weights = (request.read(name) for name in request.record.files)
    settings = {**compile_settings(request.record.settings, request.threads), "PERF_COUNT": True}
    infer = core.compile_model(core.read_model(model=xml, weights=weights), DEVICE, settings).create_infer_request()
    totals: dict[tuple[str, str], float] = defaultdict(float)
    for index in range(_WARM_UPS + inferences):
        infer.infer({INPUT_NAME: image_nchw}, share_inputs=True)
        if index >= _WARM_UPS:
            for row in infer.profiling_info:
                totals[row.node_name, row.exec_type] += row.real_time.total_seconds() * 1e3 / inferences
    layers = [ProfiledLayer(name, kind, took_ms) for (name, kind), took_ms in totals.items()]
    with contextlib.suppress(AttributeError):
        return _profile("OpenVINO's performance counters", inferences, layers, float(infer.latency))
    return _profile("OpenVINO's performance counters", inferences, layers, None)


def _profile_tensorrt(request: OpenRequest, image_nchw: NDArray[np.float32], inferences: int) -> EngineProfile:
    from unetx_opt.runtime.sessions.tensorrt import MODULES, open_tensorrt

    trt: Any = require(MODULES[request.record.target], purpose="profiling an engine")
    totals: dict[str, float] = defaultdict(float)

    class LayerTimes(trt.IProfiler):  # type: ignore[misc]  # its base class comes with the package
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] += ms / inferences

    with open_tensorrt(request) as session:
        for _ in range(_WARM_UPS):
            session.infer(image_nchw)
        session.report_layers_to(LayerTimes())
        for _ in range(inferences):
            session.infer(image_nchw)
    layers = [ProfiledLayer(name, "layer", took_ms) for name, took_ms in totals.items()]
    return _profile("TensorRT's profiler", inferences, layers, None)


def _profile(source: str, inferences: int, layers: list[ProfiledLayer], whole_ms: float | None) -> EngineProfile:
    taken = sorted((layer for layer in layers if layer.mean_ms > 0), key=lambda layer: -layer.mean_ms)
    return EngineProfile(source, inferences, sum(layer.mean_ms for layer in taken), whole_ms, tuple(taken))


#: Target -> what profiles its engines.
PROFILERS: Final[Mapping[str, Callable[[OpenRequest, NDArray[np.float32], int], EngineProfile]]] = MappingProxyType(
    {
        "openvino-cpu": _profile_openvino,
        "onnxruntime-cpu": _profile_onnxruntime,
        "onnxruntime-cuda": _profile_onnxruntime,
        "tensorrt": _profile_tensorrt,
        "tensorrt-rtx": _profile_tensorrt,
    }
)
