"""The plugin of the gate, with a double of TensorRT: the real package needs a GPU to build with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unetx_exporters.tensorrt.attention_plugin import (
    PLUGIN,
    prefer_built_in_kernels,
    register_attention_plugin,
    why_not_plugin,
    write_plugin_graph,
)
from unetx_kernels.binaries import why_not_compile
from unetx_opt.errors import ExportError


@pytest.fixture
def plugin(load_beside: Callable[[str], Any]) -> Any:
    """The double of tensorrt.plugin."""
    return load_beside("plugin_double").Plugin(PLUGIN)


def _tensorrt() -> Any:
    names = ("IPluginV3QuickAOTBuild", "KernelLaunchParams", "ISymExprs", "QuickPluginCreationRequest")
    flags = SimpleNamespace(PREFER_AOT_PYTHON_PLUGINS=3)
    return SimpleNamespace(
        __name__="tensorrt",
        __version__="11.0",
        float16="half",
        NetworkDefinitionCreationFlag=flags,
        **dict.fromkeys(names),
    )


def _tensor(*shape: int) -> Any:
    return SimpleNamespace(shape=shape, shape_expr=shape, dtype="half", like=lambda: "like")


def test_a_double_of_tensorrt_is_given_the_kernel_with_its_grid_and_sizes(plugin: Any, tmp_path: Path) -> None:
    reason = why_not_compile()
    if reason is not None:
        pytest.skip(reason)
    register_attention_plugin(_tensorrt(), plugin, tmp_path)
    theta, values = _tensor(2, 4, 33, 70), _tensor(2, 16, 33, 70)
    attributes = {"window": 5, "dilation": 1, "scale": 0.5}
    assert plugin.registered["register"](theta, theta, values, **attributes) == "like"
    name, ptx, launch, extra = plugin.registered["aot_impl"](
        theta, theta, values, **attributes, outputs=(values,), tactic=0
    )
    assert [line.split()[2].rstrip("(") for line in ptx.splitlines() if ".entry" in line] == [name]
    assert ptx.count(".param") >= 9
    assert vars(launch) == {"grid_x": 9 * 3 * 2, "block_x": 32, "block_y": 4, "shared_mem": 0}
    assert extra == [("int32", number) for number in (2, 4, 16, 33, 70)]


@pytest.mark.parametrize("change", [{"dilation": 2}, {"scale": 1.0}], ids=["dilation", "scale"])
def test_what_the_kernel_does_not_compute_is_refused_by_the_double(
    change: dict[str, Any], plugin: Any, tmp_path: Path
) -> None:
    register_attention_plugin(_tensorrt(), plugin, tmp_path)
    attributes = {"window": 5, "dilation": 1, "scale": 0.5} | change
    theta = _tensor(2, 4, 8, 8)
    with pytest.raises(ExportError, match="build without the plugin"):
        plugin.registered["aot_impl"](theta, theta, theta, **attributes, outputs=(theta,), tactic=0)


def test_tensorrt_for_rtx_says_what_it_lacks() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    assert "has no IPluginV3QuickAOTBuild" in str(why_not_plugin(rtx, None))
    with pytest.raises(ExportError, match=r"use tensorrt 10.15 or later"):
        register_attention_plugin(rtx, None, Path("unused"))
    assert prefer_built_in_kernels(rtx) == 0 or hasattr(
        rtx.NetworkDefinitionCreationFlag, "PREFER_AOT_PYTHON_PLUGINS"
    )


def test_the_double_has_only_names_of_both_real_releases_and_not_of_rtx(plugin: Any) -> None:
    """The names were read from the real packages."""
    releases = json.loads(Path(__file__).with_name("golden").joinpath("plugin-names.json").read_text())
    for version, names in releases.items():
        reason = why_not_plugin(SimpleNamespace(__name__=version, **dict.fromkeys(names)), plugin)
        assert (reason is None) == version.startswith("tensorrt-"), reason
        if reason is None:
            assert {"grid_x", "block_x", "block_y", "shared_mem"} <= set(names["KernelLaunchParams"])
            assert "PREFER_AOT_PYTHON_PLUGINS" in names["NetworkDefinitionCreationFlag"]


def test_the_plugin_is_named_as_the_operator() -> None:
    pytest.importorskip("onnx")
    from unetx_exporters.onnx.attention_function import DOMAIN, OPERATOR

    assert f"{DOMAIN}::{OPERATOR}" == PLUGIN


def test_a_graph_for_the_plugin_names_it_and_has_no_body_beside_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from unetx_exporters.onnx.attention_function import add_attention_function

    float16 = onnx.TensorProto.FLOAT16
    attributes = {"window": 5, "dilation": 1, "scale": 0.5}
    node = onnx.helper.make_node("AttentionGate", ["a", "a", "b"], ["c"], name="gate", domain="unetx", **attributes)
    tensors = [onnx.helper.make_tensor_value_info(name, float16, ["n", 4, 8, 8]) for name in "abc"]
    graph = onnx.helper.make_graph([node], "gate", tensors[:2], tensors[2:])
    gated = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    add_attention_function(gated, 18)
    onnx.save(gated, tmp_path / "gated.onnx")
    write_plugin_graph(tmp_path / "gated.onnx", tmp_path / "plugin.onnx")
    marked = onnx.load(tmp_path / "plugin.onnx")
    assert (len(gated.functions), len(marked.functions)) == (1, 0)
    (written,) = marked.graph.node
    assert {one.name: onnx.helper.get_attribute_value(one) for one in written.attribute} == {
        **attributes,
        "plugin_namespace": b"unetx",
        "plugin_version": b"1",
        "aot": 1,
    }
