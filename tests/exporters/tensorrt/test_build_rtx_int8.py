"""TensorRT-RTX engines of quantized graphs, really built without a GPU: which layers are int8, which cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_exporters.evaluation import open_graph
from unetx_exporters.quantize.insert import QuantizePlan, insert_qdq, planned_types
from unetx_exporters.quantize.ranges import TensorRange
from unetx_exporters.quantize.tensors import Flow, list_tensors
from unetx_exporters.request import BuildRequest
from unetx_exporters.tensorrt.build import build_tensorrt_rtx, judged_graph
from unetx_opt.errors import ExportError

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx builds these engines")
onnx = pytest.importorskip("onnx")


def unet_of(tiny_unet: Callable[..., Any]) -> Any:
    model = tiny_unet("float32")
    model.opset_import[0].version = 19  # the first whose QuantizeLinear takes float16
    return model


@pytest.fixture
def int8_request(
    make_request: Callable[..., BuildRequest], tiny_unet: Callable[..., Any], tmp_path: Path
) -> BuildRequest:
    model = unet_of(tiny_unet)
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    plan = QuantizePlan("tensorrt", dict.fromkeys(layers, "int8"))
    ranges = {name: TensorRange(-2.0, 2.0, "min-max", 0.0) for name in list_tensors(Flow(model))}
    fp32 = tmp_path / "fp32.onnx"
    fp32.write_bytes(model.SerializeToString())
    request = make_request("int8", insert_qdq(model, ranges, plan))
    return dataclasses.replace(request, graph_fp32=fp32, layer_types=planned_types(model, plan))


@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_every_convolution_is_int8_and_a_transposed_one_is_not(int8_request: BuildRequest, capability: str) -> None:
    request = dataclasses.replace(int8_request, compute_capabilities=(capability,))
    (record,) = build_tensorrt_rtx(request)
    assert record.compute_capabilities == (capability,)
    assert (record.compute_dtype, record.storage_dtype) == ("int8", "int8")
    assert dict(record.layers) == {
        "down": "int8",
        "bottom": "int8",
        "up": "float16",
        "merge": "int8",
        "head": "int8",
    }


def test_on_turing_every_convolution_is_an_int8_matrix_product(int8_request: BuildRequest) -> None:
    request = dataclasses.replace(int8_request, compute_capabilities=("7.5", "8.6"))
    ampere, turing = build_tensorrt_rtx(request)
    assert (ampere.compute_capabilities, turing.compute_capabilities) == (("8.6",), ("7.5",))
    assert turing.settings["convolutions"] == "matrix products"
    assert "convolutions" not in ampere.settings
    assert dict(turing.layers) == dict(ampere.layers) == dict(request.layer_types)
    assert (turing.compute_dtype, turing.storage_dtype) == ("int8", "int8")


def test_a_convolution_that_turing_cannot_have_in_int8_is_named(int8_request: BuildRequest) -> None:
    model = onnx.load(int8_request.graph)
    down = next(node for node in model.graph.node if node.name == "down")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantized = next(node for node in model.graph.node if node.output[0] == down.input[1])
    codes = onnx.numpy_helper.to_array(stored[dequantized.input[0]])
    del down.attribute[:]
    down.attribute.extend(
        [onnx.helper.make_attribute("pads", [1, 1, 1, 1]), onnx.helper.make_attribute("strides", [2, 2])]
    )
    assert codes.shape[2:] == (3, 3)
    make = onnx.helper.make_node
    # Brought back to its size, so that the rest of the network fits.
    index = list(model.graph.node).index(down)
    sizes = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice")
    output, down.output[0] = down.output[0], "strided"
    model.graph.initializer.append(sizes)
    model.graph.node.insert(index + 1, make("Resize", ["strided", "", "twice"], [output], name="enlarge"))
    int8_request.graph.write_bytes(model.SerializeToString())
    request = dataclasses.replace(int8_request, compute_capabilities=("7.5",))
    with pytest.raises(ExportError, match=r"1 of 5 layers do not compute .*: down \(int8 asked, float16\)"):
        build_tensorrt_rtx(request)
    assert not list(request.directory.rglob("*.plan"))


def test_what_stands_for_an_engine_is_what_it_was_built_from(int8_request: BuildRequest) -> None:
    request = dataclasses.replace(int8_request, compute_capabilities=("7.5", "8.6"))
    ampere, turing = build_tensorrt_rtx(request)
    assert judged_graph(ampere, request.graph) == request.graph
    products = judged_graph(turing, request.graph)
    assert [node.op_type for node in onnx.load(products).graph.node].count("MatMul") == 4
    image = np.random.default_rng(0).normal(0, 1, (1, 1, 32, 32)).astype(np.float32)
    with open_graph(request.graph) as convolutions, open_graph(products) as matrices:
        expected, found = convolutions(image), matrices(image)
    # The sums are the same; the bias is added before float16 rounds them in one, and after it in the other.
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())
    assert np.median(np.abs(found - expected)) <= 2e-3 * np.abs(expected).max()


def test_a_float16_layer_between_int8_ones_stays_float16(
    int8_request: BuildRequest, tiny_unet: Callable[..., Any]
) -> None:
    model = unet_of(tiny_unet)
    types = {"down": "int8", "bottom": "float16", "merge": "int8", "head": "float16"}
    plan = QuantizePlan("tensorrt", types)
    ranges = {name: TensorRange(-2.0, 2.0, "min-max", 0.0) for name in list_tensors(Flow(model))}
    int8_request.graph.write_bytes(insert_qdq(model, ranges, plan).SerializeToString())
    asked = planned_types(model, plan)
    request = dataclasses.replace(int8_request, layer_types=asked, compute_capabilities=("8.9",))
    (record,) = build_tensorrt_rtx(request)
    assert dict(record.layers) == asked
    assert np.unique(list(record.layers.values())).tolist() == ["float16", "int8"]
