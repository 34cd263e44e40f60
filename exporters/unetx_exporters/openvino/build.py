"""Engines for OpenVINO's CPU plugin: one IR, and one candidate for each arithmetic that this CPU offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from unetx_exporters.openvino.attest import attest_openvino
from unetx_exporters.request import BuildRequest
from unetx_opt.errors import ExportError
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.base import OUTPUT_NAME
from unetx_opt.runtime.sessions.openvino import DEVICE, INFERENCE_PRECISIONS, why_not_openvino_cpu
from unetx_opt.specs import EngineRecord, Host, Precision

__all__ = ["TARGET", "build_openvino_cpu", "candidates", "why_not_build_openvino_cpu", "write_ir"]

TARGET: Final = "openvino-cpu"
_ENTRY: Final = f"engines/{TARGET}/model.xml"
_WEIGHTS: Final = f"engines/{TARGET}/model.bin"

#: Precision hint -> what the plugin calls that arithmetic among its capabilities.
_CAPABILITIES: Final[Mapping[str, str]] = MappingProxyType({"f32": "FP32", "bf16": "BF16", "f16": "FP16"})


def why_not_build_openvino_cpu(host: Host) -> str | None:
    """Say why no OpenVINO engine can be made on a machine."""
    if "onnx" not in host.packages:
        return "the package onnx is not installed: run pip install 'unetx-opt[export]'"
    return why_not_openvino_cpu(host)


def build_openvino_cpu(request: BuildRequest) -> tuple[EngineRecord, ...]:
    """Make the candidates for OpenVINO's CPU plugin.

    Parameters
    ----------
    request : BuildRequest
        fp32 and fp16 take `graph_stored`, int8 takes the typed graph.

    Returns
    -------
    tuple of EngineRecord
        One for each of `candidates` whose every layer computes as its hint says, attested; float32 arithmetic
        always is one of them, and `leave_out` is told of the others. They share ``model.xml`` and ``model.bin``
        and differ in their settings; a bundle keeps those that pass its gate, the fastest first.

    Raises
    ------
    ExportError
        OpenVINO cannot read or compile the graph, or with the hint f32 a layer computes in another type than was
        asked for.
    """
    graph = request.graph if request.precision is Precision.INT8 else request.graph_stored
    entry = request.directory / _ENTRY
    entry.parent.mkdir(parents=True, exist_ok=True)
    write_ir(graph, entry)
    baseline, *faster = candidates(request.precision)
    records = [attest_openvino(baseline, request)]
    for record in faster:
        # A narrower arithmetic is an offer of this builder's, not something that was asked for: one that the
        # plugin keeps only in part is no candidate.
        try:
            records.append(attest_openvino(record, request))
        except ExportError as error:
            name = f"{TARGET} {record.settings['inference_precision']}"
            request.leave_out(name, str(error).removeprefix(f"{name}: "))
    return tuple(records)


def candidates(precision: Precision) -> tuple[EngineRecord, ...]:
    """List the ways in which this machine can run an IR, the widest arithmetic first.

    Parameters
    ----------
    precision : Precision
        What was asked for: fp32 allows float32 arithmetic only; the others also bfloat16 and float16 where the
        plugin reports them (a hint for arithmetic that the CPU lacks is taken without a word and gives another).

    Returns
    -------
    tuple of EngineRecord
        Not yet attested; the setting "inference_precision" is the one difference between them.
    """
    capabilities = _plugin_capabilities()
    hints = ["f32"] if precision is Precision.FP32 else list(INFERENCE_PRECISIONS)
    return tuple(
        EngineRecord(TARGET, (_ENTRY, _WEIGHTS), settings={"inference_precision": hint})
        for hint in hints
        if hint == "f32" or _CAPABILITIES[hint] in capabilities
    )


def write_ir(graph: Path, entry: Path) -> None:
    """Turn an ONNX file into an IR pair: the same bytes for the same graph.

    Parameters
    ----------
    graph : pathlib.Path
        ONNX file; its weights keep the types that it stores them in.
    entry : pathlib.Path
        Where the ``.xml`` goes; the ``.bin`` goes beside it.

    Raises
    ------
    ExportError
        OpenVINO cannot read the graph.
    """
    openvino = require("openvino", purpose="building an openvino-cpu engine")
    try:
        # From bytes: a model that is read from a path may remember the path.
        model = openvino.Core().read_model(model=graph.read_bytes())
        _name_operations(model)
        _name_last_operation(model, graph)
        openvino.save_model(model, entry, compress_to_fp16=False)
    except Exception as error:  # OpenVINO raises RuntimeError, ValueError and types of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ExportError(f"OpenVINO cannot read the graph: {lines[-1] if lines else error}") from error


def _name_operations(model: Any) -> None:
    """Name the nameless operations by their place: OpenVINO numbers them through the life of the process."""
    for index, node in enumerate(model.get_ordered_ops()):
        if node.friendly_name == node.get_name():
            node.friendly_name = f"{node.get_type_name()}_{index}"


def _name_last_operation(model: Any, graph: Path) -> None:
    """Give the operation that makes the output its name in the graph: OpenVINO calls it by the output."""
    onnx = require("onnx", purpose="naming the layers of an OpenVINO engine")
    nodes = onnx.load(graph).graph.node
    name = next((node.name for node in nodes if OUTPUT_NAME in node.output), "")
    last = model.get_results()[0].input_value(0).get_node()
    if name and last.friendly_name == OUTPUT_NAME:
        last.friendly_name = name


def _plugin_capabilities() -> frozenset[str]:
    openvino = require("openvino", purpose="building an openvino-cpu engine")
    return frozenset(openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))
