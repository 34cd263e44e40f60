"""Precision is decided in the graph: which nodes compute in float16, how weights are stored, and why."""

from __future__ import annotations

from unetx_exporters.onnx.precision.compress import store_int8
from unetx_exporters.onnx.precision.convert import convert_fp16, layer_types, unfit_for_fp16
from unetx_exporters.onnx.precision.emulate import emulate_fp16
from unetx_exporters.onnx.precision.sensitivity import (
    Fp32Choice,
    HalfLimits,
    NodeRecord,
    choose_fp32_nodes,
)
from unetx_exporters.onnx.precision.store import store_fp16

__all__ = [
    "Fp32Choice",
    "HalfLimits",
    "NodeRecord",
    "choose_fp32_nodes",
    "convert_fp16",
    "emulate_fp16",
    "layer_types",
    "store_fp16",
    "store_int8",
    "unfit_for_fp16",
]
