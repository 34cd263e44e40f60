"""What every builder of an engine is given: graphs of one model, the precision asked for, where to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unetx_opt.specs import Precision

__all__ = ["BuildRequest"]


def _tell_nobody(engine: str, reason: str) -> None:
    del engine, reason


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One model at one precision, on its way to the engines of one target.

    All three graphs read ``image`` float32 (N, C, H, W), N dynamic, and give ``logits`` float32
    (N, K, H, W).

    Attributes
    ----------
    graph_fp32 : pathlib.Path
        ONNX graph that stores and computes float32.
    graph : pathlib.Path
        Strongly typed ONNX graph: its tensors have the types that the engine shall compute in (float16 for an
        fp16 request, Q/DQ pairs for int8), only the input and the output stay float32.
    graph_stored : pathlib.Path
        Graph that computes float32 from weights stored in the types of `precision`, for targets that lack the
        arithmetic. For fp32 it is `graph_fp32`.
    precision : Precision
        What the user asked for.
    directory : pathlib.Path
        Root of the bundle that is being made; a builder writes only under ``engines/<target>/`` there.
    layer_types : mapping of str to str
        ONNX node name to the element type asked for it ("float16"); what an attestation compares with.
    graph_int8 : mapping of str to pathlib.Path
        Quantization scheme ("cpu", "tensorrt") to the graph with Q/DQ pairs made for it; empty unless int8 was
        asked for. What a builder is given as `graph` is its own scheme's.
    graph_gated : pathlib.Path or None
        `graph` with each neighbourhood gate as one operator ``unetx::AttentionGate`` that has a body, where the model
        has such gates and a target asked for it.
    compute_capabilities : tuple of str
        CUDA compute capabilities asked for, such as "8.6"; CPU targets ignore them.
    options : mapping of str to object
        Settings of single targets, each named and read by its own builder.
    leave_out : callable
        Told the name of an alternative engine that a builder tried and does not offer, and why.
    """

    graph_fp32: Path
    graph: Path
    graph_stored: Path
    precision: Precision
    directory: Path
    layer_types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    graph_int8: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    graph_gated: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    leave_out: Callable[[str, str], None] = _tell_nobody
