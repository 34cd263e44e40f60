"""Counted operations: against PyTorch's own counter, and against small cases worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from unetx_exporters.onnx.operations import count_operations
from unetx_exporters.onnx.precision import convert_fp16, store_fp16
from unetx_exporters.onnx.trace import trace_onnx
from unetx_opt.errors import ExportError


def single(
    node: onnx.NodeProto, initializers: dict[str, np.ndarray], dims: list[Any] | None = None
) -> onnx.ModelProto:
    """A graph of one node from "image" to "logits"."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "single",
        [helper.make_tensor_value_info("image", kind, dims or ["batch", 2, 6, 8])],
        [helper.make_tensor_value_info("logits", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def zeros(*dims: int) -> np.ndarray:
    return np.zeros(dims, np.float32)


CASES = [
    # 3 output channels of 6 x 8 pixels, each a sum of 2 x 3 x 3 products.
    pytest.param("Conv", {"w": zeros(3, 2, 3, 3), "b": zeros(3)}, {"pads": [1] * 4}, 2 * 3 * 48 * 18, id="conv"),
    pytest.param("Conv", {"w": zeros(3, 2, 3, 3)}, {"strides": [2, 2]}, 2 * 3 * 2 * 3 * 18, id="strided-unpadded"),
    pytest.param("Conv", {"w": zeros(4, 1, 3, 3)}, {"group": 2, "pads": [1] * 4}, 2 * 4 * 48 * 9, id="grouped"),
    pytest.param(
        "Conv", {"w": zeros(3, 2, 3, 3)}, {"dilations": [2, 2], "pads": [2] * 4}, 2 * 3 * 48 * 18, id="dilated"
    ),
    # Every one of 2 x 6 x 8 inputs is multiplied with 5 x 2 x 2 weights.
    pytest.param("ConvTranspose", {"w": zeros(2, 5, 2, 2)}, {"strides": [2, 2]}, 2 * 96 * 20, id="transposed"),
    # (6, 8) x (8, 5), twice.
    pytest.param("MatMul", {"w": zeros(8, 5)}, {}, 2 * 2 * 6 * 8 * 5, id="matmul"),
    pytest.param("MaxPool", {}, {"kernel_shape": [2, 2], "strides": [2, 2]}, 2 * 3 * 4 * 4, id="maxpool"),
    pytest.param("Relu", {}, {}, 96, id="relu"),
    pytest.param("Add", {"b": zeros(2, 1, 1)}, {}, 96, id="add-broadcast"),
    pytest.param("Sigmoid", {}, {}, 4 * 96, id="sigmoid"),
    pytest.param("Softmax", {}, {"axis": 1}, 5 * 96, id="softmax"),
    pytest.param("ReduceSum", {"axes": np.array([1])}, {"keepdims": 1}, 96, id="reduce-sum"),
    pytest.param(
        "Resize",
        {"roi": zeros(0), "scales": np.array([1, 1, 2, 2], np.float32)},
        {"mode": "linear"},
        7 * 2 * 12 * 16,
        id="resize-linear",
    ),
    pytest.param("Transpose", {}, {"perm": [0, 2, 3, 1]}, 0, id="transpose"),
]


@pytest.mark.parametrize(("operator", "weights", "attributes", "flop"), CASES)
def test_a_single_operator_counts_as_worked_out_by_hand(
    operator: str, weights: dict[str, np.ndarray], attributes: dict[str, Any], flop: int
) -> None:
    node = helper.make_node(operator, ["image", *weights], ["logits"], name="layer", **attributes)
    model = single(node, weights)
    count = count_operations(model, 6, 8)
    assert count.total_flop == flop
    assert dict(count.by_layer) == ({"layer": flop} if flop else {})
    assert count_operations(model, batch=3).total_flop == 3 * flop


def test_a_gemm_counts_its_inner_axis_whichever_way_it_lies() -> None:
    weights = {"w": zeros(5, 6)}
    node = helper.make_node("Gemm", ["image", "w"], ["logits"], name="gemm", transA=1, transB=1)
    graph = single(node, weights)
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    del dims[:]
    for value in (6, 7, 1, 1):
        dims.add().dim_value = value
    # Gemm takes matrices only, so its input is reshaped first.
    graph.graph.node[0].input[0] = "matrix"
    reshape = helper.make_node("Reshape", ["image", "shape"], ["matrix"], name="reshape")
    nodes = onnx.GraphProto(node=[reshape, *graph.graph.node])
    del graph.graph.node[:]
    graph.graph.node.extend(nodes.node)
    graph.graph.initializer.append(numpy_helper.from_array(np.array([6, 7]), "shape"))
    assert count_operations(graph, batch=6).total_flop == 2 * 7 * 5 * 6


def test_bytes_are_those_of_every_tensor_read_and_written() -> None:
    node = helper.make_node("Conv", ["image", "w", "b"], ["logits"], name="layer", pads=[1] * 4)
    count = count_operations(single(node, {"w": zeros(3, 2, 3, 3), "b": zeros(3)}))
    assert count.bytes_moved == 4 * (96 + 54 + 3 + 144)
    assert count.parameters == 57


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        pytest.param("unet", {}, id="unet"),
        pytest.param("unet", {"upsampling": "bilinear", "num_classes": 3}, id="bilinear"),
        pytest.param("attention", {"gate": "additive"}, id="additive"),
        pytest.param("dilated", {"depth": 3}, id="dilated"),
        pytest.param("attention", {}, id="neighbourhood"),
    ],
)
def test_convolutions_of_every_variant_count_as_pytorch_counts_them(
    trace: Callable[..., Any], variant: str, overrides: dict[str, Any]
) -> None:
    model, traced = trace(variant, **overrides)
    count = count_operations(traced.model, 64, 64, batch=2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, model.spec.in_channels, 64, 64))
    convolutions = count.by_op_type["Conv"] + count.by_op_type.get("ConvTranspose", 0)
    assert convolutions == counter.get_total_flops()
    assert sum(count.by_layer.values()) == sum(count.by_op_type.values()) == count.total_flop


def test_precision_changes_the_bytes_and_not_the_operations(trace: Callable[..., Any]) -> None:
    model, traced = trace()
    single_count, half_count, stored_count = (
        count_operations(graph) for graph in (traced.model, convert_fp16(traced.model), store_fp16(traced.model))
    )
    assert single_count.by_layer == half_count.by_layer == stored_count.by_layer
    assert single_count.parameters == half_count.parameters == stored_count.parameters
    # Folding turns the two parameters per channel of a batch normalisation into one bias.
    norms = sum(m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert single_count.parameters == sum(p.numel() for p in model.parameters()) - norms
    assert 0.5 < half_count.bytes_moved / single_count.bytes_moved < 0.6


def test_the_default_graphs_take_24_and_19_gflop_at_512_pixels(make_model: Callable[..., Any]) -> None:
    counts = {
        variant: count_operations(trace_onnx(make_model(variant, width=16, depth=4), 512, 512).model, 512, 512)
        for variant in ("unet", "attention")
    }
    convolutions = {
        variant: count.by_op_type["Conv"] + count.by_op_type["ConvTranspose"] for variant, count in counts.items()
    }
    assert convolutions["unet"] == pytest.approx(24.1e9, rel=2e-3)
    assert convolutions["attention"] == pytest.approx(19.4e9, rel=2e-3)
    assert counts["unet"].total_flop < 1.01 * convolutions["unet"]
    assert counts["unet"].parameters == pytest.approx(1.94e6, rel=1e-2)
    # What the attention variant promises, everything that its gates compute included.
    assert counts["attention"].total_flop <= 0.85 * counts["unet"].total_flop


def test_another_size_than_the_traced_one_is_an_error(trace: Callable[..., Any]) -> None:
    with pytest.raises(ExportError, match="the graph's height is 64, got 128: trace the model at that size"):
        count_operations(trace()[1].model, 128, 64)


def test_an_operator_without_a_rule_is_an_error_and_not_zero() -> None:
    node = helper.make_node("Erf", ["image"], ["logits"], name="layer")
    with pytest.raises(ExportError, match=r"counts the operations of Erf \(node layer\)"):
        count_operations(single(node, {}))
