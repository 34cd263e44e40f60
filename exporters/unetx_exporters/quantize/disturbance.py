"""How much the logits of a float32 graph move when one of its tensors is rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.onnx.graph import INPUT_NAME, OUTPUT_NAME, infer_types, prune
from unetx_exporters.onnx.verify import GraphRunner
from unetx_exporters.quantize.grids import Grid, Quantizer
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="quantizing a graph")

__all__ = ["logit_errors"]

Range = tuple[float, float]

#: A candidate with this many times the least error so far is measured no further.
_BEATEN: Final = 1.5


def logit_errors(
    model: onnx.ModelProto,
    candidates: Mapping[str, Mapping[str, Range]],
    grid: Grid,
    images: Sequence[NDArray[np.float32]],
) -> dict[str, dict[str, float]]:
    """Measure the mean squared error of the logits for every candidate range of every tensor, one at a time.

    Parameters
    ----------
    model : onnx.ModelProto
        Float32 graph.
    candidates : mapping of str to mapping of str to (float, float)
        Tensor -> name of a candidate -> its range.
    grid : Grid
        Kind of 8-bit tensor.
    images : sequence of numpy.ndarray
        (1, C, H, W) float32, at least one.

    Returns
    -------
    dict of str to dict of str to float
        Tensor -> candidate -> error, the mean over images; infinite where the logits are not finite. A candidate
        that does much worse than another on the first images is left out.
    """
    with GraphRunner(model, keep_memory=False) as runner:
        expected = [runner.run(image)[OUTPUT_NAME] for image in images]
    typed = infer_types(model)
    return {
        name: _errors(typed, name, {key: grid.fit(*limits) for key, limits in methods.items()}, images, expected)
        for name, methods in candidates.items()
    }


def _errors(
    model: onnx.ModelProto,
    name: str,
    quantizers: Mapping[str, Quantizer],
    images: Sequence[NDArray[np.float32]],
    expected: Sequence[NDArray[np.float32]],
) -> dict[str, float]:
    sums = dict.fromkeys(quantizers, 0.0)
    rest = _behind(model, name)
    inputs = {value.name for value in rest.graph.input}
    with (
        GraphRunner(_before(model, name), keep_memory=False) as before,
        GraphRunner(rest, keep_memory=False) as behind,
    ):
        for image, logits in zip(images, expected, strict=True):
            values = image if name == INPUT_NAME else before.run(image)[name]
            for key in sums:
                rounded = quantizers[key].dequantize(quantizers[key].quantize(values))
                tensors = {INPUT_NAME: image, name: rounded}
                moved = behind.run_from({read: tensors[read] for read in inputs})[OUTPUT_NAME]
                sums[key] += float(np.mean((moved.astype(np.float64) - logits) ** 2))
            least = min(sums.values())
            sums = {key: total for key, total in sums.items() if not total > _BEATEN * least}
    return {key: total / len(images) if np.isfinite(total) else float("inf") for key, total in sums.items()}


def _before(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Give the graph up to a tensor."""
    first = onnx.ModelProto()
    first.CopyFrom(model)
    for value in model.graph.value_info:
        if value.name == name:
            del first.graph.output[:]
            first.graph.output.add().CopyFrom(value)
    prune(first)
    return first


def _behind(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Give the graph from a tensor on: the tensor is an input, and so is the image, for what bypasses it."""
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    if name == INPUT_NAME:
        return rest
    described = next(value for value in rest.graph.value_info if value.name == name)
    rest.graph.input.add().CopyFrom(described)
    for node in rest.graph.node:
        for index, made in enumerate(node.output):
            if made == name:
                node.output[index] = f"{name}.unused"
    prune(rest)
    used = {read for node in rest.graph.node for read in node.input}
    inputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in rest.graph.input if v.name in used]
    del rest.graph.input[:]
    rest.graph.input.extend(inputs)
    return rest
