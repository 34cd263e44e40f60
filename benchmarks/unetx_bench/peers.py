"""What a user would run instead of a bundle: PyTorch as it is and tuned, plain ONNX Runtime, OpenVINO's defaults.
A peer is a row. Each takes the same FP32 checkpoint, and gives float32 logits in host memory for a float32 image in
host memory, as an engine's session does: copies to a GPU and back are inside its clock.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_bench.errors import MeasurementError
from unetx_opt.optional import find, require
from unetx_opt.runtime.sessions.base import INPUT_NAME, OUTPUT_NAME
from unetx_opt.runtime.sessions.onnxruntime import preload_cuda

if TYPE_CHECKING:
    from unetx_opt.models.unet import UNet

__all__ = ["PEERS", "Infer", "Peer", "PeerModel", "open_peer"]

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class PeerModel:
    """The checkpoint that peers run.

    Attributes
    ----------
    model : UNet
        In evaluation mode on the CPU. Peers copy it.
    graph_fp32 : pathlib.Path
        Its float32 ONNX graph.
    image_nchw : numpy.ndarray
        float32 (N, C, H, W): what peers that record or compile for a shape are opened with.
    threads : int or None
        CPU threads of one inference; None leaves the peer's default.
    """

    model: UNet
    graph_fp32: Path
    image_nchw: NDArray[np.float32]
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """One row.

    Attributes
    ----------
    name : str
        Key of `PEERS`.
    describes : str
        What it is, for the report.
    why_not : callable
        No arguments; gives the reason why it cannot run here, or None.
    open : callable
        Takes a `PeerModel`; a context manager of `Infer`.
    """

    name: str
    describes: str
    why_not: Callable[[], str | None]
    open: Callable[[PeerModel], contextlib.AbstractContextManager[Infer]]


def open_peer(name: str, model: PeerModel) -> contextlib.AbstractContextManager[Infer]:
    """Open a peer that can run here.

    Raises
    ------
    MeasurementError
        There is no such peer, or it cannot run on this machine.
    """
    if name not in PEERS:
        raise MeasurementError(f"unknown peer {name!r}, expected one of {', '.join(PEERS)}")
    reason = PEERS[name].why_not()
    if reason is not None:
        raise MeasurementError(f"the peer {name} cannot run here: {reason}")
    return PEERS[name].open(model)


@dataclass(frozen=True, slots=True)
class _Torch:
    """How PyTorch runs a peer."""

    device: str = "cpu"
    channels_last: bool = False
    autocast: str | None = None
    half: bool = False
    compiled: bool = False
    recorded: bool = False


def _torch_peer(how: _Torch) -> Callable[[PeerModel], contextlib.AbstractContextManager[Infer]]:
    return lambda given: _open_torch(given, how)


@contextlib.contextmanager
def _open_torch(given: PeerModel, how: _Torch) -> Iterator[Infer]:
    import copy

    torch = require("torch", purpose="a PyTorch peer")
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    model: Any = copy.deepcopy(given.model)
    model = model.eval().to(how.device, memory_format=layout)
    model = model.half() if how.half else model
    model = torch.compile(model) if how.compiled else model
    before = torch.get_num_threads()
    torch.set_num_threads(given.threads or before)
    dtype = torch.float16 if how.half else torch.float32

    def compute(image: Any) -> Any:
        if how.autocast is None:
            return model(image)
        with torch.autocast(how.device, dtype=getattr(torch, how.autocast)):
            return model(image)

    try:
        with torch.inference_mode():
            run = _recorded(torch, compute, given, dtype) if how.recorded else compute

        def infer(image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                image = torch.from_numpy(image_nchw).to(how.device, dtype).contiguous(memory_format=layout)
                logits: NDArray[np.float32] = run(image).float().cpu().contiguous().numpy()
            return logits

        yield infer
    finally:
        torch.set_num_threads(before)
        if how.compiled:
            torch.compiler.reset()


def _recorded(torch: Any, compute: Callable[[Any], Any], given: PeerModel, dtype: Any) -> Callable[[Any], Any]:
    """Record the kernels of one inference as a CUDA graph, on memory of its own, and replay it."""
    held = torch.from_numpy(given.image_nchw).to("cuda", dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            compute(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute(held)

    def replay(image: Any) -> Any:
        held.copy_(image)
        graph.replay()
        return result

    return replay


@contextlib.contextmanager
def _open_onnxruntime(given: PeerModel, provider: str = "CPUExecutionProvider") -> Iterator[Infer]:
    onnxruntime = require("onnxruntime", purpose="the peer plain ONNX Runtime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if given.threads is not None:
        options.intra_op_num_threads = given.threads
    if provider == "CUDAExecutionProvider":
        preload_cuda(onnxruntime)
    session = onnxruntime.InferenceSession(str(given.graph_fp32), options, providers=[provider])
    if provider not in session.get_providers():
        raise MeasurementError(f"ONNX Runtime runs on {', '.join(session.get_providers())}, asked for {provider}")

    def infer(image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: image_nchw})[0]
        return logits

    yield infer


@contextlib.contextmanager
def _open_openvino(given: PeerModel, precision: str | None = None) -> Iterator[Infer]:
    openvino = require("openvino", purpose="the peer OpenVINO")
    settings: dict[str, Any] = {} if given.threads is None else {"INFERENCE_NUM_THREADS": given.threads}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    request = openvino.Core().compile_model(str(given.graph_fp32), "CPU", settings).create_infer_request()

    def infer(image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = request.infer({INPUT_NAME: image_nchw})[OUTPUT_NAME].copy()
        return logits

    yield infer


def _needs(module: str, extra: str) -> Callable[[], str | None]:
    def why_not() -> str | None:
        if find(module):
            return None
        return f"the package {module} is not installed: run pip install 'unetx-opt[{extra}]'"

    return why_not


_needs_torch: Final = _needs("torch", "export")


def _why_not_compile() -> str | None:
    reason = _needs_torch()
    if reason is None and platform.system() != "Windows" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "torch.compile needs a C++ compiler on the CPU, and there is none: install g++"
    return reason


def _why_not_cuda() -> str | None:
    reason = _needs_torch()
    if reason is None and not require("torch", purpose="a PyTorch peer").cuda.is_available():
        return "PyTorch sees no CUDA device: it needs an NVIDIA GPU, its driver, and a build of PyTorch for CUDA"
    return reason


def _why_not_onnxruntime_cuda() -> str | None:
    reason = _needs("onnxruntime", "gpu")()
    if reason is not None:
        return reason
    offered = require("onnxruntime", purpose="the peer plain ONNX Runtime").get_available_providers()
    return None if "CUDAExecutionProvider" in offered else "the installed onnxruntime has no CUDA provider"


#: Peer by name; those of the CPU first.
PEERS: Final[Mapping[str, Peer]] = MappingProxyType(
    {
        peer.name: peer
        for peer in (
            Peer("torch-eager", "PyTorch, FP32, as it is", _needs_torch, _torch_peer(_Torch())),
            Peer(
                "torch-channels-last",
                "PyTorch, FP32, channels last",
                _needs_torch,
                _torch_peer(_Torch(channels_last=True)),
            ),
            Peer(
                "torch-autocast-bf16",
                "PyTorch, autocast to bfloat16, channels last",
                _needs_torch,
                _torch_peer(_Torch(channels_last=True, autocast="bfloat16")),
            ),
            Peer(
                "torch-compile",
                "torch.compile, FP32, default settings",
                _why_not_compile,
                _torch_peer(_Torch(compiled=True)),
            ),
            Peer(
                "onnxruntime-plain",
                "ONNX Runtime, CPU, FP32, default settings",
                _needs("onnxruntime", "cpu"),
                _open_onnxruntime,
            ),
            Peer(
                "openvino-default",
                "OpenVINO, CPU, FP32 graph, default settings (its choice of arithmetic)",
                _needs("openvino", "cpu"),
                _open_openvino,
            ),
            Peer(
                "openvino-fp32",
                "OpenVINO, CPU, FP32 graph, kept to FP32 arithmetic",
                _needs("openvino", "cpu"),
                lambda given: _open_openvino(given, "f32"),
            ),
            Peer("torch-cuda-eager", "PyTorch on the GPU, FP32", _why_not_cuda, _torch_peer(_Torch("cuda"))),
            Peer(
                "torch-cuda-fp16",
                "PyTorch on the GPU, FP16, channels last",
                _why_not_cuda,
                _torch_peer(_Torch("cuda", channels_last=True, half=True)),
            ),
            Peer(
                "torch-cuda-autocast",
                "PyTorch on the GPU, autocast to FP16, channels last",
                _why_not_cuda,
                _torch_peer(_Torch("cuda", channels_last=True, autocast="float16")),
            ),
            Peer(
                "torch-cuda-compile",
                "torch.compile on the GPU, FP16, default settings",
                _why_not_cuda,
                _torch_peer(_Torch("cuda", half=True, compiled=True)),
            ),
            Peer(
                "torch-cuda-graph-fp16",
                "PyTorch on the GPU, FP16, channels last, recorded as a CUDA graph",
                _why_not_cuda,
                _torch_peer(_Torch("cuda", channels_last=True, half=True, recorded=True)),
            ),
            Peer(
                "onnxruntime-cuda-plain",
                "ONNX Runtime, CUDA, FP32, default settings",
                _why_not_onnxruntime_cuda,
                lambda given: _open_onnxruntime(given, "CUDAExecutionProvider"),
            ),
        )
    }
)
