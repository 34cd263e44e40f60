"""The one builder on test doubles that have the names of TensorRT 10.16, 11.4 or TensorRT-RTX 1.7, and no others."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest

from unetx_exporters.tensorrt.plan import BuiltPlan, PlanOrder, build_plan
from unetx_kernels.binaries import why_not_compile
from unetx_opt.errors import ExportError

TEN, ELEVEN, RTX = "tensorrt-10.16.1.11", "tensorrt-11.4.0.106", "tensorrt_rtx-1.7.1.116"
VERSIONS = pytest.mark.parametrize("version", [TEN, ELEVEN, RTX])
TENSORRT = pytest.mark.parametrize("version", [TEN, ELEVEN])

MakeDouble = Callable[..., Any]


def order_for(version: str, **changes: Any) -> PlanOrder:
    package = version.partition("-")[0]
    capabilities = ("8.6", "8.9") if package == "tensorrt_rtx" else ()
    return dataclasses.replace(PlanOrder(package, "graph.onnx", "engine.plan", 3, capabilities), **changes)


def build(double: Any, version: str, cache: bytes | None = None, **changes: Any) -> BuiltPlan:
    return build_plan(double, order_for(version, **changes), b"an ONNX graph", cache)


@VERSIONS
def test_a_plan_is_built_from_start_to_finish_with_a_test_double(make_double: MakeDouble, version: str) -> None:
    double = make_double(version, inspector_json='{"Layers": []}', log_dump="Layers:\nName: a")
    built = build(double, version)
    assert built.plan == b"a plan of the test double"
    assert dict(built.reports) == {"log": "Layers:\nName: a", "json": '{"Layers": []}'}
    ((name, low, best, high),) = double.called("IOptimizationProfile.set_shape")
    assert (name, low, best, high) == ("image", (1, 1, 4, 4), (1, 1, 4, 4), (3, 1, 4, 4))
    ((verbosity,),) = double.called("IBuilderConfig.profiling_verbosity")
    assert repr(verbosity) == "DETAILED"
    assert [repr(flag) for (flag,) in double.called("IBuilderConfig.clear_flag")] == ["TF32"]


@pytest.mark.parametrize(
    ("version", "names"),
    [(TEN, ("EXPLICIT_BATCH", "STRONGLY_TYPED")), (ELEVEN, ("STRONGLY_TYPED",)), (RTX, ("STRONGLY_TYPED",))],
)
def test_the_network_is_always_strongly_typed_with_a_test_double(
    make_double: MakeDouble, version: str, names: tuple[str, ...]
) -> None:
    double = make_double(version)
    build(double, version)
    ((flags,),) = double.called("Builder.create_network")
    assert flags == sum(1 << int(getattr(double.NetworkDefinitionCreationFlag, name)) for name in names)


@TENSORRT
def test_the_kernels_of_gates_are_asked_for_with_a_test_double(
    make_double: MakeDouble, version: str, load_beside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = why_not_compile()
    if reason is not None:
        pytest.skip(reason)
    plugin = load_beside("plugin_double").Plugin("unetx::AttentionGate")
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    double = make_double(version)
    build(double, version, plugin_graph="plugin.onnx")
    assert set(plugin.registered) == {"register", "autotune", "aot_impl"}
    ((flags,),) = double.called("Builder.create_network")
    assert flags & (1 << int(double.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS))


def test_tensorrt_rtx_is_never_given_a_plugin_with_a_test_double(make_double: MakeDouble) -> None:
    with pytest.raises(ExportError, match="tensorrt_rtx takes no plugin"):
        build(make_double(RTX), RTX, plugin_graph="plugin.onnx")


def test_the_double_refuses_what_a_version_does_not_have(make_double: MakeDouble) -> None:
    double = make_double(ELEVEN)
    with pytest.raises(AttributeError):
        _ = double.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    with pytest.raises(AttributeError):
        _ = double.BuilderFlag.FP16
    with pytest.raises(AttributeError):
        _ = double.ComputeCapability
    config = double.Builder(None).create_builder_config()
    with pytest.raises(AttributeError):
        config.int8_calibrator = None
    with pytest.raises(AttributeError):
        config.set_compute_capability(0, 0)


def test_tensorrt_rtx_is_told_each_capability_with_a_test_double(make_double: MakeDouble) -> None:
    double = make_double(RTX)
    build(double, RTX)
    assert double.called("IBuilderConfig.num_compute_capabilities") == [(2,)]
    chosen = double.called("IBuilderConfig.set_compute_capability")
    assert [(repr(capability), index) for capability, index in chosen] == [("SM86", 0), ("SM89", 1)]
    assert double.called("init_libnvinfer_plugins") == double.called("IBuilderConfig.set_timing_cache") == []


def test_a_capability_that_the_version_lacks_is_refused_with_a_test_double(make_double: MakeDouble) -> None:
    with pytest.raises(ExportError, match=r"installed tensorrt_rtx does not build for compute capability 9\.0"):
        build(make_double(RTX), RTX, compute_capabilities=("8.6", "9.0"))


@TENSORRT
@pytest.mark.parametrize("level", ["none", "ampere_plus", "same_compute_capability"])
def test_tensorrt_is_told_the_level_of_compatibility_with_a_test_double(
    make_double: MakeDouble, version: str, level: str
) -> None:
    double = make_double(version)
    build(double, version, compatibility=level)
    ((chosen,),) = double.called("IBuilderConfig.hardware_compatibility_level")
    assert repr(chosen) == level.upper()
    assert len(double.called("init_libnvinfer_plugins")) == 1


@TENSORRT
@pytest.mark.parametrize("known", [None, b"from before"])
def test_the_timing_cache_is_kept_with_a_test_double(
    make_double: MakeDouble, version: str, known: bytes | None
) -> None:
    built = build(make_double(version), version, known)
    assert built.timing_cache == (known or b"") + b"+measured"


def test_a_timing_cache_that_does_not_fit_is_left_behind_with_a_test_double(make_double: MakeDouble) -> None:
    built = build(make_double(TEN, cache_fits=False), TEN, b"of another GPU")
    assert built.timing_cache == b"+measured"


def test_tensorrt_rtx_leaves_no_timing_cache_with_a_test_double(make_double: MakeDouble) -> None:
    assert build(make_double(RTX), RTX, b"ignored").timing_cache is None


@VERSIONS
def test_a_graph_that_cannot_be_parsed_is_named_with_a_test_double(make_double: MakeDouble, version: str) -> None:
    with pytest.raises(ExportError, match=r"cannot read the ONNX graph: stem \(Conv\): no good"):
        build(make_double(version, parse_fails=True), version)


@VERSIONS
def test_the_last_error_of_a_failed_build_is_quoted_with_a_test_double(
    make_double: MakeDouble, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=r"cannot build the engine: out of memory, sorry$"):
        build(make_double(version, build_error="out of\n memory, sorry"), version)
    assert capsys.readouterr().err == "error: out of memory, sorry\n"


@VERSIONS
def test_a_machine_without_a_gpu_leaves_the_log_alone_with_a_test_double(
    make_double: MakeDouble, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(make_double(version, has_gpu=False, log_dump="Layers:\nName: a"), version)
    assert built.reports == (("log", "Layers:\nName: a"),)
    assert capsys.readouterr().err == ""  # that the engine cannot be opened here is no error of the build


def test_a_plan_that_the_package_calls_malformed_is_refused_with_a_test_double(make_double: MakeDouble) -> None:
    double = make_double(RTX)
    malformed = 1 << 0
    double.EngineInvalidityDiagnostics = type("Diagnostics", (), {"MALFORMED_ENGINE": malformed})
    double.answers["diagnostics"] = malformed
    with pytest.raises(ExportError, match="calls its own plan malformed"):
        build(double, RTX)
