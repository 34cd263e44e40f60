"""What was asked for against what recorded builds really did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetx_exporters.tensorrt.attest import arithmetic_nodes, attest_layers, read_layers
from unetx_exporters.tensorrt.layers import EngineLayer, EngineTensor
from unetx_opt.errors import ExportError

Golden = Callable[[str], str]

NODES = ("down", "bottom", "up", "merge", "head")
WEIGHTS = EngineTensor((4, 8, 3, 3), "float16")


def data(dtype: str) -> EngineTensor:
    return EngineTensor((-1, 8, 16, 16), dtype)


def layer(
    kind: str, *inputs: EngineTensor, constants: tuple[EngineTensor, ...] = (), weights: str = ""
) -> EngineLayer:
    return EngineLayer("x", kind, inputs, constants, (), weights, "[ONNX Layer: merge][ONNX Layer: merge.relu]")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_recorded_engine_is_what_was_asked_for(golden: Golden, dtype: str) -> None:
    name = {"fp32": "float32", "fp16": "float16"}[dtype]
    layers = read_layers([("log", golden(f"layers-{dtype}.txt"))], NODES)
    found = attest_layers("tensorrt-rtx", layers, NODES, dict.fromkeys(NODES, name))
    assert found.layers == dict.fromkeys(NODES, name)
    assert (found.compute_dtype, found.storage_dtype) == (name, name)


def test_half_precision_that_was_ignored_is_refused_with_the_layers(golden: Golden) -> None:
    layers = read_layers([("log", golden("layers-fp32.txt"))], NODES)
    with pytest.raises(ExportError, match=r"5 of 5 layers .* down \(float16 asked, float32\), bottom"):
        attest_layers("tensorrt-rtx", layers, NODES, dict.fromkeys(NODES, "float16"))


def test_only_the_layers_that_differ_are_listed(golden: Golden) -> None:
    layers = read_layers([("log", golden("layers-fp16.txt"))], NODES)
    with pytest.raises(ExportError, match=r"1 of 5 layers .*: head \(float32 asked, float16\);"):
        attest_layers("x", layers, NODES, {**dict.fromkeys(NODES, "float16"), "head": "float32"})


def test_int8_is_found_where_the_builder_used_it(golden: Golden) -> None:
    layers = read_layers([("log", golden("layers-int8.txt"))], NODES)
    asked = {**dict.fromkeys(NODES, "int8"), "up": "float32"}  # it has no 8-bit transposed convolution
    found = attest_layers("tensorrt-rtx", layers, NODES, asked)
    assert (found.compute_dtype, found.storage_dtype) == ("int8", "int8")


def test_int8_convolutions_that_run_in_float_are_refused(golden: Golden) -> None:
    layers = read_layers([("log", golden("layers-int8-sm75.txt"))], NODES)
    with pytest.raises(ExportError, match=r"5 of 5 layers .* down \(int8 asked, float32\)"):
        attest_layers("tensorrt-rtx", layers, NODES, dict.fromkeys(NODES, "int8"))


def test_the_inspectors_report_is_taken_where_the_log_says_nothing(golden: Golden) -> None:
    reports = [("log", "Layers:\nnothing"), ("json", golden("inspector-by-hand.json"))]
    found = attest_layers("tensorrt", read_layers(reports, NODES), NODES, dict.fromkeys(NODES, "float16"))
    assert found.layers == dict.fromkeys(NODES, "float16")


def test_a_layer_that_no_report_names_is_refused(golden: Golden) -> None:
    with pytest.raises(ExportError, match=r"log report says nothing about stem; .*inspector reports no layers"):
        read_layers([("log", golden("layers-fp16.txt")), ("json", '{"Layers": []}')], [*NODES, "stem"])


def test_no_report_at_all_is_refused() -> None:
    with pytest.raises(ExportError, match="cannot be read back: TensorRT reports no layers"):
        read_layers([], NODES)


def test_a_layer_without_a_type_asked_for_is_refused(golden: Golden) -> None:
    layers = read_layers([("log", golden("layers-fp16.txt"))], NODES)
    with pytest.raises(ExportError, match="no type was asked for up, head"):
        attest_layers("x", layers, NODES, dict.fromkeys(("down", "bottom", "merge"), "float16"))


@pytest.mark.parametrize(
    ("found", "dtype"),
    [
        (layer("correlation", data("float16"), constants=(WEIGHTS,)), "float16"),
        (layer("correlation", data("float32"), constants=(WEIGHTS,)), "float32/float16"),
        (layer("kgen", data("float32"), constants=(WEIGHTS,)), "float16"),
        (layer("correlation", data("int8"), EngineTensor((4, 8, 3, 3), "int8")), "int8"),
        (layer("CaskConvolution", data(""), weights="float16"), "float16"),
        (layer("CaskConvolution", data("float32"), weights="int8"), "float32/int8"),
        (layer("runtime_fusion", data("float16"), data("float16"), constants=(WEIGHTS,)), "float16"),
        (layer("correlation", data("float16"), constants=(EngineTensor((1,), "float32"),)), "float16"),
    ],
    ids=["library", "mixed", "converts", "fed", "hidden data", "weights only", "fused add", "scale alone"],
)
def test_the_type_of_a_layer_is_that_of_its_products(found: EngineLayer, dtype: str) -> None:
    assert attest_layers("x", [found], ["merge"], {"merge": dtype}).layers == {"merge": dtype}


def test_the_kernel_that_multiplies_counts_and_not_the_one_that_prepares_its_data() -> None:
    prepares = layer("kgen", data("float32"), constants=(EngineTensor((8, 1, 1, 1), "float32"),))
    multiplies = layer("correlation", data("float16"), constants=(WEIGHTS,))
    assert attest_layers("x", [prepares, multiplies], ["merge"], {"merge": "float16"}).compute_dtype == "float16"


def test_the_arithmetic_nodes_of_a_graph_are_listed(tiny_unet: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(tiny_unet().SerializeToString())
    assert arithmetic_nodes(path) == NODES


def test_a_nameless_convolution_is_refused(tiny_unet: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_unet()
    next(node for node in model.graph.node if node.op_type == "Conv").name = ""
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="nodes without a name"):
        arithmetic_nodes(path)


@pytest.mark.parametrize("data", [b"not onnx at all", b"\xff" * 100], ids=["text", "bytes"])
def test_a_file_that_is_no_graph_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(data)
    with pytest.raises(ExportError, match=r"graph\.onnx is not an ONNX graph"):
        arithmetic_nodes(path)
