"""What ONNX Runtime really computes in, read back from the graph that it has optimised and from a run of it."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from unetx_exporters.onnxruntime.execution import check_execution, execute_once
from unetx_exporters.onnxruntime.layers import (
    WEIGHT_INPUT,
    arithmetic_nodes,
    dtype_name,
    layer_dtypes,
    layer_name,
    list_names,
    shipped_names,
    storage_dtype,
)
from unetx_exporters.quantize.share import require_int8
from unetx_exporters.request import BuildRequest
from unetx_opt.errors import ExportError
from unetx_opt.optional import require
from unetx_opt.runtime.cuda_device import probe_cuda_device
from unetx_opt.specs import EngineRecord, Precision

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["attest_onnxruntime"]

#: Arithmetic without an 8-bit kernel on the CPU: there Q/DQ pairs only round the values.
_CPU_WITHOUT_INT8: Final = frozenset({"ConvTranspose"})


def attest_onnxruntime(record: EngineRecord, request: BuildRequest) -> EngineRecord:
    """Load an engine's file, read its layers back, and compare them with what was asked for.

    Parameters
    ----------
    record : EngineRecord
        An engine whose file lies in ``request.directory``.
    request : BuildRequest
        What was asked for.

    Returns
    -------
    EngineRecord
        With `layers`, `storage_dtype`, `compute_dtype` and `tools` filled in.

    Raises
    ------
    ExportError
        The file cannot be loaded or run, layers did not run as the optimised graph says, or layers or weights have
        another type than was asked for; they are listed.

    Notes
    -----
    ONNX Runtime writes the graph that it executes, after partitioning and fusion; it is run once, and its layers
    must be among the kernels that the profiler saw. A CUDA engine that is made where no GPU is gets its types from
    the file instead: the provider computes in the types of the graph.
    """
    onnx = require("onnx", purpose="reading an engine's layers back")
    path = request.directory / record.files[0]
    shipped = onnx.load(path)
    executed = shipped
    if record.target == "onnxruntime-cpu" or probe_cuda_device().gpu is not None:
        executed, profile = execute_once(record, path)
        check_execution(record.target, executed, profile.kernels, shipped)
    layers = _under_shipped_names(layer_dtypes(executed), shipped)
    _check_layers(record, request, layers, shipped)
    _check_storage(record, request, shipped)
    if request.precision is Precision.INT8:
        require_int8(record.target, request.graph_fp32, layers)
    counts = Counter(layers.values())
    return dataclasses.replace(
        record,
        layers=layers,
        storage_dtype=storage_dtype(shipped),
        compute_dtype=counts.most_common(1)[0][0] if counts else "float32",
        tools={"onnxruntime": require("onnxruntime", purpose="naming its version").__version__},
    )


def _check_layers(
    record: EngineRecord, request: BuildRequest, layers: Mapping[str, str], shipped: ModelProto
) -> None:
    wrong = []
    asked_dtypes = _asked_dtypes(record.target, request, shipped)
    for name, asked in asked_dtypes.items():
        # The optimiser may merge a floating-point layer into another one; an 8-bit one would be lost by that.
        found = layers.get(name, asked if asked != "int8" else "not found")
        if found != asked:
            wrong.append(f"{name} ({asked} asked, {found})")
    allowed = set(asked_dtypes.values())
    wrong += [
        f"{name} ({dtype})" for name, dtype in layers.items() if name not in asked_dtypes and dtype not in allowed
    ]
    if wrong:
        raise ExportError(
            f"{record.target}: {len(wrong)} of {len(layers)} layers do not compute in the type asked for: "
            f"{list_names(wrong)}; check the graph's types and Q/DQ pairs, or leave the target out"
        )


def _asked_dtypes(target: str, request: BuildRequest, shipped: ModelProto) -> dict[str, str]:
    nodes = {layer_name(node): node for node in arithmetic_nodes(shipped)}
    if target != "onnxruntime-cpu":
        return layer_dtypes(shipped) | {
            name: request.layer_types[name] for name in nodes if name in request.layer_types
        }
    asked = dict.fromkeys(nodes, "float32")
    if request.precision is Precision.INT8:
        without_kernel = _without_int8_kernel(shipped)
        for name in nodes:
            if request.layer_types.get(name) == "int8" and name not in without_kernel:
                asked[name] = "int8"
    return asked


def _without_int8_kernel(shipped: ModelProto) -> set[str]:
    """Layers that read 8-bit values and are computed in floating point on the CPU nonetheless.

    Transposed convolutions have no 8-bit kernel, and the others write 8 bits: where the result is read as floats,
    as that of the last layer is, they have none either.
    """
    producers = {name: node for node in shipped.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in shipped.graph.node:
        for name in node.input:
            readers[name].append(node)
    found = set()
    for node in arithmetic_nodes(shipped):
        read = [producers[name].op_type for name in node.input[:2] if name in producers]
        behind = readers[node.output[0]]
        if [reader.op_type for reader in behind] == ["Relu"]:
            behind = readers[behind[0].output[0]]
        written = {reader.op_type for reader in behind} == {"QuantizeLinear"}
        if node.op_type in _CPU_WITHOUT_INT8 or (read == ["DequantizeLinear"] * 2 and not written):
            found.add(layer_name(node))
    return found


def _check_storage(record: EngineRecord, request: BuildRequest, shipped: ModelProto) -> None:
    if request.precision is not Precision.FP16:
        return
    producers = {name: node for node in shipped.graph.node for name in node.output}
    stored = {tensor.name: dtype_name(tensor.data_type) for tensor in shipped.graph.initializer}
    if "float16" not in stored.values():
        raise ExportError(f"{record.target}: fp16 was asked for, but no weight of the graph is stored as float16")
    wrong = []
    for node in arithmetic_nodes(shipped):
        name = node.input[WEIGHT_INPUT[node.op_type]]
        while name in producers and producers[name].op_type in ("Cast", "Identity", "Transpose", "Reshape"):
            name = producers[name].input[0]
        asked = request.layer_types.get(node.name)
        if asked == "float16" and stored.get(name, asked) != asked:
            wrong.append(node.name)
    if wrong:
        raise ExportError(
            f"{record.target}: weights that fp16 was asked for are stored otherwise: {list_names(wrong)}"
        )


def _under_shipped_names(layers: Mapping[str, str], shipped: ModelProto) -> dict[str, str]:
    """Give executed layers the names of the nodes that they stand for, in the order of the shipped graph."""
    names = shipped_names(layers, shipped)
    found = {names[name]: dtype for name, dtype in layers.items()}
    order = [layer_name(node) for node in arithmetic_nodes(shipped)]
    return {name: found[name] for name in [*order, *sorted(set(found) - set(order))] if name in found}
