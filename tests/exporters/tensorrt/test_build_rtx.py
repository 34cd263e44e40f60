"""TensorRT-RTX engines that are really built, without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_exporters.request import BuildRequest
from unetx_exporters.tensorrt.attest import arithmetic_nodes
from unetx_exporters.tensorrt.build import build_tensorrt_rtx, why_not_build_tensorrt_rtx
from unetx_exporters.tensorrt.header import parse_header
from unetx_opt.errors import ExportError, SpecError
from unetx_opt.specs import EngineRecord, Host

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx builds these engines")
onnx = pytest.importorskip("onnx")

MAIN = "engines/tensorrt-rtx/engine.plan"
TURING = "engines/tensorrt-rtx/engine-sm75.plan"


def mask_of(request: BuildRequest, record: EngineRecord) -> int:
    return parse_header((request.directory / record.files[0]).read_bytes()).capability_mask


def can_fix_addresses() -> bool:
    if sys.platform != "linux":
        return False
    program = "import ctypes, sys; sys.exit(ctypes.CDLL(None).personality(0x0040000) < 0)"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def replace_graph(request: BuildRequest, data: bytes) -> BuildRequest:
    request.graph.write_bytes(data)
    return request


def model_of(*nodes: Any, functions: tuple[Any, ...] = (), tensors: tuple[Any, ...] = ()) -> bytes:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "broken",
        [helper.make_tensor_value_info("image", floats, ["N", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", floats, ["N", 1, 16, 16])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_the_default_is_an_engine_for_ampere_and_newer_and_one_for_turing(
    make_request: Callable[..., BuildRequest], precision: str, dtype: str
) -> None:
    request = make_request(precision)
    newer, turing = build_tensorrt_rtx(request)
    assert newer.files == (MAIN,)
    assert newer.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert mask_of(request, newer) == 2 + 4 + 8 + 16 + 32
    assert turing.files == (TURING,)
    assert turing.compute_capabilities == ("7.5",)
    assert mask_of(request, turing) == 1
    for record in (newer, turing):
        assert record.target == "tensorrt-rtx"
        assert (record.compute_dtype, record.storage_dtype) == (dtype, dtype)
        assert record.layers == dict.fromkeys(("down", "bottom", "up", "merge", "head"), dtype)
        assert record.tools == {"tensorrt_rtx": trt.__version__}
        assert record.settings["max_batch"] == "4"
    assert newer.settings != turing.settings
    assert sorted(path.name for path in request.directory.rglob("*.*")) == ["engine-sm75.plan", "engine.plan"]


@pytest.mark.parametrize(
    ("asked", "masks"),
    [(("8.6",), [4]), (("12.0", "8.9"), [8 + 16]), (("7.5",), [1]), (("8.6", "7.5"), [4, 1])],
    ids=["one", "two", "turing", "both kinds"],
)
def test_the_engine_is_for_the_capabilities_asked_for(
    make_request: Callable[..., BuildRequest], asked: tuple[str, ...], masks: list[int]
) -> None:
    request = dataclasses.replace(make_request("fp16"), compute_capabilities=asked)
    assert [mask_of(request, record) for record in build_tensorrt_rtx(request)] == masks


def test_an_unknown_capability_is_refused_before_anything_is_built(make_request: Callable[..., BuildRequest]) -> None:
    request = dataclasses.replace(make_request("fp16"), compute_capabilities=("8.6", "9.0"))
    with pytest.raises(SpecError, match=r"compute capability 9\.0, it knows 7\.5, 8\.0"):
        build_tensorrt_rtx(request)
    assert list(request.directory.iterdir()) == []


def test_two_builds_give_the_same_bytes(
    make_request: Callable[..., BuildRequest],
    make_unet: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not can_fix_addresses():
        pytest.skip("this system does not let a process do without address randomisation")
    # With random addresses the bytes of this graph's plan differ in most builds; those of a smaller one do not.
    request = make_request("fp32", graph=make_unet(width=8, depth=2, size=32, dtype="float32"))
    types = dict.fromkeys(arithmetic_nodes(request.graph), "float32")
    request = dataclasses.replace(request, layer_types=types, compute_capabilities=("8.0", "8.6", "8.9"))
    (record,) = build_tensorrt_rtx(request)
    first = (request.directory / record.files[0]).read_bytes()
    elsewhere = tmp_path / "a folder with a much longer name than the first"
    monkeypatch.setenv("CUDA_NOTHING", "x" * 3000)
    monkeypatch.setenv("UNRELATED", "y" * 3000)
    build_tensorrt_rtx(dataclasses.replace(request, directory=elsewhere))
    assert (elsewhere / record.files[0]).read_bytes() == first


def test_a_float_engine_where_half_was_asked_for_is_refused_and_leaves_nothing(
    make_request: Callable[..., BuildRequest], tiny_unet: Callable[..., Any]
) -> None:
    request = make_request("fp16", graph=tiny_unet())
    with pytest.raises(ExportError, match=r"tensorrt-rtx: 5 of 5 layers .* down \(float16 asked, float32\)"):
        build_tensorrt_rtx(request)
    assert not (request.directory / "engines" / "tensorrt-rtx").exists()


def test_a_layer_kept_in_float_is_attested_as_such(
    make_request: Callable[..., BuildRequest], tiny_unet: Callable[..., Any]
) -> None:
    model = tiny_unet("float16")
    head = next(node for node in model.graph.node if node.name == "head")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float32), "head.weight")
    )
    place = list(model.graph.node).index(head)
    model.graph.node.insert(place, onnx.helper.make_node("Cast", [head.input[0]], ["wide"], name="wide", to=1))
    model.graph.node[place + 1].input[0] = "wide"
    request = make_request("fp16", graph=model)
    types = {**request.layer_types, "head": "float32"}
    request = dataclasses.replace(request, layer_types=types, compute_capabilities=("8.6",))
    (record,) = build_tensorrt_rtx(request)
    assert record.layers == types
    assert record.compute_dtype == "float16"


def test_int8_is_built_for_ampere_and_newer_and_refused_for_turing(
    make_request: Callable[..., BuildRequest], tiny_unet: Callable[..., Any], symmetric_int8: Callable[..., Any]
) -> None:
    request = make_request("int8", graph=symmetric_int8(tiny_unet(), "Conv"))
    types = {**request.layer_types, "up": "float32"}
    request = dataclasses.replace(request, layer_types=types)
    (record,) = build_tensorrt_rtx(request)
    assert record.compute_dtype == "int8"
    assert "7.5" not in record.compute_capabilities
    with pytest.raises(ExportError, match=r"4 of 5 layers .* down \(int8 asked, float32\)"):
        build_tensorrt_rtx(dataclasses.replace(request, compute_capabilities=("7.5",)))


def test_the_largest_batch_is_an_option(make_request: Callable[..., BuildRequest]) -> None:
    request = dataclasses.replace(
        make_request("fp16"), compute_capabilities=("8.6",), options={"tensorrt_max_batch": 2, "other_option": 1}
    )
    (record,) = build_tensorrt_rtx(request)
    assert record.settings["max_batch"] == "2"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"not onnx at all", "is not an ONNX graph", id="text"),
        pytest.param(b"", "inputs are none, expected image", id="empty"),
        pytest.param(
            lambda: model_of(onnx.helper.make_node("Nope", ["image"], ["logits"], name="strange")),
            r"tensorrt_rtx cannot read the ONNX graph: strange \(Nope\): .*Plugin not found",
            id="unknown operator",
        ),
        pytest.param(
            lambda: model_of(onnx.helper.make_node("Relu", ["nowhere"], ["logits"], name="lost")),
            r"cannot read the ONNX graph: lost \(Relu\)",
            id="missing input",
        ),
        pytest.param(
            lambda: model_of(onnx.helper.make_node("Cast", ["image"], ["logits"], name="half", to=10)),
            "outputs are logits .*, expected logits float32 alone",
            id="half output",
        ),
    ],
)
def test_a_graph_that_cannot_be_built_is_refused_in_one_line(
    make_request: Callable[..., BuildRequest], data: bytes | Callable[[], bytes], message: str
) -> None:
    request = replace_graph(make_request("fp16"), data() if callable(data) else data)
    with pytest.raises(ExportError, match=message) as caught:
        build_tensorrt_rtx(request)
    assert "\n" not in str(caught.value)
    assert not (request.directory / "engines" / "tensorrt-rtx").exists()


def test_a_fixed_batch_is_refused(make_request: Callable[..., BuildRequest], tiny_unet: Callable[..., Any]) -> None:
    model = tiny_unet()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ExportError, match=r"input is \(1, 1, 32, 32\), expected \(N, C, H, W\) where N alone"):
        build_tensorrt_rtx(make_request("fp32", graph=model))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_graph_that_breaks_the_parser_is_an_error_and_not_the_end(
    make_request: Callable[..., BuildRequest],
) -> None:
    """The parser runs into a function that calls itself until its stack ends."""
    helper = onnx.helper
    call = helper.make_node("Again", ["x"], ["y"], domain="local")
    again = helper.make_function("local", "Again", ["x"], ["y"], [call], [helper.make_opsetid("local", 1)])
    start = helper.make_node("Again", ["image"], ["logits"], domain="local", name="start")
    request = replace_graph(make_request("fp16"), model_of(start, functions=(again,)))
    with pytest.raises(ExportError, match="the builder process was ended by SIGSEGV"):
        build_tensorrt_rtx(request)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensorrt_batch": 4}, "unknown option tensorrt_batch, expected one of tensorrt_max_batch, "),
        ({"tensorrt_max_batch": 0}, "tensorrt_max_batch is 0, expected 1 to 256"),
        ({"tensorrt_max_batch": "4"}, "tensorrt_max_batch is '4', expected a value like 4"),
        ({"tensorrt_max_batch": True}, "tensorrt_max_batch is True"),
        ({"tensorrt_timeout_s": 0}, "tensorrt_timeout_s is 0 "),
        ({"tensorrt_compatibility": "all"}, "is 'all', expected one of none, ampere_plus"),
    ],
)
def test_options_are_checked(
    make_request: Callable[..., BuildRequest], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        build_tensorrt_rtx(dataclasses.replace(make_request("fp16"), options=options))


def test_the_time_limit_is_an_option(make_request: Callable[..., BuildRequest]) -> None:
    request = dataclasses.replace(make_request("fp16"), options={"tensorrt_timeout_s": 0.05})
    with pytest.raises(ExportError, match=r"was ended after 0\.05 s"):
        build_tensorrt_rtx(request)


def test_a_u_net_of_the_original_width_is_built(
    make_request: Callable[..., BuildRequest], make_unet: Callable[..., Any], record_property: Any
) -> None:
    """31 million weights at 512 x 512 in half precision, for every GPU from compute capability 8.0 on."""
    request = make_request("fp16", graph=make_unet(width=64, depth=4, size=512, dtype="float16"))
    types = dict.fromkeys(arithmetic_nodes(request.graph), "float16")
    request = dataclasses.replace(
        request, layer_types=types, compute_capabilities=("8.0", "8.6", "8.9", "12.0", "12.1")
    )
    (record,) = build_tensorrt_rtx(request)
    assert record.layers == types
    assert len(types) == 23
    size = (request.directory / record.files[0]).stat().st_size
    assert 60e6 < size < 70e6  # two bytes per weight
    record_property("plan_bytes", size)


@pytest.mark.parametrize(
    ("packages", "reason"),
    [
        ({"tensorrt_rtx": "1.7.1.116", "onnx": "1.20"}, None),
        ({"tensorrt_rtx": "unknown", "onnx": "1.20"}, None),
        ({"onnx": "1.20"}, "the package tensorrt_rtx is not installed: run pip install 'unetx-opt[rtx]'"),
        ({"tensorrt_rtx": "1.7.1.116"}, "the package onnx is not installed: run pip install 'unetx-opt[export]'"),
        (
            {"tensorrt_rtx": "1.6.0.9", "onnx": "1.20"},
            "tensorrt_rtx 1.6.0.9 is installed, expected 1.7 or newer: run pip install -U 'unetx-opt[rtx]'",
        ),
    ],
)
def test_what_stands_against_building_here_is_said(packages: dict[str, str], reason: str | None) -> None:
    assert why_not_build_tensorrt_rtx(Host("Linux", "x86_64", packages=packages)) == reason


def test_the_records_can_be_stored_in_a_manifest(make_request: Callable[..., BuildRequest]) -> None:
    request = dataclasses.replace(make_request("fp16"), compute_capabilities=("8.6",))
    (record,) = build_tensorrt_rtx(request)
    assert json.loads(json.dumps(dataclasses.asdict(record)))["files"] == [MAIN]
