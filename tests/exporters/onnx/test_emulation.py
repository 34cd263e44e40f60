"""Float16 on a CPU without float16: what ONNX Runtime does not do by itself, and the emulation does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from unetx_exporters.onnx.precision import convert_fp16, emulate_fp16
from unetx_exporters.onnx.verify import ParityLimit, junction_parity

LEVELS = [
    pytest.param(level, id=level.name)
    for level in (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    )
]


def chain(*steps: tuple[str, float | None]) -> onnx.ModelProto:
    """A float32 graph that applies operators one after the other, weights and constants being scalars."""
    nodes, weights, tensor = [], [], "image"
    for index, (operator, value) in enumerate(steps):
        inputs = [tensor]
        if value is not None:
            dims = (1, 1, 1, 1) if operator.startswith("Conv") else ()
            weights.append(numpy_helper.from_array(np.full(dims, value, np.float32), f"w{index}"))
            inputs.append(f"w{index}")
        tensor = "logits" if index == len(steps) - 1 else f"t{index}"
        nodes.append(helper.make_node(operator, inputs, [tensor], name=f"n{index}"))
    dims = ["batch", 1, 4, 4]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, dims)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def run(model: onnx.ModelProto, value: float, level: Any = None) -> float:
    options = ort.SessionOptions()
    options.graph_optimization_level = level or ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.full((1, 1, 4, 4), value, np.float32)})
    assert (logits == logits.flat[0]).all() or np.isnan(logits).all()
    return float(logits.flat[0])


# 1e5 between two convolutions; a float16 engine gives infinity.
OVERFLOW = chain(("Conv", 1e4), ("Relu", None), ("Conv", 10.0), ("Relu", None), ("Conv", 0.25))
# 1 + 0.0004 is 1 in float16, so that nothing is left after the subtraction.
ABSORBED = chain(("Add", 0.0004), ("Add", 0.0004), ("Sub", 1.0))


@pytest.mark.parametrize("level", LEVELS)
def test_onnxruntime_runs_a_float16_graph_without_rounding_between_its_nodes(level: Any) -> None:
    # The reason for the emulation. Should this fail, ONNX Runtime has learnt to compute in float16: then the
    # claim of the CPU target about its arithmetic must be looked at again.
    assert run(convert_fp16(OVERFLOW), 1.0, level) == 25000.0
    assert run(convert_fp16(ABSORBED), 1.0, level) == pytest.approx(0.0008, rel=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_the_emulation_overflows_and_rounds_at_every_optimization_level(level: Any) -> None:
    assert run(emulate_fp16(convert_fp16(OVERFLOW)), 1.0, level) == np.inf
    assert run(emulate_fp16(convert_fp16(ABSORBED)), 1.0, level) == 0.0


def test_a_node_kept_in_float32_neither_overflows_nor_rounds() -> None:
    assert run(emulate_fp16(convert_fp16(OVERFLOW, ["n2", "n3", "n4"])), 1.0) == 25000.0
    assert run(emulate_fp16(convert_fp16(ABSORBED, ["n0", "n1", "n2"])), 1.0) == pytest.approx(0.0008, rel=1e-3)
    # What leaves the kept node is rounded again by its reader.
    assert run(emulate_fp16(convert_fp16(OVERFLOW, ["n2"])), 1.0) == np.inf


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(65519.0, 65504.0, id="rounds-down-to-the-largest"),
        pytest.param(65520.0, np.inf, id="rounds-up-to-infinity"),
        pytest.param(2049.0, 2048.0, id="tie-to-even-below"),
        pytest.param(2051.0, 2052.0, id="tie-to-even-above"),
        pytest.param(2.0**-24, 2.0**-24, id="smallest-subnormal"),
        pytest.param(2.0**-26, 0.0, id="flushed"),
        pytest.param(-1e5, -np.inf, id="negative-overflow"),
    ],
)
def test_the_emulation_rounds_as_ieee_binary16(value: float, expected: float) -> None:
    assert run(emulate_fp16(convert_fp16(chain(("Identity", None), ("Mul", 1.0)))), value) == expected


def test_the_emulation_equals_numpy_float16_node_by_node() -> None:
    model = chain(("Mul", 0.3), ("Add", 7.1), ("Mul", -1.7), ("Relu", None), ("Sub", 0.03), ("Sigmoid", None))
    emulated = emulate_fp16(convert_fp16(model))
    for value in (-8.0, -4.4141, 0.1, 3.3):
        x = np.float16(value)
        for step in (lambda v: v * np.float16(0.3), lambda v: v + np.float16(7.1), lambda v: v * np.float16(-1.7)):
            x = step(x)
        x = np.maximum(x, np.float16(0)) - np.float16(0.03)
        expected = np.float16(1 / (1 + np.exp(-np.float64(x))))
        assert run(emulated, value) == pytest.approx(float(expected), abs=2.0**-11)


@pytest.mark.parametrize("variant", ["unet", "attention"])
def test_a_small_unet_in_emulated_float16_stays_close_to_the_module(trace: Callable[..., Any], variant: str) -> None:
    model, traced = trace(variant)
    images = [np.random.default_rng(seed).random((1, 1, 64, 64), np.float32) for seed in range(2)]
    emulated = emulate_fp16(convert_fp16(traced.model))
    rows = junction_parity(model, emulated, images, traced.junctions, ParityLimit(0.0, 5e-3))
    assert all(row.passed for row in rows), rows
    # It does round: a float32 graph is closer by two orders.
    assert min(row.rel for row in rows) > 1e-4
