"""Convolutions as matrix products: the same sums, whatever the kernel, the padding and the layers before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'unetx-opt[export]'")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'unetx-opt[cpu]'")

from unetx_exporters.tensorrt.products import write_products  # noqa: E402

SCALE = np.float32(2.0**-4)  # with weights of 2 ** -6, every sum is exact in float32


def network(layers: list[Any], constants: dict[str, NDArray[Any]], channels: int) -> Any:
    """Take ``image`` through a pair as ``x`` to ``y``, by `layers`."""
    constants = {"scale": SCALE, "zero": np.int8(0), **constants}
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["x8"], name="quantize"),
        onnx.helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["x"], name="dequantize"),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size, "h", "w"])
        for name, size in (("image", channels), ("y", None))
    ]
    stored = [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = onnx.helper.make_graph([*pair, *layers], "g", ends[:1], ends[1:], stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)


def convolution(
    name: str, source: str, output: str, codes: NDArray[np.int8], **attributes: Any
) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    constants = {
        f"{name}.w8": codes,
        f"{name}.scale": np.full(len(codes), 2.0**-6, np.float32),
        f"{name}.zero": np.zeros(len(codes), np.int8),
        f"{name}.bias": np.arange(len(codes), dtype=np.float32),
    }
    weights = [f"{name}.w8", f"{name}.scale", f"{name}.zero"]
    nodes = [
        onnx.helper.make_node("DequantizeLinear", weights, [f"{name}.w"], name=f"{name}.w", axis=0),
        onnx.helper.make_node("Conv", [source, f"{name}.w", f"{name}.bias"], [output], name=name, **attributes),
    ]
    return nodes, constants


def run(model: Any, image: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    # Pairs are then rounded and nothing more, on every CPU: integer kernels saturate on some.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": image})
    assert isinstance(result, np.ndarray)
    return result


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_product_gives_what_the_convolution_gives(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilations = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    channels, outputs, batch = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 2)))
    spans = [(side - 1) * step + 1 for side, step in zip(kernel, dilations, strict=True)]
    sides = [span + data.draw(st.integers(0, 5)) for span in spans]
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = random.integers(-127, 128, (outputs, channels, *kernel)).astype(np.int8)
    nodes, constants = convolution("c", "x", "y", codes, kernel_shape=kernel, dilations=dilations, pads=pads)
    model = network(nodes, constants, channels)
    written = write_products(model)
    assert "Conv" not in operators(written)
    assert [node.name for node in written.graph.node if node.op_type == "MatMul"] == ["c"]
    image = random.normal(0, 4, (batch, channels, *sides)).astype(np.float32)
    np.testing.assert_array_equal(run(written, image), run(model, image))


def test_the_grid_is_found_through_what_only_passes_values_on() -> None:
    random = np.random.default_rng(0)
    first = random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    second = random.integers(-127, 128, (2, 7, 3, 3)).astype(np.int8)
    make = onnx.helper.make_node
    nodes, constants = convolution("a", "x", "a.y", first, pads=[1, 1, 1, 1])
    between = [
        make("QuantizeLinear", ["a.y", "scale", "zero"], ["a8"], name="a8"),
        make("DequantizeLinear", ["a8", "scale", "zero"], ["a.x"], name="a.x"),
        make("Concat", ["a.x", "x"], ["both"], name="both", axis=1),
        make("MaxPool", ["both"], ["pooled"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    after, more = convolution("b", "pooled", "y", second, pads=[1, 1, 1, 1])
    model = network([*nodes, *between, *after], constants | more, 3)
    written = write_products(model)
    assert [node.name for node in written.graph.node if node.op_type == "MatMul"] == ["a", "b"]
    image = random.normal(0, 4, (2, 3, 12, 10)).astype(np.float32)
    np.testing.assert_array_equal(run(written, image), run(model, image))


def test_windows_that_two_layers_read_are_cut_once() -> None:
    codes = np.ones((2, 3, 3, 3), np.int8)
    nodes, constants = convolution("a", "x", "a.y", codes)
    others, more = convolution("b", "x", "b.y", -codes)
    added = onnx.helper.make_node("Add", ["a.y", "b.y"], ["y"], name="add")
    model = network([*nodes, *others, added], constants | more, 3)
    written = write_products(model)
    assert operators(written).count("Concat") == 1
    assert operators(written).count("MatMul") == 2
    image = np.random.default_rng(1).normal(0, 4, (1, 3, 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(run(written, image), run(model, image))


@pytest.mark.parametrize(
    ("channels", "attributes"), [(4, {"group": 2}), (2, {"strides": [2, 2]}), (2, {"auto_pad": "SAME_UPPER"})]
)
def test_what_is_no_plain_convolution_stays_one(channels: int, attributes: dict[str, Any]) -> None:
    nodes, constants = convolution("c", "x", "y", np.ones((4, 2, 3, 3), np.int8), **attributes)
    written = write_products(network(nodes, constants, channels))
    assert "Conv" in operators(written)
    assert "MatMul" not in operators(written)


def test_a_convolution_that_reads_no_grid_stays_one() -> None:
    nodes, constants = convolution("c", "image", "y", np.ones((4, 3, 3, 3), np.int8))
    assert "MatMul" not in operators(write_products(network(nodes, constants, 3)))


def test_the_graph_that_was_given_is_left_as_it_is() -> None:
    nodes, constants = convolution("c", "x", "y", np.ones((1, 1, 3, 3), np.int8))
    model = network(nodes, constants, 1)
    before = model.SerializeToString(deterministic=True)
    write_products(model)
    assert model.SerializeToString(deterministic=True) == before
