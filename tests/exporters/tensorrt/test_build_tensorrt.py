"""TensorRT engines from request to record, where the builder process imports a test double as `tensorrt`."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetx_exporters.request import BuildRequest
from unetx_exporters.tensorrt import build
from unetx_exporters.tensorrt.build import build_tensorrt, why_not_build_tensorrt
from unetx_opt.errors import ExportError
from unetx_opt.runtime.cuda_device import CudaDevice
from unetx_opt.specs import Host

HERE = Path(__file__).parent
PLAN = "engines/tensorrt/engine.plan"

#: What the builder process finds as the package `tensorrt`: the double, with the inspector's report of a half engine.
SHIM = """
import importlib.util, json, pathlib, sys
here = pathlib.Path({here!r})
spec = importlib.util.spec_from_file_location("tensorrt_double", here / "tensorrt_double.py")
double = importlib.util.module_from_spec(spec)
spec.loader.exec_module(double)
surface = json.loads((here / "golden" / "surface-{version}.json").read_text())
report = (here / "golden" / "inspector-by-hand.json").read_text()
sys.modules[__name__] = double.Package(surface, {number!r}, inspector_json=report, refused={refused!r})
spec = importlib.util.spec_from_file_location("plugin_double", here / "plugin_double.py")
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)
sys.modules["tensorrt.plugin"] = plugin.Plugin("unetx::AttentionGate")
"""


@pytest.fixture(params=["tensorrt-10.16.1.11", "tensorrt-11.4.0.106"])
def version(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the builder process a test double of TensorRT, and this process a GPU."""
    name: str = request.param
    folder = tmp_path / "double"
    folder.mkdir()
    _write_shim(folder, name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(build, "probe_cuda_device", lambda: CudaDevice("13.0", "a GPU", "8.6"))
    return name.partition("-")[2]


def _write_shim(folder: Path, name: str, refused: bytes = b"") -> None:
    text = SHIM.format(here=str(HERE), version=name, number=name.partition("-")[2], refused=refused)
    (folder / "tensorrt.py").write_text(text, encoding="utf-8")


@pytest.fixture
def gated(make_request: Callable[..., BuildRequest], tmp_path: Path) -> BuildRequest:
    """A request with a graph whose gates are operators: the same network, and a gate that no layer needs."""
    onnx = pytest.importorskip("onnx")
    request = make_request("fp16")
    model = onnx.load(request.graph)
    attributes = {"window": 3, "dilation": 1, "scale": 0.5}
    model.graph.node.append(
        onnx.helper.make_node("AttentionGate", ["a", "b", "c"], ["d"], name="gate", domain="unetx", **attributes)
    )
    onnx.save(model, tmp_path / "gated.onnx")
    return dataclasses.replace(request, graph_gated=tmp_path / "gated.onnx")


def test_an_engine_is_built_and_attested_with_a_test_double(
    make_request: Callable[..., BuildRequest], version: str
) -> None:
    request = make_request("fp16")
    (record,) = build_tensorrt(request)
    assert (record.target, record.files) == ("tensorrt", (PLAN,))
    assert (request.directory / PLAN).read_bytes() == b"a plan of the test double"
    assert record.tools == {"tensorrt": version}
    assert record.compute_capabilities == ("8.6",)
    assert record.settings == {"platform": f"{platform.system()}-{platform.machine()}", "max_batch": "4"}
    assert (record.compute_dtype, record.storage_dtype) == ("float16", "float16")
    assert record.layers == request.layer_types


def test_a_compatible_engine_names_every_gpu_that_runs_it_with_a_test_double(
    make_request: Callable[..., BuildRequest], version: str
) -> None:
    request = dataclasses.replace(make_request("fp16"), options={"tensorrt_compatibility": "ampere_plus"})
    (record,) = build_tensorrt(request)
    assert record.compute_capabilities == ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")


def test_the_timing_cache_grows_from_build_to_build_with_a_test_double(
    make_request: Callable[..., BuildRequest], version: str, tmp_path: Path
) -> None:
    cache = tmp_path / "kept" / "timing.cache"
    request = dataclasses.replace(make_request("fp16"), options={"tensorrt_timing_cache": str(cache)})
    for _ in range(2):
        build_tensorrt(request)
    assert cache.read_bytes() == b"+measured+measured"


def test_an_engine_of_another_type_is_refused_and_leaves_nothing_with_a_test_double(
    make_request: Callable[..., BuildRequest], version: str
) -> None:
    request = make_request("fp32")
    with pytest.raises(ExportError, match=r"tensorrt: 5 of 5 layers .* down \(float32 asked, float16\)"):
        build_tensorrt(request)
    assert not (request.directory / "engines" / "tensorrt").exists()


def test_the_gates_kernel_goes_into_the_engine_with_a_test_double(gated: BuildRequest, version: str) -> None:
    (record,) = build_tensorrt(gated)
    assert record.settings["attention_gate"] == "plugin"
    assert record.layers == gated.layer_types


def test_without_the_plugin_standard_operators_are_built_and_why_is_recorded_with_a_test_double(
    gated: BuildRequest, version: str, tmp_path: Path
) -> None:
    _write_shim(tmp_path / "double", f"tensorrt-{version}", refused=b"AttentionGate")
    (record,) = build_tensorrt(gated)
    assert record.settings["attention_gate"] == (
        "standard operators: tensorrt cannot read the ONNX graph: stem (Conv): no good"
    )
    assert (gated.directory / PLAN).read_bytes() == b"a plan of the test double"


def test_the_plugin_can_be_left_out_with_a_test_double(gated: BuildRequest, version: str) -> None:
    (record,) = build_tensorrt(dataclasses.replace(gated, options={"tensorrt_attention_plugin": False}))
    assert "attention_gate" not in record.settings


def test_another_gpu_than_the_one_that_is_there_is_refused_with_a_test_double(
    make_request: Callable[..., BuildRequest], version: str
) -> None:
    request = dataclasses.replace(make_request("fp16"), compute_capabilities=("7.5", "8.9"))
    with pytest.raises(
        ExportError, match=r"compute capability 8\.6, asked for was 7\.5, 8\.9: build on such a machine"
    ):
        build_tensorrt(request)


def test_without_a_gpu_nothing_is_tried(
    make_request: Callable[..., BuildRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "probe_cuda_device", CudaDevice)
    monkeypatch.setattr(build, "run_builder", None)
    with pytest.raises(ExportError, match="there is no CUDA device"):
        build_tensorrt(make_request("fp16"))


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ({"packages": {"tensorrt": "11.4.0.106", "onnx": "1.20"}, "compute_capability": "8.6"}, None),
        ({"packages": {"tensorrt": "10.16.1.11", "onnx": "1.20"}, "compute_capability": "7.5"}, None),
        (
            {"packages": {"tensorrt": "10.9.0", "onnx": "1.20"}, "compute_capability": "8.6"},
            "expected 10.16 or newer",
        ),
        ({"packages": {"tensorrt": "11.4.0.106", "onnx": "1.20"}}, "there is no CUDA device"),
        ({"packages": {"onnx": "1.20"}, "compute_capability": "8.6"}, "the package tensorrt is not installed"),
    ],
)
def test_what_stands_against_building_here_is_said(host: dict[str, Any], reason: str | None) -> None:
    said = why_not_build_tensorrt(Host("Linux", "x86_64", **host))
    assert said is None if reason is None else reason in str(said)
