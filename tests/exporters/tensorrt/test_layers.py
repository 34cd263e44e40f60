"""Layer lists of real builds, the inspector's form after its documentation, and texts that are neither."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_exporters.tensorrt.layers import EngineLayer, parse_inspector_json, parse_layer_dump
from unetx_opt.errors import ExportError

Golden = Callable[[str], str]


def layer_for(layers: tuple[EngineLayer, ...], name: str) -> EngineLayer:
    return next(layer for layer in layers if layer.name.startswith(name))


@pytest.mark.parametrize(("name", "count"), [("fp32", 11), ("fp16", 11), ("int8", 15), ("int8-sm75", 19)])
def test_every_layer_of_a_recorded_build_is_read(golden: Golden, name: str, count: int) -> None:
    text = golden(f"layers-{name}.txt")
    assert len(parse_layer_dump(text)) == count == text.count("\nName: ")


def test_a_recorded_convolution_has_its_tensors_and_nodes(golden: Golden) -> None:
    layer = layer_for(parse_layer_dump(golden("layers-fp16.txt")), "bottom_myl")
    assert layer.kind == "correlation"
    assert [(tensor.dims, tensor.dtype) for tensor in layer.inputs] == [((-1, 4, 16, 16), "float16")]
    assert (layer.constants[0].dims, layer.constants[0].dtype) == ((8, 4, 3, 3), "float16")
    assert [(tensor.dims, tensor.dtype) for tensor in layer.outputs] == [((-1, 8, 16, 16), "float16")]
    assert layer.stands_for("bottom")
    assert layer.stands_for("bottom.relu")
    assert not layer.stands_for("bott")


def test_the_layer_list_is_found_in_the_middle_of_a_log(golden: Golden) -> None:
    text = golden("layers-fp16.txt")
    assert parse_layer_dump(f"[V] Parsing node: x\nName: no layer\n[V] {text}\nName: later") == parse_layer_dump(text)


def test_the_types_of_a_quantised_convolution_are_its_own(golden: Golden) -> None:
    layer = layer_for(parse_layer_dump(golden("layers-int8.txt")), "bottom_myl")
    assert layer.inputs[0].dtype == layer.constants[0].dtype == "int8"
    assert layer.outputs[0].dtype == "float32"


def test_names_with_commas_and_brackets_do_not_move_the_fields() -> None:
    line = (
        "Layers:\nName: {ForeignNode[a, b...c]}, LayerType: Myelin, Inputs: [ { Name: x[0], y, Dimensions: [-1,2], "
        "Datatype: Half, Format: Row (a, b) }, { Name: z, Dimensions: [2,2], Datatype: BFloat16 }], Constants: [], "
        "Outputs: [ { Name: o, Dimensions: [], Datatype: Int64 }], StreamId: 0, Metadata: [ONNX Layer: /a[1], b: c]"
    )
    (layer,) = parse_layer_dump(line)
    assert (layer.name, layer.kind) == ("{ForeignNode[a, b...c]}", "Myelin")
    assert [(t.dims, t.dtype) for t in layer.inputs] == [((-1, 2), "float16"), ((2, 2), "bfloat16")]
    assert [(t.dims, t.dtype) for t in layer.outputs] == [((), "int64")]
    assert layer.stands_for("/a[1], b: c")


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("Half", "float16"),
        ("Float", "float32"),
        ("Int8", "int8"),
        ("UInt8", "uint8"),
        ("BFloat16", "bfloat16"),
        ("FP8", "float8e4m3fn"),
        ("Bool", "bool"),
        ("Row major linear FP32", "float32"),
        ("Channel major FP16 format where channel % 8 == 0", "float16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Half(64,1:8,8)", "float16"),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_the_inspectors_words_for_a_type_are_understood(text: str, dtype: str) -> None:
    tensor = {"Name": "x", "Dimensions": [1], "Format/Datatype": text}
    (layer,) = parse_inspector_json(json.dumps({"Layers": [{"Name": "a", "Inputs": [tensor]}]}))
    assert layer.inputs[0].dtype == dtype


def test_the_inspectors_form_is_read(golden: Golden) -> None:
    layers = parse_inspector_json(golden("inspector-by-hand.json"))
    assert [layer.weights_dtype for layer in layers] == ["", "float16", "float16", "float16", "", "float16"]
    assert layer_for(layers, "bottom").stands_for("bottom.relu")
    assert layer_for(layers, "merge").constants[0].dims == (4, 8, 3, 3)


def test_control_characters_between_the_inspectors_node_names_are_read() -> None:
    text = '{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: a]\x1f[ONNX Layer: b]"}]}'
    assert parse_inspector_json(text)[0].stands_for("b")


@pytest.mark.parametrize("text", ["", "no layers here", "Layers:\n", "Layers:\n\n", "Layers:\nI/O Tensors:\n"])
def test_a_log_without_layers_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="lists no layers"):
        parse_layer_dump(text)


@pytest.mark.parametrize("line", ["Name: a", "Name: a[, LayerType: b, Inputs: [], Outputs: []", "Name: "])
def test_a_line_that_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(ExportError, match="cannot be read"):
        parse_layer_dump(f"Layers:\n{line}")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"Layers": 3}', '{"Layers": []}', '{"Layers": ["name only"]}'])
def test_an_inspector_report_without_details_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match=r"inspector"):
        parse_inspector_json(text)


@given(st.text(max_size=300))
def test_any_text_gives_layers_or_an_export_error(text: str) -> None:
    for parse in (parse_layer_dump, parse_inspector_json):
        for given_text in (text, f"Layers:\nName: {text}", f'{{"Layers": [{text}]}}'):
            try:
                parse(given_text)
            except ExportError:
                continue
