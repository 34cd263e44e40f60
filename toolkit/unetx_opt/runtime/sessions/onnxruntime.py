"""ONNX Runtime engines, on the CPU and on CUDA: an ONNX file, optimised when it is opened."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import EngineError
from unetx_opt.lifetime import Closing
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.base import INPUT_NAME, OUTPUT_NAME, OpenRequest
from unetx_opt.runtime.sessions.integers import why_not_int8
from unetx_opt.specs import EngineRecord, Host

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "PROVIDERS",
    "OnnxRuntimeSession",
    "check_provider",
    "open_onnxruntime",
    "preload_cuda",
    "provider_list",
    "session_options",
    "why_not_onnxruntime_cpu",
    "why_not_onnxruntime_cuda",
]

#: Target -> the execution provider that must run it.
PROVIDERS: Final[Mapping[str, str]] = MappingProxyType(
    {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-cpu": "CPUExecutionProvider"}
)

#: By target and arithmetic. Float32 is float32: by itself the provider rounds the inputs of its convolutions to 10
#: bits (TF32). A float16 engine keeps that default: without it `unet` took longer in float16 than in float32 on an
#: H100 (`benchmarks/results/gpu-record-h100-2026-11-27-second`).
_PROVIDER_OPTIONS: Final[Mapping[tuple[str, str], Mapping[str, str]]] = MappingProxyType(
    {("onnxruntime-cuda", "float32"): {"use_tf32": "0"}}
)
_ERRORS_ONLY: Final = 3


def why_not_onnxruntime_cpu(host: Host, record: EngineRecord | None = None) -> str | None:
    """Say why an ONNX Runtime engine cannot run on a machine's CPU."""
    if "onnxruntime" not in host.packages:
        return "the package onnxruntime is not installed: run pip install 'unetx-opt[cpu]'"
    return why_not_int8(host, record)


def why_not_onnxruntime_cuda(host: Host, record: EngineRecord | None = None) -> str | None:
    """Say why an ONNX Runtime engine cannot run on a machine's GPU."""
    if "onnxruntime" not in host.packages:
        return "the package onnxruntime is not installed: run pip install 'unetx-opt[gpu]'"
    if PROVIDERS["onnxruntime-cuda"] not in host.onnxruntime_providers:
        # Both distributions bring the same module; with both installed the CPU one remains.
        return (
            "the installed onnxruntime has no CUDA provider: run pip uninstall onnxruntime, "
            "then pip install 'unetx-opt[gpu]'"
        )
    if host.compute_capability is None:
        return "there is no CUDA device, or its driver cannot be used"
    return None


def open_onnxruntime(request: OpenRequest) -> OnnxRuntimeSession:
    """Load an ONNX file from its verified bytes.

    Parameters
    ----------
    request : OpenRequest
        A record of the target onnxruntime-cpu or onnxruntime-cuda with one file.

    Raises
    ------
    EngineError
        The file cannot be loaded, or ONNX Runtime would run it on another device than the target's.
    """
    record = request.record
    if record.target not in PROVIDERS:
        raise EngineError(f"{record.target} is no target of ONNX Runtime, expected one of {', '.join(PROVIDERS)}")
    if len(record.files) != 1:
        raise EngineError(f"{record.target} has {len(record.files)} files, expected one .onnx")
    onnxruntime = require("onnxruntime", purpose=f"running an {record.target} engine")
    check_provider(record.target, onnxruntime.get_available_providers())
    if record.target == "onnxruntime-cuda":
        preload_cuda(onnxruntime)
    try:
        session = onnxruntime.InferenceSession(
            request.read(record.files[0]),
            _session_options(record.target, request.threads),
            providers=provider_list(record.target, record.compute_dtype),
        )
    except Exception as error:  # ONNX Runtime raises RuntimeError, ValueError and types of its own
        raise EngineError(f"ONNX Runtime cannot load {record.files[0]}: {_first_line(error)}") from error
    check_provider(record.target, session.get_providers())
    # A provider that fails later would otherwise be replaced by another one without a word.
    session.disable_fallback()
    return OnnxRuntimeSession(session, record.target, record.compute_dtype)


def provider_list(target: str, compute_dtype: str) -> list[tuple[str, dict[str, str]]]:
    """Return what ONNX Runtime is given as providers for an engine: the one that must run it, with its options."""
    return [(PROVIDERS[target], dict(_PROVIDER_OPTIONS.get((target, compute_dtype), {})))]


def preload_cuda(onnxruntime: Any) -> None:
    """Load CUDA's and cuDNN's libraries from NVIDIA's Python packages, where they are and the system has none."""
    preload = getattr(onnxruntime, "preload_dlls", None)  # from ONNX Runtime 1.21 on
    if preload is not None:
        # It prints what it does not find; a library that lacks is told when the provider is checked.
        with contextlib.redirect_stdout(io.StringIO()):
            preload()


def _session_options(target: str, threads: int | None) -> Any:
    options = session_options(threads)
    if target != "onnxruntime-cpu":
        # Nodes that the provider cannot run would otherwise move to the CPU one by one, without a word.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def check_provider(target: str, offered: list[str]) -> None:
    """Compare the execution providers that are there with the one that a target needs.

    Raises
    ------
    EngineError
        The target's provider is not among those offered: the engine would run on the CPU without a word.
    """
    provider = PROVIDERS[target]
    if provider not in offered:
        raise EngineError(
            f"{target} needs the {provider}, ONNX Runtime offers {', '.join(offered) or 'none'}: install CUDA "
            "and cuDNN libraries that fit the installed onnxruntime-gpu, or choose another --target"
        )


def session_options(threads: int | None = None) -> Any:
    """Make the options that an engine is measured with and runs with: one image at a time, threads that sleep.

    Parameters
    ----------
    threads : int, optional
        CPU threads of one inference; None: one per core.
    """
    onnxruntime = require("onnxruntime", purpose="running an ONNX Runtime engine")
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    # Waiting threads would otherwise spin on cores that the next step or another engine needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class OnnxRuntimeSession(Closing):
    """A loaded ONNX file. ONNX Runtime's own `run` may be called from several threads at once."""

    def __init__(self, session: Any, target: str, compute_dtype: str) -> None:
        self._session = session
        self._shape = tuple(session.get_inputs()[0].shape)
        self._target = target
        self._compute_dtype = compute_dtype

    @property
    def target(self) -> str:
        """Name of the target."""
        return self._target

    @property
    def compute_dtype(self) -> str:
        """Type of the arithmetic, as attested when the engine was built."""
        return self._compute_dtype

    def infer(self, image_nchw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the engine; see `Session.infer`."""
        session = self._session
        if session is None:
            raise EngineError(f"{self._target} is closed: open the engine again")
        try:
            results = session.run([OUTPUT_NAME], {INPUT_NAME: image_nchw})
        except Exception as error:  # see open_onnxruntime
            raise EngineError(
                f"{self._target} failed on an input of shape {image_nchw.shape}, expected {self._shape}: "
                f"{_first_line(error)}"
            ) from error
        logits: NDArray[np.float32] = results[0]
        return logits

    def close(self) -> None:
        """Free the session; an inference that still runs in another thread ends first."""
        self._session = None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
