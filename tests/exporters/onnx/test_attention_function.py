"""The operator of the neighbourhood gate: its body by the float64 definition, in every engine that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from unetx_exporters.onnx.attention_function import attention_function, has_gates, inline_gates
from unetx_exporters.onnx.operations import count_operations
from unetx_exporters.onnx.precision.convert import convert_fp16, layer_types
from unetx_exporters.onnx.trace import OPSET, trace_onnx
from unetx_kernels.attention_gate import reference

ort = pytest.importorskip("onnxruntime")


def _one_gate(window: int, dilation: int, dtype: Any) -> onnx.ModelProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = {"theta": 5, "phi": 5, "values": 3}
    inputs = [onnx.helper.make_tensor_value_info(n, kind, ["n", c, "h", "w"]) for n, c in names.items()]
    output = onnx.helper.make_tensor_value_info("out", kind, ["n", 3, "h", "w"])
    attributes = {"window": window, "dilation": dilation, "scale": 5**-0.5}
    node = onnx.helper.make_node("AttentionGate", list(names), ["out"], name="gate", domain="unetx", **attributes)
    graph = onnx.helper.make_graph([node], "gate", inputs, [output])
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("unetx", 1)]
    functions = [attention_function(window, dilation, OPSET)]
    return onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def _run(model: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("window", "dilation"), [(3, 1), (5, 1), (7, 1), (3, 2), (5, 3)])
@pytest.mark.parametrize("size", [(9, 12), (2, 3), (1, 1)], ids=["image", "smaller than the window", "one pixel"])
def test_the_body_is_the_definition(window: int, dilation: int, size: tuple[int, int], dtype: Any) -> None:
    model = _one_gate(window, dilation, dtype)
    onnx.checker.check_model(model, full_check=True)
    random = np.random.default_rng(1)
    feeds = {name: random.normal(size=(2, c, *size)).astype(dtype) for name, c in (("theta", 5), ("phi", 5))}
    feeds["values"] = random.normal(size=(2, 3, *size)).astype(dtype)
    expected = reference.neighbourhood_gate(*feeds.values(), window, dilation=dilation)
    for graph in (model, inline_gates(model)):
        np.testing.assert_allclose(_run(graph, feeds), expected, atol=12 * np.finfo(dtype).eps)


@pytest.fixture(scope="module")
def traced(make_model: Any) -> tuple[Any, onnx.ModelProto]:
    model = make_model("attention")
    return model, trace_onnx(model, 24, 40, gate_operator=True).model


def test_a_model_traced_with_the_operator_computes_what_the_module_does(traced: Any) -> None:
    model, graph = traced
    assert [node.op_type for node in graph.graph.node if node.domain] == ["AttentionGate"] * len(
        [module for module in model.modules() if hasattr(module, "exports_operator")]
    )
    image = torch.rand(2, 1, 24, 40)
    with torch.no_grad():
        expected = model(image).numpy()
    plain = trace_onnx(model, 24, 40).model
    assert not has_gates(plain)
    assert not plain.functions
    for form in (graph, inline_gates(graph), plain):
        np.testing.assert_allclose(_run(form, {"image": image.numpy()}), expected, atol=1e-5)


def test_operations_are_counted_through_the_operator(traced: Any) -> None:
    model, graph = traced
    plain = count_operations(trace_onnx(model, 24, 40).model)
    # Where a gate has one hidden channel, the exporter drops the multiplication by a scale of 1.
    assert count_operations(graph).total_flop == pytest.approx(plain.total_flop, rel=0.001)


def test_the_operator_converts_to_float16(traced: Any) -> None:
    model, graph = traced
    half = convert_fp16(graph)
    assert {layer_types(half)[node.name] for node in half.graph.node if node.domain} == {"float16"}
    image = torch.rand(1, 1, 24, 40)
    with torch.no_grad():
        expected = model(image).numpy()
    np.testing.assert_allclose(_run(half, {"image": image.numpy()}), expected, atol=0.02)


def test_openvino_takes_the_inlined_body(traced: Any, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    model, graph = traced
    onnx.save(inline_gates(graph), tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = torch.rand(2, 1, 24, 40)
    with torch.no_grad():
        expected = model(image).numpy()
    np.testing.assert_allclose(compiled([image.numpy()])[0], expected, atol=1e-5)


BUILD = """
import sys
import tensorrt_rtx as trt
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(0)
parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
assert parser.parse_from_file(sys.argv[1]), parser.get_error(0).desc()
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
profile = builder.create_optimization_profile()
profile.set_shape("image", *[(1, 1, 24, 40)] * 3)
config.add_optimization_profile(profile)
assert builder.build_serialized_network(network, config) is not None
"""


@pytest.mark.parametrize("inlined", [False, True], ids=["the function", "inlined"])
def test_tensorrt_for_rtx_builds_an_engine_of_it(traced: Any, inlined: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    graph = inline_gates(traced[1]) if inlined else traced[1]
    onnx.save(graph, tmp_path / "model.onnx")
    command = [sys.executable, "-c", BUILD, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
