"""Rewritings of a float32 graph that change none of its results and make it easier to hold in 8 bits.

- *Junctions*: the two sides of a concatenation share one scale. Where one side is much smaller, it would be left with
  few of the 256 values. The layer that makes it is multiplied by a power of two, and the weights that read it are
  divided by it: in floating point that changes nothing, not a single bit.
- *Cross-layer equalization* (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
  2019): between two layers with a rectifier, or nothing, each channel is scaled so that its weights reach equally far
  in both. Powers of two again, so that the float graph stays the same to the bit.

Neither is better for every model: whoever applies one measures both graphs and keeps the better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.quantize.ranges import TensorRange
from unetx_exporters.quantize.tensors import Flow
from unetx_exporters.quantize.weights import output_axis
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="quantizing a graph")

__all__ = ["equalize_channels", "equalize_junctions"]

#: Largest factor, as a power of two: beyond it a channel is dead, and is left alone.
_LARGEST: Final = 6


def equalize_junctions(model: onnx.ModelProto, ranges: Mapping[str, TensorRange]) -> onnx.ModelProto:
    """Bring the linear side of every concatenation to the size of the other side.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.
    ranges : mapping of str to TensorRange
        Of its tensors.

    Returns
    -------
    onnx.ModelProto
        A copy with other weights; the ranges of the tensors that were scaled are to be calibrated again.
    """
    scaled = _Weights(model)
    for node in scaled.flow.nodes.values():
        if node.op_type != "Concat":
            continue
        sources = scaled.flow.data_inputs(node)
        readers = scaled.flow.read_by.get(node.output[0], [])
        if not readers or not all(_is_convolution(scaled.flow, reader) for reader in readers):
            continue
        reaches = [_reach(ranges, source) for source in sources]
        for index, source in enumerate(sources):
            maker = scaled.flow.made_by.get(source)
            if maker is None or not _is_convolution(scaled.flow, maker) or len(scaled.flow.read_by[source]) != 1:
                continue
            factor = _power_of_two(max(reaches) / reaches[index] if reaches[index] > 0.0 else 1.0)
            scaled.scale(maker, readers, np.full(scaled.channels(maker), factor), scaled.offset(sources[:index]))
    return scaled.model


def equalize_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Scale every channel between two convolutions so that its weights reach equally far in both.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.

    Returns
    -------
    onnx.ModelProto
        A copy with other weights, to be calibrated again.
    """
    scaled = _Weights(model)
    for node in list(scaled.flow.nodes.values()):
        reader = _only_reader(scaled.flow, node)
        if reader is None or not (_is_convolution(scaled.flow, node) and _is_convolution(scaled.flow, reader)):
            continue
        first = np.abs(scaled.weights(node)).max(axis=_others(output_axis(node, 4)))
        second = np.abs(scaled.weights(reader)).max(axis=_others(_input_axis(reader)))
        usable = (first > 0.0) & (second > 0.0)
        ratio = np.where(usable, second / np.where(usable, first, 1.0), 1.0)
        scaled.scale(node, [reader], np.vectorize(_power_of_two)(np.sqrt(ratio)), 0)
    return scaled.model


class _Weights:
    """A copy of a graph whose weights are scaled."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.flow = Flow(self.model)
        self._stored = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def weights(self, node: onnx.NodeProto) -> NDArray[Any]:
        return np.asarray(onnx.numpy_helper.to_array(self._stored[node.input[1]]))

    def channels(self, node: onnx.NodeProto) -> int:
        return int(self.weights(node).shape[output_axis(node, 4)])

    def offset(self, names: list[str]) -> int:
        """Channels of tensors, as their makers have them."""
        total = 0
        for name in names:
            makers = [self.flow.made_by[name]]
            while not self.flow.is_layer(makers[-1]):
                makers.append(self.flow.made_by[self.flow.data_inputs(makers[-1])[0]])
            total += self.channels(makers[-1])
        return total

    def scale(self, maker: onnx.NodeProto, readers: list[onnx.NodeProto], factors: NDArray[Any], offset: int) -> None:
        """Multiply what a layer makes, and divide what reads it from channel `offset` on."""
        self._multiply(maker.input[1], factors, output_axis(maker, 4), 0)
        if len(maker.input) > 2:
            self._multiply(maker.input[2], factors, 0, 0)
        for reader in readers:
            self._multiply(reader.input[1], 1.0 / factors, _input_axis(reader), offset)

    def _multiply(self, name: str, factors: NDArray[Any], axis: int, offset: int) -> None:
        values = onnx.numpy_helper.to_array(self._stored[name]).copy()
        part = [slice(None)] * values.ndim
        part[axis] = slice(offset, offset + len(factors))
        shape = [1] * values.ndim
        shape[axis] = -1
        values[tuple(part)] *= factors.reshape(shape).astype(values.dtype)
        self._stored[name].CopyFrom(onnx.numpy_helper.from_array(values, name))


def _is_convolution(flow: Flow, node: onnx.NodeProto) -> bool:
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return flow.is_layer(node) and node.op_type in ("Conv", "ConvTranspose") and groups == 1


def _only_reader(flow: Flow, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The one node that reads a layer's result, behind a rectifier or a pooling if there is one."""
    if not node.output:
        return None
    name = node.output[0]
    while True:
        readers = flow.read_by.get(name, [])
        if len(readers) != 1:
            return None
        if readers[0].op_type not in ("Relu", "MaxPool"):
            return readers[0] if readers[0].input[0] == name else None
        name = readers[0].output[0]


def _input_axis(node: onnx.NodeProto) -> int:
    return 1 - output_axis(node, 4)


def _others(axis: int) -> tuple[int, ...]:
    return tuple(index for index in range(4) if index != axis)


def _reach(ranges: Mapping[str, TensorRange], name: str) -> float:
    return max(abs(ranges[name].low), abs(ranges[name].high)) if name in ranges else 0.0


def _power_of_two(factor: float) -> float:
    exponent = round(float(np.log2(factor))) if factor > 0.0 else 0
    return float(2.0 ** min(max(exponent, -_LARGEST), _LARGEST))
