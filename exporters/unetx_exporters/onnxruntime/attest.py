"""What ONNX Runtime really computes in, read back from the graph that it has optimised for execution."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unetx_exporters.quantize.share import require_int8
from unetx_exporters.request import BuildRequest
from unetx_opt.errors import ExportError
from unetx_opt.optional import require
from unetx_opt.runtime.cuda_device import probe_cuda_device
from unetx_opt.runtime.sessions.onnxruntime import check_provider, provider_list, session_options
from unetx_opt.specs import EngineRecord, Precision

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["attest_onnxruntime", "layer_dtypes", "storage_dtype"]

#: Operations that do the arithmetic, with the position of their weights (or second factor).
_WEIGHT_INPUT: Final[Mapping[str, int]] = {
    "Conv": 1,
    "FusedConv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "FusedGemm": 1,
    "MatMul": 1,
    "FusedMatMul": 1,
    "ConvInteger": 1,
    "MatMulInteger": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "QGemm": 3,
}
_INTEGER_OPERATIONS: Final = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm"})

#: Arithmetic without an 8-bit kernel on the CPU: there Q/DQ pairs only round the values.
_CPU_WITHOUT_INT8: Final = frozenset({"ConvTranspose"})

_SHOWN: Final = 8  # names in a message

# What the optimiser adds to the name of a node that it replaces.
_AFFIXES: Final = re.compile(r"^InsertedPrecisionFreeCast_|(?:_nchwc|_nhwc|_token_\d+|_quant)+$")


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
        The file cannot be loaded, or layers or weights have another type than was asked for; they are listed.

    Notes
    -----
    ONNX Runtime writes the graph that it executes, after partitioning and fusion. A CUDA engine that is made
    where no GPU is gets its types from the file instead: the provider computes in the types of the graph.
    """
    onnx = require("onnx", purpose="reading an engine's layers back")
    path = request.directory / record.files[0]
    shipped = onnx.load(path)
    on_device = record.target == "onnxruntime-cpu" or probe_cuda_device().gpu is not None
    executed = _executed_graph(record, path) if on_device else shipped
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


def layer_dtypes(model: ModelProto) -> dict[str, str]:
    """List the types in which a graph's convolutions and matrix products compute.

    Parameters
    ----------
    model : onnx.ModelProto
        Any graph, also one that ONNX Runtime has optimised.

    Returns
    -------
    dict of str to str
        Node name to the ONNX name of its type; "int8" for every operation on 8-bit integers.
    """
    types = _value_types(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    layers: dict[str, str] = {}
    for node in _arithmetic_nodes(model):
        if node.op_type in _INTEGER_OPERATIONS:
            dtype = "int8"
        else:
            dtype = _type_of(node.input[_WEIGHT_INPUT[node.op_type]], types, producers)
        layers[node.name or node.output[0]] = dtype
    return layers


def storage_dtype(model: ModelProto) -> str:
    """Name the type that holds most of a file's weights, counted in elements."""
    elements: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        size = 1
        for length in tensor.dims:
            size *= length
        elements[_dtype_name(tensor.data_type)] += size
    return elements.most_common(1)[0][0] if elements else "float32"


def _executed_graph(record: EngineRecord, path: Path) -> ModelProto:
    onnx = require("onnx", purpose="reading an engine's layers back")
    onnxruntime = require("onnxruntime", purpose=f"attesting an {record.target} engine")
    with tempfile.TemporaryDirectory() as directory:
        optimized = Path(directory, "optimized.onnx")
        options = session_options()
        options.optimized_model_filepath = str(optimized)
        try:
            session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=provider_list(record.target, record.compute_dtype)
            )
        except Exception as error:  # ONNX Runtime raises RuntimeError, ValueError and types of its own
            reason = str(error).partition("\n")[0]
            raise ExportError(f"ONNX Runtime cannot load the graph for {record.target}: {reason}") from error
        check_provider(record.target, session.get_providers())
        model: ModelProto = onnx.load(optimized)
    return model


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
            f"{_listed(wrong)}; check the graph's types and Q/DQ pairs, or leave the target out"
        )


def _asked_dtypes(target: str, request: BuildRequest, shipped: ModelProto) -> dict[str, str]:
    nodes = {node.name or node.output[0]: node for node in _arithmetic_nodes(shipped)}
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
    for node in _arithmetic_nodes(shipped):
        read = [producers[name].op_type for name in node.input[:2] if name in producers]
        behind = readers[node.output[0]]
        if [reader.op_type for reader in behind] == ["Relu"]:
            behind = readers[behind[0].output[0]]
        written = {reader.op_type for reader in behind} == {"QuantizeLinear"}
        if node.op_type in _CPU_WITHOUT_INT8 or (read == ["DequantizeLinear"] * 2 and not written):
            found.add(node.name or node.output[0])
    return found


def _check_storage(record: EngineRecord, request: BuildRequest, shipped: ModelProto) -> None:
    if request.precision is not Precision.FP16:
        return
    producers = {name: node for node in shipped.graph.node for name in node.output}
    stored = {tensor.name: _dtype_name(tensor.data_type) for tensor in shipped.graph.initializer}
    if "float16" not in stored.values():
        raise ExportError(f"{record.target}: fp16 was asked for, but no weight of the graph is stored as float16")
    wrong = []
    for node in _arithmetic_nodes(shipped):
        name = node.input[_WEIGHT_INPUT[node.op_type]]
        while name in producers and producers[name].op_type in ("Cast", "Identity", "Transpose", "Reshape"):
            name = producers[name].input[0]
        asked = request.layer_types.get(node.name)
        if asked == "float16" and stored.get(name, asked) != asked:
            wrong.append(node.name)
    if wrong:
        raise ExportError(f"{record.target}: weights that fp16 was asked for are stored otherwise: {_listed(wrong)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _under_shipped_names(layers: Mapping[str, str], shipped: ModelProto) -> dict[str, str]:
    """Give executed layers the names of the nodes that they stand for, in the order of the shipped graph."""
    known = {name: node.name or node.output[0] for node, names in _aliases(shipped) for name in names}
    found: dict[str, str] = {}
    for name, dtype in layers.items():
        found[known.get(name) or known.get(_AFFIXES.sub("", _AFFIXES.sub("", name)), name)] = dtype
    order = [node.name or node.output[0] for node in _arithmetic_nodes(shipped)]
    return {name: found[name] for name in [*order, *sorted(set(found) - set(order))] if name in found}


def _aliases(model: ModelProto) -> Iterator[tuple[NodeProto, set[str]]]:
    """Names that a fused layer may bear: those of the node, its result, and of what is fused behind it."""
    consumers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node)
    for node in _arithmetic_nodes(model):
        names = {node.name, node.output[0]}
        last = node
        while len(consumers[last.output[0]]) == 1:
            last = consumers[last.output[0]][0]
            if last.op_type in _WEIGHT_INPUT:
                break
            names |= {last.output[0]}
        yield node, names - {""}


def _arithmetic_nodes(model: ModelProto) -> Iterator[NodeProto]:
    return (node for node in model.graph.node if node.op_type in _WEIGHT_INPUT)


def _value_types(model: ModelProto) -> dict[str, str]:
    types = {tensor.name: _dtype_name(tensor.data_type) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        types[value.name] = _dtype_name(value.type.tensor_type.elem_type)
    return types


def _type_of(name: str, types: Mapping[str, str], producers: Mapping[str, Any]) -> str:
    """Follow a value back to something that states its type."""
    while name not in types:
        node = producers.get(name)
        if node is None:
            return "unknown"
        if node.op_type == "Cast":
            return _dtype_name(next(item.i for item in node.attribute if item.name == "to"))
        # The result of a dequantisation has the type of its scale, not that of its integers.
        name = node.input[1] if node.op_type == "DequantizeLinear" else node.input[0]
    return types[name]


def _dtype_name(number: int) -> str:
    onnx = require("onnx", purpose="reading an engine's layers back")
    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return "float32" if name == "float" else name
