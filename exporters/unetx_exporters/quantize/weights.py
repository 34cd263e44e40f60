"""Weights of a layer as int8: symmetric, one scale for each output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.quantize.grids import SMALLEST_SCALE
from unetx_opt.errors import ExportError

if TYPE_CHECKING:
    import onnx

__all__ = ["ChannelWeights", "output_axis", "quantize_weights"]

_TOP: Final = 127


@dataclass(frozen=True, slots=True)
class ChannelWeights:
    """Quantized weights.

    Attributes
    ----------
    codes : numpy.ndarray
        int8, from -127 to 127, in the shape of the weights.
    scales : numpy.ndarray
        (channels,) float32; ``weights ~ codes * scales`` along `axis`.
    axis : int
        Axis of the output channels.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int

    def restored(self) -> NDArray[np.float32]:
        """The weights that a layer really computes with."""
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        values: NDArray[np.float32] = self.codes.astype(np.float32) * self.scales.reshape(shape)
        return values


def quantize_weights(node: onnx.NodeProto, weights: NDArray[Any]) -> ChannelWeights:
    """Quantize the weights of a layer.

    Parameters
    ----------
    node : onnx.NodeProto
        Conv, ConvTranspose, Gemm or MatMul.
    weights : numpy.ndarray
        Its stored weights.

    Raises
    ------
    ExportError
        A weight is not finite, or the layer is a grouped transposed convolution, whose output channels lie on no
        single axis.
    """
    if not np.isfinite(weights).all():
        raise ExportError(f"layer {node.name} has weights that are not finite: train the model again")
    axis = output_axis(node, weights.ndim)
    others = tuple(index for index in range(weights.ndim) if index != axis)
    magnitudes = np.abs(weights).max(axis=others)
    scales = np.maximum(magnitudes / np.float32(_TOP), np.float32(SMALLEST_SCALE)).astype(np.float32)
    shape = [1] * weights.ndim
    shape[axis] = -1
    codes = np.clip(np.rint(weights / scales.reshape(shape)), -_TOP, _TOP).astype(np.int8)
    return ChannelWeights(codes, scales, axis)


def output_axis(node: onnx.NodeProto, ndim: int) -> int:
    """Axis of a layer's weights along which its output channels lie.

    Raises
    ------
    ExportError
        There is none.
    """
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        if attributes.get("group", 1) != 1:
            raise ExportError(f"layer {node.name} is a grouped transposed convolution: keep it in floating point")
        return 1
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return ndim - 1
