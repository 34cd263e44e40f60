"""8-bit convolutions as 8-bit matrix products, for GPUs on which TensorRT-RTX has only the latter.

TensorRT-RTX 1.7 computes no convolution in 8 bits for compute capability 7.5, in whatever form it is written
(`unetx_bench.rtx_int8` lists those that were tried), but it does compute matrix products. A convolution is one: of a
matrix whose rows are the windows of the image, channels last, and one whose columns are the kernels.

The windows are copies. Per pixel, with a 3 x 3 kernel and C channels in and out, C bytes are read, 9 C written and
read again; the product writes 2 C in float16, which are read and quantized to C: 24 C in all, where a convolution in
float16 reads and writes 4 C. Unless the products themselves take most of the time, such an engine is the slower one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_exporters.onnx.graph import check, infer_types, producers, prune
from unetx_exporters.quantize.tensors import CARRIERS
from unetx_opt.optional import require

if TYPE_CHECKING:
    import onnx
else:
    onnx = require("onnx", purpose="writing convolutions as products")

__all__ = ["write_products"]

_TO_END: Final = np.iinfo(np.int64).max


def write_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write every 8-bit convolution of a graph as a matrix product.

    Parameters
    ----------
    model : onnx.ModelProto
        As `insert_qdq` gives it for the scheme "tensorrt".

    Returns
    -------
    onnx.ModelProto
        A copy with the same input, output and tensor names. The product carries the name of its convolution, and
        reads (N, H, W, window * C) int8 through one pair with the scale of the convolution's own input: padding is
        zero, which the grid holds exactly, so that both sum the same integers. A convolution in groups, with a stride
        other than 1, with automatic padding or of an image with other than two axes stays what it is.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    writer = _Writer(made.graph)
    nodes = [part for node in made.graph.node for part in writer.rewritten(node)]
    rewritten = onnx.GraphProto(node=nodes)
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(rewritten.node)
    made.graph.initializer.extend(writer.added.values())
    prune(made)
    typed = infer_types(made)
    check(typed)
    return typed


@dataclass(frozen=True, slots=True)
class _Convolution:
    """An 8-bit convolution: its node, the node of its weights, and the pair of its input."""

    node: onnx.NodeProto
    weights: onnx.NodeProto
    scales: tuple[str, str]
    codes: NDArray[np.int8]  # output channels, input channels, rows, columns
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.codes.shape[2:]

    @property
    def windows(self) -> tuple[Any, ...]:
        """What tells its windows from those of another convolution."""
        return (self.node.input[0], self.scales, self.kernel, self.dilations, self.pads)


class _Writer:
    """Rewrites nodes one by one; windows that two convolutions read are made once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.made_by = producers(graph)
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.added: dict[str, onnx.TensorProto] = {}
        self.windows: dict[tuple[Any, ...], str] = {}

    def rewritten(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Give what takes the place of a node: itself, if it is no 8-bit convolution."""
        layer = self._read(node)
        if layer is None:
            yield node
            return
        if layer.windows not in self.windows:
            self.windows[layer.windows] = f"{node.name}.windows.dequantized"
            yield from self._cut_windows(layer)
        yield from self._multiply(layer)

    def _read(self, node: onnx.NodeProto) -> _Convolution | None:
        weights = self.made_by.get(node.input[1]) if node.op_type == "Conv" else None
        if weights is None or weights.op_type != "DequantizeLinear":
            return None
        stored, scales = self.stored.get(weights.input[0]), self._scales_of(node.input[0])
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        is_plain = (
            attributes.get("group", 1) == 1
            and set(attributes.get("strides", ())) <= {1}
            and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        )
        if stored is None or len(stored.dims) != 4 or scales is None or not is_plain:
            return None
        codes = onnx.numpy_helper.to_array(stored)
        dilations = tuple(attributes.get("dilations", (1, 1)))
        pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
        return _Convolution(node, weights, scales, codes, dilations, pads)

    def _scales_of(self, name: str) -> tuple[str, str] | None:
        """Scale and zero point of the grid that a tensor lies on; None where it lies on none."""
        node = self.made_by.get(name)
        while node is not None and node.op_type in CARRIERS:
            node = self.made_by.get(node.input[0])  # what is concatenated shares one scale
        return (node.input[1], node.input[2]) if node is not None and node.op_type == "DequantizeLinear" else None

    def _cut_windows(self, layer: _Convolution) -> Iterator[onnx.NodeProto]:
        """Lay the values that a kernel meets side by side, channels last, and put them on the grid again."""
        name = layer.node.name
        tensor = f"{name}.channels_last"
        yield _make("Transpose", [layer.node.input[0]], tensor, perm=[0, 2, 3, 1])
        if any(layer.pads):
            half = len(layer.pads) // 2
            ends = [0, *layer.pads[:half], 0, 0, *layer.pads[half:], 0]
            sides = self._constant(f"{name}.padded.sides", np.array(ends))
            yield _make("Pad", [tensor, sides], f"{name}.padded")
            tensor = f"{name}.padded"
        parts = []
        axes = self._constant(f"{name}.axes", np.array([1, 2]))
        for tap in np.ndindex(*layer.kernel):
            first = np.array(tap) * layer.dilations
            # Counted from the end, so that the size of the image need not be known.
            behind = (np.array(tap) + 1 - layer.kernel) * layer.dilations
            part = f"{name}.tap{''.join(f'.{at}' for at in tap)}"
            limits = [
                self._constant(f"{part}.first", first),
                self._constant(f"{part}.behind", np.where(behind < 0, behind, _TO_END)),
            ]
            yield _make("Slice", [tensor, *limits, axes], part)
            parts.append(part)
        tensor = f"{name}.windows"
        yield _make("Concat", parts, tensor, axis=3)
        yield _make("QuantizeLinear", [tensor, *layer.scales], f"{tensor}.quantized")
        yield _make("DequantizeLinear", [f"{tensor}.quantized", *layer.scales], f"{tensor}.dequantized")

    def _multiply(self, layer: _Convolution) -> Iterator[onnx.NodeProto]:
        node, name = layer.node, layer.node.name
        # In the order of the windows: row, column, channel.
        columns = np.ascontiguousarray(layer.codes.transpose(2, 3, 1, 0).reshape(-1, len(layer.codes)))
        codes = self._constant(f"{name}.matrix.quantized", columns)
        yield _make("DequantizeLinear", [codes, *layer.weights.input[1:]], f"{name}.matrix", axis=1)
        tensor = f"{name}.product"
        yield onnx.helper.make_node("MatMul", [self.windows[layer.windows], f"{name}.matrix"], [tensor], name=name)
        if len(node.input) > 2:
            yield _make("Add", [tensor, node.input[2]], f"{name}.sum")
            tensor = f"{name}.sum"
        last = f"{name}.channels_first"
        yield onnx.helper.make_node("Transpose", [tensor], [node.output[0]], name=last, perm=[0, 3, 1, 2])

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self.added[name] = onnx.numpy_helper.from_array(values, name)
        return name


def _make(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Make a node that is called what it makes."""
    return onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
