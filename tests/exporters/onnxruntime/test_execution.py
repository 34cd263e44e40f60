"""An engine is run once: its layers are among the kernels that ran, and what ran otherwise is named."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetx_exporters.onnxruntime import attest
from unetx_exporters.onnxruntime.build import build_onnxruntime_cpu
from unetx_exporters.onnxruntime.execution import check_execution, execute_once
from unetx_exporters.onnxruntime.integer_form import integer_form
from unetx_exporters.onnxruntime.layers import arithmetic_nodes
from unetx_exporters.onnxruntime.profile import ExecutedKernel, Profile, read_profile
from unetx_opt.errors import ExportError
from unetx_opt.specs import EngineRecord

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'unetx-opt[export]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'unetx-opt[cpu]'")

CPU = EngineRecord("onnxruntime-cpu", ("model.onnx",))
FORMS = {
    "fp32": {},
    "fp16 stored": {"stored": "float16"},
    "fp16 typed": {"stored": "float16", "computed": "float16"},
    "int8": {"quantized": True},
}

Run = tuple[Any, Any, Profile]


@pytest.fixture
def run_form(tiny_unet: Callable[..., Any], tmp_path: Path) -> Callable[[str], Run]:
    """Return a function that runs a form of the model: shipped graph, optimised graph, profile."""

    def run(form: str) -> Run:
        shipped = tiny_unet(**FORMS[form])
        if form == "int8":
            shipped = integer_form(shipped)
        path = tmp_path / "model.onnx"
        path.write_bytes(shipped.SerializeToString())
        return (shipped, *execute_once(CPU, path))

    return run


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_of_the_optimised_graph_is_among_the_kernels_of_one_run(
    run_form: Callable[[str], Run], form: str
) -> None:
    shipped, graph, profile = run_form(form)
    check_execution(CPU.target, graph, profile.kernels, shipped)
    assert len(profile.runs_ms) == 1
    kinds = {kernel.operation for kernel in profile.kernels}
    assert {"Conv", "ConvTranspose"} <= kinds
    assert ("QLinearConv" in kinds) == (form == "int8")
    assert {kernel.provider for kernel in profile.kernels} == {"CPUExecutionProvider"}


def test_the_profile_of_another_graph_is_found(run_form: Callable[[str], Run]) -> None:
    _, _, of_floats = run_form("fp32")
    shipped, graph, _ = run_form("int8")
    with pytest.raises(ExportError) as raised:
        check_execution(CPU.target, graph, of_floats.kernels, shipped)
    # The transposed convolution and the last layer are the same in both.
    assert str(raised.value).startswith(
        "onnxruntime-cpu: 3 of 5 layers did not run as the optimised graph says: "
        "down (QLinearConv in int8 by CPUExecutionProvider expected, not executed), bottom ("
    )


def altered(profile: Profile, operation: str, changes: dict[str, object]) -> tuple[ExecutedKernel, ...]:
    """Change the last kernel of an operation."""
    kernels = list(profile.kernels)
    index = max(index for index, kernel in enumerate(kernels) if kernel.operation == operation)
    kernels[index] = dataclasses.replace(kernels[index], **changes)  # type: ignore[arg-type]
    return tuple(kernels)


@pytest.mark.parametrize(
    ("operation", "changes", "message"),
    [
        (
            "QLinearConv",
            {"operation": "Conv", "input_dtypes": ("float32", "float32"), "output_dtypes": ("float32",)},
            r"1 of 5 .* merge \(QLinearConv in int8 by CPU\w+ expected, Conv in float32 by CPU\w+\); leave",
        ),
        (
            "QLinearConv",
            {"input_dtypes": ("float32", "int8")},
            r"merge \(.* expected, QLinearConv in float32 by CPU\w+\);",
        ),
        (
            "ConvTranspose",
            {"input_dtypes": ("float16",)},
            r"up \(ConvTranspose in float32 .* expected, ConvTranspose in float16/float32 by ",
        ),
        ("Conv", {"provider": "OtherProvider"}, r"head \(Conv in float32 by .* expected, Conv .* by OtherProvider\)"),
    ],
    ids=["a layer in float", "integers read as floats", "a mix of types", "another provider"],
)
def test_a_kernel_that_is_not_what_the_graph_says_is_named(
    run_form: Callable[[str], Run], operation: str, changes: dict[str, object], message: str
) -> None:
    shipped, graph, profile = run_form("int8")
    with pytest.raises(ExportError, match=message):
        check_execution(CPU.target, graph, altered(profile, operation, changes), shipped)


def test_layers_of_a_cuda_engine_that_ran_on_the_cpu_are_listed(run_form: Callable[[str], Run]) -> None:
    shipped, graph, profile = run_form("fp32")
    on_the_gpu = [dataclasses.replace(kernel, provider="CUDAExecutionProvider") for kernel in profile.kernels]
    check_execution("onnxruntime-cuda", graph, on_the_gpu, shipped)
    fallen_back = [
        kernel if kernel.operation == "ConvTranspose" else gpu
        for kernel, gpu in zip(profile.kernels, on_the_gpu, strict=True)
    ]
    with pytest.raises(ExportError, match=r"1 of 5 .*: up \(.* by CUDAExecutionProvider expected, .* by CPUExec"):
        check_execution("onnxruntime-cuda", graph, fallen_back, shipped)


def test_an_engine_whose_run_differs_is_not_built(
    make_request: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(record: EngineRecord, path: Path) -> tuple[Any, Profile]:
        graph, profile = execute_once(record, path)
        return graph, Profile(altered(profile, "ConvTranspose", {"operation": "Conv"}), profile.runs_ms)

    monkeypatch.setattr(attest, "execute_once", execute)
    with pytest.raises(ExportError, match=r"up \(ConvTranspose in float32 by .* expected, Conv in float32 by "):
        build_onnxruntime_cpu(make_request("fp32"))


def test_nothing_is_left_on_the_disk(
    run_form: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(scratch)
    run_form("fp32")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x08broken")
    with pytest.raises(ExportError, match="cannot load the graph"):
        execute_once(CPU, broken)
    assert list(scratch.iterdir()) == []


def test_a_graph_that_loads_and_cannot_run_is_an_export_error(tmp_path: Path) -> None:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["image", "shape"], ["logits"], name="fold")],
        "wrong",
        [
            helper.make_tensor_value_info("image", floats, ["N", 1, 4, 4]),
        ],
        [helper.make_tensor_value_info("logits", floats, ["N", "M"])],
        [helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [1, 7])],
    )
    path = tmp_path / "wrong.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    assert not list(arithmetic_nodes(onnx.load(path)))
    with pytest.raises(ExportError, match="cannot run the graph for onnxruntime-cpu"):
        execute_once(CPU, path)


def test_a_trace_is_read_as_kernels_with_numpy_s_names_of_types() -> None:
    args = {
        "op_name": "Conv",
        "provider": "CPUExecutionProvider",
        "input_type_shape": [{"float": [1, 1, 4, 4]}, {"float16": []}],
        "output_type_shape": [{"uint8": [1]}],
    }
    events = [
        {"cat": "Session", "name": "session_initialization", "dur": 5000},
        {"cat": "Node", "name": "a_fence_before", "dur": 1, "args": {"op_name": "Conv"}},
        {"cat": "Node", "name": "a_kernel_time", "dur": 1500, "args": args},
        {"cat": "Session", "name": "model_run", "dur": 2500},
    ]
    profile = read_profile(json.dumps(events))
    kernel = ExecutedKernel("a", "Conv", "CPUExecutionProvider", ("float32", "float16"), ("uint8",), 1.5)
    assert profile == Profile((kernel,), (2.5,))
