"""Typed float16 graphs and graphs that store float16: types, casts, names, and what cannot be float16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from unetx_exporters.onnx.graph import check, infer_types, mark_outputs, tensor_types
from unetx_exporters.onnx.precision import (
    convert_fp16,
    emulate_fp16,
    layer_types,
    store_fp16,
    store_int8,
    unfit_for_fp16,
)
from unetx_exporters.onnx.verify import GraphRunner, ParityLimit, junction_parity
from unetx_opt.errors import ExportError

VARIANTS = [
    pytest.param("unet", {}, id="unet"),
    pytest.param("attention", {}, id="neighbourhood"),
    pytest.param("attention", {"gate": "additive"}, id="additive-with-resize"),
]


def make_graph(
    nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray], output: str = "logits"
) -> onnx.ModelProto:
    """A graph from "image" (batch, 1, 4, 4) to an output of four axes."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "c", "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def conv_graph(first: np.ndarray, second: np.ndarray) -> onnx.ModelProto:
    """Two 1 x 1 convolutions with a ReLU between them."""
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["t0"], name="first"),
        helper.make_node("Relu", ["t0"], ["t1"], name="relu"),
        helper.make_node("Conv", ["t1", "w1"], ["logits"], name="second"),
    ]
    return make_graph(nodes, {"w0": first.astype(np.float32), "w1": second.astype(np.float32)})


def scalar_weight(value: float) -> np.ndarray:
    return np.full((1, 1, 1, 1), value, np.float32)


@pytest.mark.parametrize(("variant", "overrides"), VARIANTS)
def test_every_tensor_between_input_and_output_is_float16(
    trace: Callable[..., Any], variant: str, overrides: dict[str, Any]
) -> None:
    traced = trace(variant, **overrides)[1]
    typed = convert_fp16(traced.model)
    check(typed)
    types = tensor_types(infer_types(typed))
    assert types.pop("image") == types.pop("logits") == TensorProto.FLOAT
    scales = {node.input[2] for node in typed.graph.node if node.op_type == "Resize"}
    singles = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    assert singles <= scales  # ONNX allows no other type there
    assert [node.op_type for node in typed.graph.node].count("Cast") == 2
    assert set(layer_types(typed).values()) == {"float16"}
    assert {name: types[name] for name in traced.junctions} == dict.fromkeys(traced.junctions, TensorProto.FLOAT16)


@pytest.mark.parametrize(("variant", "overrides"), VARIANTS)
@given(data=st.data())
def test_any_choice_of_nodes_gives_a_typed_graph_with_no_cast_twice(
    trace: Callable[..., Any], variant: str, overrides: dict[str, Any], data: st.DataObject
) -> None:
    traced = trace(variant, **overrides)[1]
    names = [node.name for node in traced.model.graph.node]
    keep = data.draw(st.sets(st.sampled_from(names)))

    typed = convert_fp16(traced.model, keep)

    computing = layer_types(typed)
    assert {name for name, kind in computing.items() if kind == "float32"} == keep & set(computing)
    casts = Counter((n.input[0], n.attribute[0].i) for n in typed.graph.node if n.op_type == "Cast")
    assert set(casts.values()) <= {1}
    node_names = [node.name for node in typed.graph.node]
    assert len(set(node_names)) == len(node_names)
    assert [name for name in node_names if name in names] == names
    types = tensor_types(typed)
    assert set(traced.junctions) <= set(types)
    assert types["image"] == types["logits"] == TensorProto.FLOAT
    weights = Counter(
        tensor.name.removesuffix(".float16").removesuffix(".float32") for tensor in typed.graph.initializer
    )
    assert max(weights.values()) <= 2


def test_keeping_every_node_in_float32_changes_nothing(trace: Callable[..., Any]) -> None:
    model = trace("attention")[1].model
    kept = convert_fp16(model, [node.name for node in model.graph.node])
    assert kept.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_converting_leaves_the_float32_graph_as_it_is(trace: Callable[..., Any]) -> None:
    model = trace()[1].model
    before = model.SerializeToString(deterministic=True)
    typed = [convert_fp16(model).SerializeToString(deterministic=True) for _ in range(2)]
    store_fp16(model)
    assert model.SerializeToString(deterministic=True) == before
    assert typed[0] == typed[1]


def test_a_junction_can_be_marked_in_every_converted_graph(trace: Callable[..., Any]) -> None:
    traced = trace("attention")[1]
    typed = convert_fp16(traced.model, ["decoder.1.block.conv1", "skip0.add"])
    for graph in (typed, emulate_fp16(typed), store_fp16(traced.model)):
        marked = mark_outputs(graph, traced.junctions)
        check(marked)
        assert [value.name for value in marked.graph.output] == ["logits", *traced.junctions]


def test_keeping_an_unknown_node_is_an_error(trace: Callable[..., Any]) -> None:
    with pytest.raises(ExportError, match=r"cannot keep encoder\.9\.conv1, tail in float32"):
        convert_fp16(trace()[1].model, ["tail", "encoder.9.conv1", "head"])


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        pytest.param(7e4, "beyond the largest float16", id="overflow"),
        pytest.param(65519.0, None, id="rounds-to-65504"),
        pytest.param(65520.0, "beyond the largest float16", id="rounds-to-infinity"),
        pytest.param(3e-5, "below the smallest normal float16", id="subnormal"),
        pytest.param(6.2e-5, None, id="smallest-normal"),
        pytest.param(0.0, None, id="all-zero"),
        pytest.param(float("nan"), "not finite", id="nan"),
    ],
)
def test_a_weight_that_float16_cannot_hold_keeps_its_node_in_float32(weight: float, reason: str | None) -> None:
    model = conv_graph(scalar_weight(weight), scalar_weight(1.0))
    found = unfit_for_fp16(model)
    assert list(found) == ([] if reason is None else ["first"])
    assert reason is None or reason in found["first"]
    expected = "float16" if reason is None else "float32"
    types = layer_types(convert_fp16(model))
    assert types == {"first": expected, "relu": "float16", "second": "float16"}
    stored = {tensor.name: tensor.data_type for tensor in store_fp16(model).graph.initializer}
    assert stored["w1"] == TensorProto.FLOAT  # a scalar stays as it is: nothing is saved


def test_one_small_weight_beside_a_large_one_is_no_reason() -> None:
    weight = np.array([1e-6, 1.0], np.float32).reshape(2, 1, 1, 1)
    assert unfit_for_fp16(conv_graph(weight, np.ones((1, 2, 1, 1)))) == {}


def test_a_weight_that_nodes_of_both_types_read_is_stored_in_both() -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["t0"], name="first"),
        helper.make_node("Conv", ["t0", "w"], ["logits"], name="second"),
    ]
    typed = convert_fp16(make_graph(nodes, {"w": scalar_weight(0.1)}), ["second"])
    kinds = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    assert kinds == {"w": TensorProto.FLOAT16, "w.float32": TensorProto.FLOAT}


def test_constants_shapes_and_casts_take_the_type_of_their_node() -> None:
    nodes = [
        helper.make_node("Constant", [], ["half"], name="half", value_float=0.5),
        helper.make_node("Constant", [], ["shape"], name="shape", value_ints=[1, 1, 4, 4]),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["ones"], name="ones", value=numpy_helper.from_array(np.ones(1, np.float32))
        ),
        helper.make_node("Greater", ["image", "half"], ["mask"], name="greater"),
        helper.make_node("Cast", ["mask"], ["number"], name="number", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "ones"], ["product"], name="mul"),
        helper.make_node("Where", ["mask", "product", "image"], ["logits"], name="where"),
    ]
    model = make_graph(nodes, {})
    image = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    expected = np.where(image > 0.5, 1.0, image).astype(np.float16)
    for keep in ((), ("number",), ("ones",), ("where", "greater")):
        typed = convert_fp16(model, keep)
        with GraphRunner(emulate_fp16(typed)) as runner:
            actual = runner.run(image)["logits"]
        np.testing.assert_array_equal(actual.astype(np.float16), expected, err_msg=str(keep))


def test_a_layer_between_dequantize_nodes_is_reported_as_int8() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"], name="dw"),
        helper.make_node("Conv", ["d", "dw"], ["logits"], name="conv"),
    ]
    weights = {"s": np.float32(0.01), "z": np.int8(0), "w": np.ones((1, 1, 1, 1), np.int8)}
    model = make_graph(nodes, {name: np.asarray(value) for name, value in weights.items()})
    assert layer_types(model) == {"conv": "int8"}
    assert layer_types(convert_fp16(model)) == {"conv": "int8"}


def test_an_operator_of_another_domain_stays_float32() -> None:
    model = conv_graph(scalar_weight(1.0), scalar_weight(1.0))
    model.graph.node[1].domain = "example"
    assert unfit_for_fp16(model) == {"relu": "operator of the domain example"}


@pytest.mark.parametrize(("variant", "overrides"), VARIANTS)
def test_stored_float16_weights_compute_float32_with_the_weights_of_the_float16_graph(
    trace: Callable[..., Any], variant: str, overrides: dict[str, Any]
) -> None:
    model, traced = trace(variant, **overrides)
    stored = store_fp16(traced.model)
    kinds = Counter(tensor.data_type for tensor in stored.graph.initializer if len(tensor.dims) > 1)
    assert TensorProto.FLOAT not in kinds
    assert set(layer_types(stored).values()) == {"float32"}
    image = np.random.default_rng(2).random((2, 1, 64, 64), np.float32)
    for row in junction_parity(model, stored, [image], traced.junctions, ParityLimit(1e-6, 2e-3)):
        assert row.passed, row
    rounded = onnx.ModelProto()
    rounded.CopyFrom(traced.model)
    for tensor in rounded.graph.initializer:
        if f"{tensor.name}.float16" in {t.name for t in stored.graph.initializer}:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with GraphRunner(stored) as first, GraphRunner(rounded) as second:
        np.testing.assert_array_equal(first.run(image)["logits"], second.run(image)["logits"])


def test_onnxruntime_folds_the_casts_of_stored_weights_at_load(trace: Callable[..., Any], tmp_path: Any) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    stored = store_fp16(trace()[1].model)
    ort.InferenceSession(stored.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx")
    assert "Cast" in {node.op_type for node in stored.graph.node}
    assert "Cast" not in {node.op_type for node in loaded.graph.node}
    assert {t.data_type for t in loaded.graph.initializer if len(t.dims) == 4} == {TensorProto.FLOAT}


@pytest.mark.parametrize(("variant", "overrides"), VARIANTS)
def test_weights_in_8_bits_are_within_half_a_step_of_their_channel_and_folded_at_load(
    trace: Callable[..., Any], tmp_path: Path, variant: str, overrides: dict[str, Any]
) -> None:
    _, traced = trace(variant, **overrides)
    stored = store_int8(traced.model, ["head"])
    sizes = Counter[int]()
    for tensor in stored.graph.initializer:
        sizes[tensor.data_type] += numpy_helper.to_array(tensor).size
    assert sizes[TensorProto.INT8] > 0.9 * sum(sizes.values())
    assert set(layer_types(stored).values()) == {"float32"}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(stored.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx").graph
    assert "Cast" not in {node.op_type for node in loaded.node}
    assert TensorProto.INT8 not in {tensor.data_type for tensor in loaded.initializer}
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in stored.graph.initializer}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in traced.model.graph.initializer}
    layers = [node for node in traced.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    for node in layers:
        name = node.input[1]
        if node.name == "head":
            np.testing.assert_array_equal(held[name], weights[name])
            continue
        others = (1, 2, 3) if node.op_type == "Conv" else (0, 2, 3)
        step = np.abs(weights[name]).max(axis=others, keepdims=True) / 127
        restored = held[f"{name}.int8"].astype(np.float32) * held[f"{name}.scale"]
        assert np.all(np.abs(restored - weights[name]) <= 0.501 * step)


def test_weights_that_two_layers_read_stay_as_they_are() -> None:
    model = conv_graph(scalar_weight(1.0), scalar_weight(1.0))
    model.graph.node[2].input[1] = "w0"
    assert {tensor.data_type for tensor in store_int8(model).graph.initializer} == {TensorProto.FLOAT}
