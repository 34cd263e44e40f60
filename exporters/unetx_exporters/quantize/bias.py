"""Bias correction: rounded weights shift the mean of what a layer computes, and a bias can take the shift back.

With the mean ``E[x]`` of what a layer reads, rounding its weights from ``W`` to ``Wq`` shifts the mean of its result
by ``(Wq - W) E[x]`` for each output channel, away from the border of the image (Nagel et al. 2019, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.onnx.graph import INPUT_NAME
from unetx_exporters.onnx.verify import GraphRunner
from unetx_exporters.quantize.fold import fold_factors
from unetx_exporters.quantize.tensors import Flow
from unetx_exporters.quantize.weights import output_axis, quantize_weights
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="quantizing a graph")

__all__ = ["bias_shifts"]


def bias_shifts(model: onnx.ModelProto, images: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Say what to add to the bias of each convolution once its weights are int8.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.
    images : sequence of numpy.ndarray
        (1, C, H, W) float32, at least one; the means are taken over them.

    Returns
    -------
    dict of str to numpy.ndarray
        Layer -> (output channels,) float32.
    """
    folded = fold_factors(model)
    flow = Flow(folded)
    layers = [n for n in flow.nodes.values() if flow.is_layer(n) and n.op_type in ("Conv", "ConvTranspose")]
    means = _input_means(folded, sorted({node.input[0] for node in layers}), images)
    shifts = {}
    for node in layers:
        weights = onnx.numpy_helper.to_array(flow.stored[node.input[1]])
        mean = means[node.input[0]]
        difference = weights - quantize_weights(node, weights).restored()
        axis = output_axis(node, weights.ndim)
        if difference.shape[1 - axis] != len(mean):
            continue  # in groups: each output channel reads a part of the input only
        # A transposed convolution whose stride is its size writes each pixel with one tap, so that taps average.
        taps = difference.mean(axis=(2, 3)) if node.op_type == "ConvTranspose" else difference.sum(axis=(2, 3))
        shifts[node.name] = np.asarray(np.tensordot(taps, mean, axes=(1 - axis, 0)), np.float32)
    return shifts


def _input_means(
    model: onnx.ModelProto, names: Sequence[str], images: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[np.float64]]:
    sums = {name: np.zeros(1) for name in names}
    with GraphRunner(model, outputs=[name for name in names if name != INPUT_NAME], keep_memory=False) as runner:
        for image in images:
            tensors = {INPUT_NAME: image, **runner.run(image)}
            for name in names:
                sums[name] = sums[name] + tensors[name].mean(axis=(0, 2, 3), dtype=np.float64)
    return {name: total / len(images) for name, total in sums.items()}
