"""U-Nets as ONNX models with random weights, without torch: float32 outside, one type inside."""

from __future__ import annotations

from typing import Any

import numpy as np


class GraphWriter:
    """Collects the nodes and weights of a graph; each node is named, and its output after it."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def node(self, operation: str, name: str, *inputs: str, **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(operation, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def weight(self, name: str, *shape: int) -> str:
        import onnx

        values = self.rng.standard_normal(shape, dtype=np.float32) * np.sqrt(2 * shape[0] / np.prod(shape))
        self.tensors.append(onnx.numpy_helper.from_array(values.astype(self.dtype), f"{name}.weight"))
        return f"{name}.weight"

    def convolution(self, name: str, x: str, into: int, out: int, side: int = 3) -> str:
        return self.node("Conv", name, x, self.weight(name, out, into, side, side), pads=[side // 2] * 4)

    def rectified(self, name: str, x: str, into: int, out: int) -> str:
        return self.node("Relu", f"{name}.relu", self.convolution(name, x, into, out))

    def pooled(self, name: str, x: str) -> str:
        return self.node("MaxPool", name, x, kernel_shape=[2, 2], strides=[2, 2])

    def raised(self, name: str, x: str, into: int, out: int) -> str:
        return self.node("ConvTranspose", name, x, self.weight(name, into, out, 2, 2), strides=[2, 2])

    def model(self, size: int) -> Any:
        """Finish the graph; float32 needs no conversion at its ends."""
        import onnx

        if self.dtype != "float32":
            self.node("Cast", "widen", self.nodes[-1].output[0], to=onnx.TensorProto.FLOAT)
        self.nodes[-1].output[0] = "logits"
        values = [onnx.helper.make_tensor_value_info(name, 1, ["N", 1, size, size]) for name in ("image", "logits")]
        graph = onnx.helper.make_graph(self.nodes, "unet", values[:1], values[1:], self.tensors)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        return model

    def image(self) -> str:
        import onnx

        if self.dtype == "float32":
            return "image"
        return self.node("Cast", "narrow", "image", to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))


def tiny_unet(dtype: str = "float32") -> Any:
    """Make one level with 4 and 8 channels for 32 x 32 pixels: down, bottom, up, merge, head."""
    writer = GraphWriter(dtype)
    skip = writer.rectified("down", writer.image(), 1, 4)
    deep = writer.rectified("bottom", writer.pooled("pool", skip), 4, 8)
    joined = writer.node("Concat", "join", skip, writer.raised("up", deep, 8, 4), axis=1)
    writer.convolution("head", writer.rectified("merge", joined, 8, 4), 4, 1, side=1)
    return writer.model(32)


def make_unet(*, width: int, depth: int, size: int, dtype: str) -> Any:
    """Make the usual U-Net: two convolutions per stage, transposed convolutions, concatenated skips."""
    writer = GraphWriter(dtype)
    x, skips = writer.image(), []
    for stage in range(depth + 1):
        if stage:
            skips.append(x)
            x = writer.pooled(f"pool{stage}", x)
        x = writer.rectified(f"down{stage}.a", x, width << (stage - 1) if stage else 1, width << stage)
        x = writer.rectified(f"down{stage}.b", x, width << stage, width << stage)
    for stage in reversed(range(depth)):
        channels = width << stage
        raised = writer.raised(f"up{stage}", x, 2 * channels, channels)
        x = writer.node("Concat", f"join{stage}", skips[stage], raised, axis=1)
        x = writer.rectified(f"merge{stage}.a", x, 2 * channels, channels)
        x = writer.rectified(f"merge{stage}.b", x, channels, channels)
    writer.convolution("head", x, width, 1, side=1)
    return writer.model(size)
