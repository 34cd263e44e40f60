"""What ONNX Runtime's own profiler saw: the kernels that ran, where, on which types, and for how long."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unetx_opt.optional import require
from unetx_opt.runtime.sessions.onnxruntime import preload_cuda, provider_list
from unetx_opt.specs import EngineRecord

__all__ = ["ExecutedKernel", "Profile", "end_profile", "open_profiled", "read_profile"]

_KERNEL: Final = "_kernel_time"


@dataclass(frozen=True, slots=True)
class ExecutedKernel:
    """One kernel in one run.

    Attributes
    ----------
    name : str
        Of the node in the optimised graph; of one without a name, operation and index.
    operation : str
        The node's operation: "Conv", "QLinearConv", ...
    provider : str
        The execution provider that ran it; empty where the trace does not say.
    input_dtypes, output_dtypes : tuple of str
        Element types in order; weights that were packed when the engine was loaded are not among the inputs.
    took_ms : float
        Wall-clock time.
    """

    name: str
    operation: str
    provider: str
    input_dtypes: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    took_ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A session's runs.

    Attributes
    ----------
    kernels : tuple of ExecutedKernel
        Of all runs, in the order of execution.
    runs_ms : tuple of float
        Wall-clock time of each run.
    """

    kernels: tuple[ExecutedKernel, ...]
    runs_ms: tuple[float, ...]


def open_profiled(data: bytes, record: EngineRecord, options: Any, folder: Path) -> Any:
    """Load an engine with its profiler on.

    Parameters
    ----------
    data : bytes
        The engine's file.
    record : EngineRecord
        Its target and arithmetic decide the provider and that one's options.
    options : onnxruntime.SessionOptions
        Of the session; the profiler is added.
    folder : pathlib.Path
        Where the trace is written; it may be removed after `end_profile`.

    Returns
    -------
    onnxruntime.InferenceSession
        What ONNX Runtime raises is not caught.
    """
    onnxruntime = require("onnxruntime", purpose=f"profiling an {record.target} engine")
    if record.target == "onnxruntime-cuda":
        preload_cuda(onnxruntime)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    return onnxruntime.InferenceSession(data, options, providers=provider_list(record.target, record.compute_dtype))


def end_profile(session: Any) -> Profile:
    """Stop a session's profiler, and read what it saw."""
    return read_profile(Path(session.end_profiling()).read_text(encoding="utf-8"))


def read_profile(text: str) -> Profile:
    """Read a trace.

    Parameters
    ----------
    text : str
        Content of the file: a JSON list of events, times in microseconds.
    """
    kernels, runs_ms = [], []
    for event in json.loads(text):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            kernels.append(_read_kernel(event["name"].removesuffix(_KERNEL), event["args"], event["dur"] / 1e3))
        elif event.get("cat") == "Session" and event["name"] == "model_run":
            runs_ms.append(event["dur"] / 1e3)
    return Profile(tuple(kernels), tuple(runs_ms))


def _read_kernel(name: str, args: Mapping[str, Any], took_ms: float) -> ExecutedKernel:
    return ExecutedKernel(
        name=name,
        operation=str(args.get("op_name", "")),
        provider=str(args.get("provider", "")),
        input_dtypes=_dtypes(args.get("input_type_shape", ())),
        output_dtypes=_dtypes(args.get("output_type_shape", ())),
        took_ms=took_ms,
    )


def _dtypes(tensors: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Each tensor is one entry, its type -> its shape."""
    names = (name for tensor in tensors for name in tensor)
    return tuple("float32" if name == "float" else name for name in names)
