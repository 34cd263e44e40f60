"""The integer form computes the same bits, and ONNX Runtime runs on integers what it did not before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_exporters.onnxruntime.build import build_onnxruntime_cpu
from unetx_exporters.onnxruntime.integer_form import integer_form
from unetx_exporters.openvino.build import build_openvino_cpu
from unetx_exporters.quantize.insert import QuantizePlan, insert_qdq, planned_types
from unetx_exporters.quantize.ranges import TensorRange
from unetx_exporters.request import BuildRequest
from unetx_opt.errors import ExportError
from unetx_opt.specs import Precision

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

LAYERS = ("down", "bottom", "up", "merge", "head")
#: Of `tiny_unet` on values from 0 to 1, roughly; "up" reaches below 0, so that the shared zero point is not 0.
RANGES = {
    "image": TensorRange(0.0, 1.0, "min-max", 0.0),
    "down.relu.out": TensorRange(0.0, 1.5, "min-max", 0.0),
    "bottom.relu.out": TensorRange(0.0, 2.0, "min-max", 0.0),
    "up.out": TensorRange(-1.0, 1.2, "min-max", 0.0),
    "merge.relu.out": TensorRange(0.0, 2.5, "min-max", 0.0),
}


def quantized(model: Any, *float_layers: str) -> Any:
    types = {name: "float32" if name in float_layers else "int8" for name in LAYERS}
    return insert_qdq(model, RANGES, QuantizePlan("cpu", types))


def session_of(model: Any, path: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if path is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(path)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kept", [(), ("bottom",), ("down", "merge")], ids=["all int8", "one float", "two float"])
def test_the_form_computes_the_same_bits(tiny_unet: Callable[..., Any], kept: tuple[str, ...]) -> None:
    model = quantized(tiny_unet(), *kept)
    images = np.random.default_rng(4).random((3, 1, 32, 32), np.float32)
    before, after = (session_of(graph).run(None, {"image": images})[0] for graph in (model, integer_form(model)))
    np.testing.assert_array_equal(before, after)


def test_poolings_concatenations_and_the_layers_behind_them_run_on_integers(
    tiny_unet: Callable[..., Any], tmp_path: Path
) -> None:
    model = quantized(tiny_unet())
    counts = []
    for name, graph in (("before", model), ("after", integer_form(model))):
        session_of(graph, tmp_path / f"{name}.onnx")
        counts.append(Counter(node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node))
    before, after = counts
    assert after["QLinearConv"] == 3
    assert before["QLinearConv"] < 3
    pooled = next(node for node in integer_form(model).graph.node if node.op_type == "MaxPool")
    assert pooled.input[0].endswith(".quantized")


def test_what_does_not_lie_on_one_grid_is_left_alone(tiny_unet: Callable[..., Any]) -> None:
    model = quantized(tiny_unet())
    concat = next(node for node in model.graph.node if node.op_type == "Concat")
    other = next(n for n in model.graph.node if n.name == concat.input[1].replace(".dequantized", ".dequantize"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.02, np.float32), "another"))
    other.input[1] = "another"
    formed = {node.name: node for node in integer_form(model).graph.node}
    assert all(name.endswith(".dequantized") for name in formed[concat.name].input)


@pytest.fixture
def request_of(tiny_unet: Callable[..., Any], tmp_path: Path) -> Callable[..., BuildRequest]:
    def make(*float_layers: str) -> BuildRequest:
        fp32, graph = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
        fp32.write_bytes(tiny_unet().SerializeToString())
        graph.write_bytes(quantized(tiny_unet(), *float_layers).SerializeToString())
        types = {name: "float32" if name in float_layers else "int8" for name in LAYERS}
        return BuildRequest(
            graph_fp32=fp32,
            graph=graph,
            graph_stored=fp32,
            precision=Precision.INT8,
            directory=tmp_path / "bundle",
            layer_types=planned_types(tiny_unet(), QuantizePlan("cpu", types)),
        )

    return make


def test_onnxruntime_runs_in_int8_what_it_has_kernels_for_and_says_what_it_has_not(
    request_of: Callable[..., BuildRequest],
) -> None:
    (record,) = build_onnxruntime_cpu(request_of())
    assert record.compute_dtype == "int8"
    assert dict(record.layers) == {
        "down": "int8",
        "bottom": "int8",
        "up": "float32",  # a transposed convolution
        "merge": "int8",
        "head": "float32",  # its result is not 8-bit
    }


def test_openvino_runs_every_layer_in_int8(request_of: Callable[..., BuildRequest]) -> None:
    pytest.importorskip("openvino")
    for record in build_openvino_cpu(request_of()):
        assert record.compute_dtype == "int8"
        assert {name: record.layers[name] for name in LAYERS} == dict.fromkeys(LAYERS, "int8")


@pytest.mark.parametrize("build", [build_onnxruntime_cpu, build_openvino_cpu], ids=["onnxruntime", "openvino"])
def test_a_layer_kept_in_float_is_float_and_the_rest_int8(
    request_of: Callable[..., BuildRequest], build: Callable[..., Any]
) -> None:
    pytest.importorskip("openvino")
    record = build(request_of("down"))[0]
    assert record.layers["down"] == "float32"
    assert {record.layers[name] for name in ("bottom", "merge")} == {"int8"}


def test_onnxruntime_has_no_8_bit_kernel_for_a_layer_that_a_float_layer_reads(
    request_of: Callable[..., BuildRequest],
) -> None:
    (record,) = build_onnxruntime_cpu(request_of("bottom"))
    assert dict(record.layers) == dict.fromkeys(LAYERS, "float32") | {"merge": "int8"}


@pytest.mark.parametrize("build", [build_onnxruntime_cpu, build_openvino_cpu], ids=["onnxruntime", "openvino"])
def test_an_engine_that_is_mostly_float_is_refused_with_its_layers(
    request_of: Callable[..., BuildRequest], build: Callable[..., Any]
) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(ExportError, match=r"of the operations run in int8, expected 50% or more.*merge \(float32\)"):
        build(request_of("merge", "bottom", "up"))
