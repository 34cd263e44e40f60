"""What an OpenVINO engine really computes in, read back from the model that its plugin executes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from unetx_exporters.quantize.share import require_int8
from unetx_exporters.request import BuildRequest
from unetx_opt.errors import ExportError
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.openvino import (
    DEVICE,
    ExecutedLayer,
    arithmetic_dtype,
    compile_settings,
    read_layers,
)
from unetx_opt.specs import EngineRecord, Precision

__all__ = ["attest_openvino", "check_layers"]

_HINTED: Final[Mapping[str, str]] = MappingProxyType({"f32": "float32", "bf16": "bfloat16", "f16": "float16"})
_STORED: Final[Mapping[str, str]] = MappingProxyType(
    {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8"}
)


def attest_openvino(record: EngineRecord, request: BuildRequest) -> EngineRecord:
    """Compile an IR as the runtime will, read its layers back, and compare them with what was asked for.

    Parameters
    ----------
    record : EngineRecord
        A candidate whose files lie in ``request.directory``.
    request : BuildRequest
        What was asked for.

    Returns
    -------
    EngineRecord
        With `layers`, `compute_dtype`, `storage_dtype` and `tools` filled in.

    Raises
    ------
    ExportError
        The IR cannot be compiled, or layers have another type than was asked for; they are listed.
    """
    openvino = require("openvino", purpose="attesting an openvino-cpu engine")
    xml, weights = (request.directory.joinpath(name).read_bytes() for name in record.files)
    try:
        core = openvino.Core()
        model = core.read_model(model=xml, weights=weights)
        compiled = core.compile_model(model, DEVICE, compile_settings(record.settings))
    except Exception as error:  # OpenVINO raises RuntimeError, ValueError and types of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ExportError(f"OpenVINO cannot compile the engine: {lines[-1] if lines else error}") from error
    layers = read_layers(compiled)
    check_layers(record, layers, request.layer_types if request.precision is Precision.INT8 else {})
    named = _named_layers(layers, {node.friendly_name for node in model.get_ordered_ops()})
    if request.precision is Precision.INT8:
        require_int8(record.target, request.graph_fp32, named)
    return dataclasses.replace(
        record,
        layers=named,
        compute_dtype=arithmetic_dtype(layers),
        storage_dtype=_storage_dtype(model, request.precision),
        tools={"openvino": openvino.__version__},
    )


def check_layers(record: EngineRecord, layers: Iterable[ExecutedLayer], asked: Mapping[str, str]) -> None:
    """Compare convolutions and matrix products with what was asked for.

    Parameters
    ----------
    record : EngineRecord
        The candidate; its hint says what everything that is not int8 must compute in.
    layers : iterable of ExecutedLayer
        What the compiled model executes.
    asked : mapping of str to str
        Graph node to type; only "int8" counts here.

    Raises
    ------
    ExportError
        Layers have another type; they are listed.
    """
    hint = record.settings["inference_precision"]
    hinted = _HINTED[hint]
    arithmetic = [layer for layer in layers if layer.is_arithmetic]
    wrong = []
    for layer in arithmetic:
        expected = "int8" if any(asked.get(name) == "int8" for name in layer.names) else hinted
        if layer.dtype != expected:
            wrong.append(f"{layer.names[0] if layer.names else layer.kind} ({expected} asked, {layer.dtype})")
    if wrong:
        shown = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        # Of another hint than f32 a build takes no harm: it goes on without that candidate.
        advice = "; check the graph's Q/DQ pairs, or leave the target out" if hint == "f32" else ""
        raise ExportError(
            f"{record.target} {hint}: {len(wrong)} of {len(arithmetic)} layers do not compute in the type asked for: "
            f"{shown}{advice}"
        )


def _named_layers(layers: Iterable[ExecutedLayer], known: Collection[str]) -> dict[str, str]:
    """Name each layer by the first operation of the IR in it; what the plugin adds of its own has none."""
    named: dict[str, str] = {}
    for layer in layers:
        name = next((name for name in layer.names if name in known), None)
        if name is not None:
            named[name] = layer.dtype
    return named


def _storage_dtype(model: Any, precision: Precision) -> str:
    elements: dict[str, int] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            kind = node.get_element_type().get_type_name()
            elements[kind] = elements.get(kind, 0) + math.prod(node.get_output_shape(0))
    if precision is Precision.FP16 and "f16" not in elements:
        raise ExportError("openvino-cpu: fp16 was asked for, but no weight of the graph is stored as float16")
    largest = max(elements, key=lambda kind: elements[kind], default="f32")
    return _STORED.get(largest, largest)
