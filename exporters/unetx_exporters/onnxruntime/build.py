"""Engines for ONNX Runtime: choose the graph that its provider can compute, store it, read it back."""

from __future__ import annotations

from typing import Final

from unetx_exporters.onnxruntime.attest import attest_onnxruntime
from unetx_exporters.request import BuildRequest
from unetx_opt.errors import ExportError
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.onnxruntime import why_not_onnxruntime_cpu
from unetx_opt.specs import EngineRecord, Host, Precision

__all__ = [
    "build_onnxruntime_cpu",
    "build_onnxruntime_cuda",
    "why_not_build_onnxruntime_cpu",
    "why_not_build_onnxruntime_cuda",
]

_FILE_NAME: Final = "model.onnx"


def why_not_build_onnxruntime_cpu(host: Host) -> str | None:
    """Say why no engine for ONNX Runtime's CPU provider can be made on a machine."""
    return why_not_onnxruntime_cpu(host) or _why_not_read(host)


def why_not_build_onnxruntime_cuda(host: Host) -> str | None:
    """Say why no engine for ONNX Runtime's CUDA provider can be made on a machine.

    A GPU is not needed: without one the engine is attested by its graph, whose types the provider keeps.
    """
    if "onnxruntime" not in host.packages:
        return "the package onnxruntime is not installed: run pip install 'unetx-opt[export,gpu]'"
    if "CUDAExecutionProvider" not in host.onnxruntime_providers:
        return (
            "the installed onnxruntime has no CUDA provider: run pip uninstall onnxruntime, "
            "then pip install 'unetx-opt[gpu]'"
        )
    return _why_not_read(host)


def build_onnxruntime_cpu(request: BuildRequest) -> tuple[EngineRecord, ...]:
    """Make the engine for ONNX Runtime's CPU provider.

    Parameters
    ----------
    request : BuildRequest
        fp32 and fp16 take `graph_stored`: the provider has no half-precision convolution, so that an fp16
        request gets weights stored in half precision and float32 arithmetic, and the record says so. int8 takes
        the typed graph.

    Returns
    -------
    tuple of EngineRecord
        One, attested; its file is ``engines/onnxruntime-cpu/model.onnx``.

    Raises
    ------
    ExportError
        ONNX Runtime cannot load the graph, or computes a layer in another type than was asked for.
    """
    if request.precision is not Precision.INT8:
        return (_store(request, "onnxruntime-cpu", request.graph_stored.read_bytes()),)
    onnx = require("onnx", purpose="building an onnxruntime-cpu engine")
    from unetx_exporters.onnxruntime.integer_form import integer_form

    graph = integer_form(onnx.load(request.graph))
    return (_store(request, "onnxruntime-cpu", graph.SerializeToString(deterministic=True)),)


def build_onnxruntime_cuda(request: BuildRequest) -> tuple[EngineRecord, ...]:
    """Make the engine for ONNX Runtime's CUDA provider from the typed graph.

    Returns
    -------
    tuple of EngineRecord
        One, attested; its file is ``engines/onnxruntime-cuda/model.onnx``.

    Raises
    ------
    ExportError
        int8 was asked for, which the provider has no convolution for; ONNX Runtime cannot load the graph, or
        the types of its layers are not what was asked for.
    """
    if request.precision is Precision.INT8:
        raise ExportError(
            "onnxruntime-cuda has no 8-bit convolution and would compute in floating point: "
            "leave the target out, or build it with --precision fp16"
        )
    return (_store(request, "onnxruntime-cuda", request.graph.read_bytes()),)


def _store(request: BuildRequest, target: str, data: bytes) -> EngineRecord:
    name = f"engines/{target}/{_FILE_NAME}"
    path = request.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    record = EngineRecord(target, (name,))
    return attest_onnxruntime(record, request)


def _why_not_read(host: Host) -> str | None:
    if "onnx" not in host.packages:
        return "the package onnx is not installed: run pip install 'unetx-opt[export]'"
    return None
