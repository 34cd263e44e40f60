"""Torch module to float32 ONNX graph: one graph for every engine, with its skip junctions under known names."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from unetx_exporters.onnx.attention_function import DOMAIN, add_attention_function, has_gates
from unetx_exporters.onnx.graph import (
    INPUT_NAME,
    JUNCTION_PREFIX,
    OUTPUT_NAME,
    check,
    infer_types,
    producers,
    prune,
)
from unetx_exporters.onnx.naming import rename_graph, strip_metadata
from unetx_opt.errors import ExportError
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
    import torch

    from unetx_opt.models.unet import UNet
else:
    onnx = require("onnx", purpose="tracing a model")
    torch = require("torch", purpose="tracing a model")

__all__ = ["OPSET", "TracedGraph", "trace_onnx"]

# The oldest opset whose QuantizeLinear and DequantizeLinear take float16, which a graph with int8 and fp16
# layers needs; older is read by more engines (TensorRT 10 of JetPack 6 included).
OPSET: Final = 19
# What ONNX Runtime 1.22 (ONNX 1.17) still reads; opset 19 itself asks for 9.
_IR_VERSION: Final = 10
_NETWORK: Final = "network"
# A serialized protobuf message ends at 2 GiB; the rest of the graph is far below the margin.
_MAX_PARAMETER_BYTES: Final = 2**31 - 2**24


@dataclass(frozen=True, slots=True)
class TracedGraph:
    """A traced model.

    Attributes
    ----------
    model : onnx.ModelProto
        Float32 graph: input "image" (batch, C, H, W) with values as the contract says, output "logits"
        (batch, K, H, W); batch is dynamic.
    junctions : tuple of str
        Names of the tensors at the skip junctions, in the order in which they are computed. They are no outputs;
        `unetx_exporters.onnx.graph.mark_outputs` makes them so, in this graph or one converted from it.
    """

    model: onnx.ModelProto
    junctions: tuple[str, ...]


class _WithJunctions(torch.nn.Module):
    """A network whose junctions are outputs: a tuple, as the exporter wants it."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, junctions = self.network.forward_with_junctions(image)
        return (logits, *junctions.values())


def trace_onnx(model: UNet, height: int, width: int, *, gate_operator: bool = False) -> TracedGraph:
    """Export a model at one image size.

    Batch normalisation is folded into the convolutions by the exporter's optimizer, so that every engine and the
    precision passes see the same weights; that none is left is checked.

    Parameters
    ----------
    model : UNet
        Neither its mode nor its device is changed; the graph is that of its evaluation mode.
    height, width : int
        Size of the image in pixels, fixed in the graph.
    gate_operator : bool
        Write each neighbourhood gate as one operator ``unetx::AttentionGate`` with a body in standard operators, for
        engines with a kernel for it. Without, as what the body says: that is what every engine reads.

    Returns
    -------
    TracedGraph
        The same bytes for the same weights and tool versions, in every process and every directory.

    Raises
    ------
    ExportError
        The exporter refuses the model, the graph is not what was expected of it, or it is beyond 2 GiB.
    """
    network = copy.deepcopy(model).cpu().float().eval()
    for module in network.modules() if gate_operator else ():
        if hasattr(module, "exports_operator"):
            setattr(module, "exports_operator", True)  # noqa: B010 - a name that Module does not declare
    _refuse_oversized(network)
    image = torch.zeros(2, network.spec.in_channels, height, width)
    with torch.no_grad():
        junctions = tuple(f"{JUNCTION_PREFIX}{name}" for name in network.forward_with_junctions(image[:1])[1])
    exported = _export(_WithJunctions(network).eval(), image, junctions)
    rename_graph(exported, _NETWORK, (INPUT_NAME, OUTPUT_NAME, *junctions))
    strip_metadata(exported)
    _unmark(exported, junctions)
    _add_missing_biases(exported)
    _order_initializers(exported)
    exported.ir_version = _IR_VERSION
    if has_gates(exported):
        add_attention_function(exported, OPSET)
    typed = infer_types(exported)
    _refuse_unexpected(typed)
    check(typed)
    return TracedGraph(typed, junctions)


def _refuse_oversized(network: UNet) -> None:
    size_bytes = sum(parameter.numel() * 4 for parameter in network.parameters())
    if size_bytes > _MAX_PARAMETER_BYTES:
        raise ExportError(
            f"the weights take {size_bytes / 2**30:.1f} GiB, an ONNX file holds less than 2 GiB: "
            "choose a smaller width or depth"
        )


def _export(module: torch.nn.Module, image: torch.Tensor, junctions: tuple[str, ...]) -> onnx.ModelProto:
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (image,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME, *junctions],
                dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch", min=1)}},
                opset_version=OPSET,
                verbose=False,
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"the model cannot be exported to ONNX opset {OPSET}: {reason}") from error
    if program is None:
        raise ExportError("the ONNX exporter gave no graph: install the torch version that this package pins")
    exported: onnx.ModelProto = program.model_proto
    return exported


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, and its remarks on packages that no model here uses, off the terminal.

    What it warns of would show in the graph, which is checked and compared with the module afterwards.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _unmark(model: onnx.ModelProto, junctions: tuple[str, ...]) -> None:
    """Make "logits" the only output and remove what only the junctions needed."""
    graph = model.graph
    outputs = [value for value in graph.output if value.name not in junctions]
    logits = onnx.ValueInfoProto()
    logits.CopyFrom(outputs[0])
    del graph.output[:], graph.value_info[:]
    graph.output.append(logits)
    prune(model)
    made = producers(graph)
    lost = [name for name in junctions if name not in made]
    if lost:
        raise ExportError(f"the logits do not depend on {', '.join(lost)}: the module names a tensor it does not use")


def _add_missing_biases(model: onnx.ModelProto) -> None:
    """Give every convolution a bias: the optimizer drops one that is all zeros.

    Otherwise the structure of the graph would depend on the weights, and two checkpoints of one architecture
    could not be told to have the same graph.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.input) > 2:
            continue
        dims = weights[node.input[1]].dims
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        channels = dims[0] if node.op_type == "Conv" else dims[1] * groups
        bias = onnx.numpy_helper.from_array(np.zeros(channels, np.float32), f"{node.name}.bias")
        graph.initializer.append(bias)
        node.input.append(bias.name)


def _order_initializers(model: onnx.ModelProto) -> None:
    """Store initializers in the order of their first use, which no optimizer's bookkeeping changes."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    used = dict.fromkeys(name for node in model.graph.node for name in node.input if name in tensors)
    ordered = onnx.GraphProto(initializer=[tensors[name] for name in used])
    del model.graph.initializer[:]
    model.graph.initializer.extend(ordered.initializer)


def _refuse_unexpected(model: onnx.ModelProto) -> None:
    graph = model.graph
    allowed = ("", DOMAIN)
    left = sorted({n.op_type for n in graph.node if n.op_type == "BatchNormalization" or n.domain not in allowed})
    if left or {function.domain for function in model.functions} - {DOMAIN}:
        raise ExportError(
            f"the exported graph holds {left or 'local functions'}, expected plain ONNX with batch normalisation "
            "folded: install the onnxscript version that this package's constraints name"
        )
    names = [value.name for value in (*graph.input, *graph.output)]
    if names != [INPUT_NAME, OUTPUT_NAME]:
        raise ExportError(f"the exported graph has inputs and outputs {names}, expected {INPUT_NAME}, {OUTPUT_NAME}")
