"""Limits: a graph whose operations and bytes are counted by hand, and ceilings that hang together."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetx_bench.ceilings import Ceilings, measure_ceilings
from unetx_bench.roofline import LayerWork, count_work, place_under_roofline

CEILINGS = Ceilings("cpu", {"float32": 1e9, "int8": 4e9}, 1e9, 1, {})
LAYERS = (
    LayerWork("conv", "Conv", 8_000_000, 1_000_000, False),
    LayerWork("relu", "Relu", 100_000, 2_000_000, True),
    LayerWork("pool", "MaxPool", 1_000, 4_000_000, False),
)


def test_a_layer_needs_the_longer_of_its_two_times() -> None:
    roof = place_under_roofline(LAYERS, CEILINGS, "float32")
    assert roof is not None
    assert [(point.layer, point.bound, point.limit_ms) for point in roof.points] == [
        ("conv", "arithmetic", pytest.approx(8.0)),
        ("pool", "memory", pytest.approx(4.0)),
    ]
    assert roof.limit_ms == pytest.approx(12.0)
    assert roof.arithmetic_ms == pytest.approx(8.101)
    assert roof.bytes_moved == 5_000_000


def test_narrower_types_move_fewer_bytes() -> None:
    roof = place_under_roofline(LAYERS, CEILINGS, "int8")
    assert roof is not None
    assert roof.bytes_moved == 1_250_000
    assert roof.limit_ms == pytest.approx(2.0 + 1.0)


def test_without_a_measured_limit_there_is_no_roof() -> None:
    assert place_under_roofline(LAYERS, CEILINGS, "bfloat16") is None


def test_work_of_a_graph_counted_by_hand(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    import numpy as np

    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["middle"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["middle"], ["logits"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", floats, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", floats, ["N", 4, 8, 8])],
        [weight],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    conv, relu = count_work(path)
    assert (conv.flop, conv.bytes_float32, conv.fused) == (2 * 9 * 4 * 64, 4 * (64 + 36 + 256), False)
    assert (relu.flop, relu.bytes_float32, relu.fused) == (256, 4 * 512, True)


def test_measured_ceilings_are_positive_and_every_type_has_a_figure_or_a_reason() -> None:
    pytest.importorskip("openvino")
    found = measure_ceilings("cpu", threads=1, seconds=0.05)
    assert found.bytes_per_s > 0
    assert all(rate > 0 for rate in found.flop_per_s.values())
    assert {"float32", "bfloat16", "float16", "int8"} == set(found.flop_per_s) | set(found.why_not)
    assert "float32" in found.flop_per_s
