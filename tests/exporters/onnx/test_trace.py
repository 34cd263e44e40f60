"""The traced graph: what it computes, what it is named, and that its bytes depend on nothing but the model."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from unetx_exporters.onnx.graph import mark_outputs
from unetx_exporters.onnx.trace import OPSET, trace_onnx
from unetx_opt.errors import ExportError
from unetx_opt.models.unet import build_model
from unetx_opt.models.variants import variant_spec

GRAPHS = [
    pytest.param("unet", 64, {}, id="unet"),
    pytest.param("unet", 50, {"num_classes": 3}, id="padded-three-classes"),
    pytest.param("attention", 64, {}, id="neighbourhood"),
    pytest.param("attention", 64, {"gate": "additive"}, id="additive"),
    pytest.param("unet", 64, {"upsampling": "bilinear", "in_channels": 2}, id="bilinear-two-channels"),
    pytest.param("dilated", 64, {"depth": 3}, id="dilated"),
]


def run_all(graph: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


@pytest.mark.parametrize(("variant", "size", "overrides"), GRAPHS)
def test_logits_and_every_junction_equal_the_module_at_another_batch_size(
    trace: Callable[..., Any], variant: str, size: int, overrides: dict[str, Any]
) -> None:
    model, traced = trace(variant, size, **overrides)
    image = np.random.default_rng(1).random((3, model.spec.in_channels, size, size), np.float32)

    outputs = run_all(mark_outputs(traced.model, traced.junctions), image)

    with torch.no_grad():
        logits, junctions = model.forward_with_junctions(torch.from_numpy(image))
    assert traced.junctions == tuple(f"junction.{name}" for name in junctions)
    expected = {"logits": logits} | {f"junction.{name}": tensor for name, tensor in junctions.items()}
    assert list(outputs) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_allclose(outputs[name], tensor.numpy(), rtol=1e-5, atol=2e-6, err_msg=name)


def test_the_production_graph_has_one_input_one_output_and_plain_operators(trace: Callable[..., Any]) -> None:
    graph = trace()[1].model.graph
    (image,), (logits,) = graph.input, graph.output
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, logits)]
    assert (image.name, logits.name, dims) == ("image", "logits", [["batch", 1, 64, 64]] * 2)
    assert {node.op_type for node in graph.node} == {"Conv", "ConvTranspose", "Relu", "MaxPool", "Concat"}
    assert {node.domain for node in graph.node} == {""}


def test_the_attention_graph_has_static_shapes_but_for_the_batch(trace: Callable[..., Any]) -> None:
    graph = trace("attention")[1].model.graph
    assert not {"Shape", "Expand", "Gather", "Reshape", "Loop", "If"} & {node.op_type for node in graph.node}
    for value in graph.value_info:
        dims = value.type.tensor_type.shape.dim
        assert [d.dim_param for d in dims if not d.HasField("dim_value")] in (["batch"], []), value.name


def test_nodes_and_weights_are_named_after_their_modules(trace: Callable[..., Any]) -> None:
    graph = trace("attention")[1].model.graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {"encoder.0.conv1", "encoder.0.relu", "pool.maxpool_1", "decoder.1.gate.theta", "head"} <= set(names)
    assert {"encoder.0.conv1.weight", "encoder.0.conv1.bias", "head.bias"} <= {t.name for t in graph.initializer}
    assert "decoder.1.gate.softmax" in names


def test_every_convolution_has_a_bias_whatever_the_weights(trace: Callable[..., Any]) -> None:
    fresh = build_model(variant_spec("unet", width=4, depth=2))  # the bias folded from it is all zeros
    listings = []
    for graph in (trace_onnx(fresh, 64, 64).model.graph, trace()[1].model.graph):
        assert all(len(node.input) == 3 for node in graph.node if node.op_type.startswith("Conv"))
        listings.append([(tensor.name, tuple(tensor.dims)) for tensor in graph.initializer])
    assert listings[0] == listings[1]


def test_the_bytes_hold_no_path_no_stack_trace_and_no_exporter_metadata(trace: Callable[..., Any]) -> None:
    data = trace("attention")[1].model.SerializeToString()
    for text in (str(Path.cwd()), str(Path.home()), "/tmp", "site-packages", ".py", "File", "pkg.", "torch", "aten"):
        assert text.encode() not in data, text


def test_opset_and_ir_version_are_those_that_onnxruntime_1_22_reads(trace: Callable[..., Any]) -> None:
    model = trace()[1].model
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert model.ir_version == 10
    assert OPSET >= 18


def test_tracing_leaves_the_module_and_the_terminal_alone(
    make_model: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model(depth=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace_onnx(model, 32, 32)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_the_attention_mask_is_not_stored_per_pixel(trace: Callable[..., Any]) -> None:
    model, traced = trace("attention")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(int(np.prod(tensor.dims)) for tensor in traced.model.graph.initializer)
    # Vectors along rows and columns, at most 3 x (64 + 32) each way, and indices of slices. A mask per pixel
    # would be 4096 values for each of 9 neighbours.
    assert stored < parameters + 6 * (64 + 32) + 100


def test_a_model_beyond_two_gibibytes_is_refused_before_any_work() -> None:
    class Oversized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(2**29, device="meta"))

        def __deepcopy__(self, memo: object) -> Oversized:
            return self

        def cpu(self) -> Oversized:
            return self

    with pytest.raises(ExportError, match=r"2\.0 GiB.*smaller width"):
        trace_onnx(Oversized(), 64, 64)


def test_a_junction_that_the_logits_do_not_need_is_an_error(make_model: Callable[..., Any]) -> None:
    class Astray(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_model(depth=1)
            self.spec = self.network.spec

        def forward_with_junctions(self, image: Any) -> tuple[Any, dict[str, Any]]:
            return self.network(image), {"skip0": image.sin()}

    with pytest.raises(ExportError, match=r"do not depend on junction\.skip0"):
        trace_onnx(Astray(), 32, 32)


def test_marking_an_unknown_tensor_is_an_error(trace: Callable[..., Any]) -> None:
    with pytest.raises(ExportError, match=r"no tensor 'junction\.skip9'"):
        mark_outputs(trace()[1].model, ["junction.skip9"])


_TRACE = """
import hashlib, torch
from unetx_exporters.onnx.trace import trace_onnx
from unetx_opt.models.unet import build_model
from unetx_opt.models.variants import variant_spec
torch.manual_seed(0)
model = build_model(variant_spec("unet", width=4, depth=1, gate="neighbourhood", gate_levels=(0,)))
print(hashlib.sha256(trace_onnx(model, 32, 32).model.SerializeToString(deterministic=True)).hexdigest())
"""


def test_the_same_model_gives_the_same_bytes_in_another_process_and_directory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(variant_spec("unet", width=4, depth=1, gate="neighbourhood", gate_levels=(0,)))
    # Whatever this process has traced before, against a fresh one.
    data = trace_onnx(model, 32, 32).model.SerializeToString(deterministic=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    script = tmp_path / "elsewhere.py"
    script.write_text(_TRACE)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest()
