"""Module to graphs: traced, compared with PyTorch at every skip junction, and typed for the precision asked for."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from unetx_exporters.gate_images import GateImages, phantom_gate_images
from unetx_opt.bundle.parts import KeptLayer, Operations, PrecisionRecord
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.models.variants import variant_spec
from unetx_opt.optional import require
from unetx_opt.specs import Gate, InputContract, ModelSpec, Precision

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from unetx_exporters.quantize.request import QuantizedGraph
    from unetx_opt.models.unet import UNet

__all__ = ["GraphRequest", "GraphSet", "break_fusions", "choose_kept", "make_graphs", "parity_inputs"]

# Phantoms on which the float16 layers are chosen; their seeds lie apart from those of every gate.
_PROBE_COUNT: Final = 2
_PROBE_SEED: Final = 2**31
_PARITY_COUNT: Final = 2


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """What graphs are asked for.

    Attributes
    ----------
    precision : Precision
        Of the typed graph.
    contract : InputContract
        Size and value range of the input.
    directory : pathlib.Path
        Where the files are written.
    images : GateImages or None
        Images for the comparison with PyTorch besides random ones; None takes phantoms.
    seed : int
        Of the random inputs.
    logit_error : float
        Largest error of a logit that float16 may bring on the probe images, relative to the largest logit: layers
        are kept in float32 until it holds.
    gate_operator : bool
        Also write the typed graph with each neighbourhood gate as one operator, for an engine with a kernel for it.
    compress_weights : bool
        Store the weights of an fp16 graph in 8 bits where float32 arithmetic reads them.
    compare : bool
        As in `unetx_exporters.options.BuildOptions`.
    """

    precision: Precision
    contract: InputContract
    directory: Path
    images: GateImages | None = None
    seed: int = 0
    logit_error: float = 0.03
    gate_operator: bool = False
    compress_weights: bool = False
    compare: bool = True


@dataclass(frozen=True, slots=True)
class GraphSet:
    """The graphs of one model at one precision, as files and figures.

    Attributes
    ----------
    fp32, typed, stored : pathlib.Path
        As in `unetx_exporters.request.BuildRequest`.
    layer_types : mapping of str to str
        Node of the typed graph -> type that it computes in.
    precision : PrecisionRecord
        What was asked for, what was kept in float32 and why.
    operations : Operations
        Of the float32 graph, beside those of a plain U-Net of equal width.
    junctions : tuple of str
        Tensors of every graph where a skip connection joins, in the order of computation.
    quantized : mapping of str to QuantizedGraph
        Quantization scheme -> graph with Q/DQ pairs; empty unless int8 was asked for.
    gated : pathlib.Path or None
        As in `unetx_exporters.request.BuildRequest`.
    compressed : bool
        Whether `stored` holds its weights in 8 bits.
    """

    fp32: Path
    typed: Path
    stored: Path
    layer_types: Mapping[str, str]
    precision: PrecisionRecord
    operations: Operations
    junctions: tuple[str, ...]
    quantized: Mapping[str, QuantizedGraph] = field(default_factory=lambda: MappingProxyType({}))
    gated: Path | None = None
    compressed: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file once."""
        quantized = (graph.path for graph in self.quantized.values())
        gated = () if self.gated is None else (self.gated,)
        return tuple(dict.fromkeys((self.fp32, self.typed, self.stored, *quantized, *gated)))

    def of_scheme(self, scheme: str | None) -> tuple[Path, Mapping[str, str]]:
        """Typed graph and its layers' types for targets of a quantization scheme; None is for all of them."""
        if scheme is None or scheme not in self.quantized:
            return self.typed, self.layer_types
        found = self.quantized[scheme]
        return found.path, found.asked_types


def make_graphs(model: UNet, request: GraphRequest) -> GraphSet:
    """Trace a model and derive its graphs.

    Parameters
    ----------
    model : UNet
        In evaluation mode.
    request : GraphRequest
        What is asked for.

    Raises
    ------
    ExportError
        The graph differs from the module at a junction, or cannot be typed.
    """
    from unetx_exporters.onnx.precision import convert_fp16, layer_types, store_fp16, store_int8
    from unetx_exporters.onnx.trace import trace_onnx
    from unetx_exporters.onnx.verify import junction_parity, require_parity, unmarked_parity

    traced = trace_onnx(model, request.contract.height, request.contract.width)
    if request.compare:
        inputs = parity_inputs(request)
        require_parity(junction_parity(model, traced.model, inputs, traced.junctions), "the ONNX graph")
        require_parity([unmarked_parity(traced.model, inputs, traced.junctions)], "the ONNX graph without marks")
    typed = stored = traced.model
    kept: tuple[KeptLayer, ...] = ()
    if request.precision is Precision.FP16:
        kept = choose_kept(traced.model, request)
        names = [layer.name for layer in kept]
        typed = convert_fp16(traced.model, names)
        stored = (store_int8 if request.compress_weights else store_fp16)(traced.model, names)
    types = layer_types(typed)
    return GraphSet(
        fp32=_write(request.directory / "fp32.onnx", traced.model),
        typed=_write(request.directory / "typed.onnx", typed),
        stored=_write(request.directory / "stored.onnx", stored),
        layer_types=types,
        precision=PrecisionRecord(
            requested=request.precision, kept_fp32=kept, dtype_counts=dict(Counter(types.values()))
        ),
        operations=_count_operations(traced.model, model.spec, request.contract),
        junctions=traced.junctions,
        gated=_write_gated(model, request, kept) if request.gate_operator else None,
        compressed=request.compress_weights,
    )


def _write_gated(model: UNet, request: GraphRequest, kept: Sequence[KeptLayer]) -> Path | None:
    """Write the typed graph with its gates as operators; None without gates, or for int8."""
    from unetx_exporters.onnx.attention_function import has_gates
    from unetx_exporters.onnx.precision import convert_fp16
    from unetx_exporters.onnx.trace import trace_onnx
    from unetx_exporters.onnx.verify import require_parity, unmarked_parity

    if model.spec.gate is not Gate.NEIGHBOURHOOD or request.precision is Precision.INT8:
        return None
    traced = trace_onnx(model, request.contract.height, request.contract.width, gate_operator=True)
    names = {node.name for node in traced.model.graph.node}
    # A layer inside a gate cannot be kept in float32 where the gate is one operator.
    if not has_gates(traced.model) or any(layer.name not in names for layer in kept):
        return None
    if request.compare:
        parity = unmarked_parity(traced.model, parity_inputs(request), traced.junctions)
        require_parity([parity], "the ONNX graph with gates as operators")
    half = request.precision is Precision.FP16
    typed = convert_fp16(traced.model, [layer.name for layer in kept]) if half else traced.model
    return _write(request.directory / "gated.onnx", typed)


def break_fusions(graphs: GraphSet) -> None:
    """Rewrite every file of a set so that no engine fuses across a skip junction; see `add_barriers`."""
    from unetx_exporters.onnx.barriers import add_barriers

    onnx = require("onnx", purpose="rewriting a graph")
    for path in graphs.files:
        _write(path, add_barriers(onnx.load(path), graphs.junctions))


def parity_inputs(request: GraphRequest) -> Sequence[NDArray[np.float32]]:
    """Make what graphs and engines are compared on: a batch of noise, and images (1, C, H, W)."""
    contract = request.contract
    generator = np.random.Generator(np.random.PCG64(request.seed))
    low, high = contract.value_range
    # A batch of two shows an engine that mixes images up.
    noise = generator.uniform(low, high, (2, contract.channels, contract.height, contract.width))
    images = request.images or phantom_gate_images(_PARITY_COUNT, contract.height, _PROBE_SEED)
    real = [images.read(index) for index in range(min(_PARITY_COUNT, len(images)))]
    prepared = [prepare_image(image.pixels, contract, image.spacing_mm)[0][np.newaxis] for image in real]
    return [noise.astype(np.float32), *prepared]


def choose_kept(graph: onnx.ModelProto, request: GraphRequest) -> tuple[KeptLayer, ...]:
    """Choose the layers that float16 cannot hold, on phantoms that no gate uses; by their kind where none may run."""
    from unetx_exporters.onnx.precision import HalfLimits, choose_fp32_nodes, unfit_for_fp16

    if not request.compare:
        return tuple(KeptLayer(name=name, reason=reason) for name, reason in unfit_for_fp16(graph).items())
    probes = phantom_gate_images(_PROBE_COUNT, request.contract.height, _PROBE_SEED)
    images = [prepare_image(probe.pixels, request.contract)[0][np.newaxis] for probe in probes]
    choice = choose_fp32_nodes(graph, images, HalfLimits(logit_error=request.logit_error))
    reasons = {node.name: node.reason for node in choice.nodes}
    return tuple(
        KeptLayer(name=name, reason=reasons.get(name) or "between layers that are kept") for name in choice.keep_fp32
    )


def _count_operations(graph: onnx.ModelProto, spec: ModelSpec, contract: InputContract) -> Operations:
    from unetx_exporters.onnx.operations import count_operations

    own = count_operations(graph, contract.height, contract.width)
    baseline_spec = variant_spec(
        "unet",
        width=spec.width,
        depth=spec.depth,
        in_channels=spec.in_channels,
        num_classes=spec.num_classes,
        upsampling=spec.upsampling,
    )
    baseline_flop = (
        own.total_flop if spec == baseline_spec else _count_flop(baseline_spec, contract.height, contract.width)
    )
    return Operations(
        flop=own.total_flop,
        baseline_flop=baseline_flop,
        ratio=own.total_flop / baseline_flop,
        by_type=dict(own.by_op_type),
        parameters=own.parameters,
    )


@functools.cache
def _count_flop(spec: ModelSpec, height: int, width: int) -> int:
    """Trace a model with random weights, and count its operations."""
    from unetx_exporters.onnx.operations import count_operations
    from unetx_exporters.onnx.trace import trace_onnx
    from unetx_opt.models.unet import build_model

    return count_operations(trace_onnx(build_model(spec), height, width).model, height, width).total_flop


def _write(path: Path, graph: onnx.ModelProto) -> Path:
    path.write_bytes(graph.SerializeToString(deterministic=True))
    return path
