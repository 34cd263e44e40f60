"""Hashes: what changes them and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest

from unetx_exporters.onnx.digest import graph_sha256, structure_sha256
from unetx_exporters.onnx.precision import convert_fp16, store_fp16
from unetx_exporters.onnx.trace import trace_onnx


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with every name replaced but those of its input and output."""
    copied = onnx.compose.add_prefix(model, "other/", rename_inputs=False, rename_outputs=False)
    copied.producer_name = "somebody"
    copied.graph.doc_string = "a remark"
    del copied.graph.value_info[:]
    return copied


def test_the_baseline_and_the_focal_variant_have_one_structure(
    trace: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    baseline = trace("unet")[1].model
    focal = trace_onnx(make_model("focal", seed=1), 64, 64).model
    assert structure_sha256(baseline) == structure_sha256(focal)
    assert graph_sha256(baseline) != graph_sha256(focal)


def test_names_and_remarks_are_no_structure(trace: Callable[..., Any]) -> None:
    model = trace("attention")[1].model
    assert structure_sha256(renamed(model)) == structure_sha256(model)
    assert graph_sha256(renamed(model)) != graph_sha256(model)


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        pytest.param("attention", {}, id="neighbourhood"),
        pytest.param("attention", {"gate": "additive"}, id="additive"),
        pytest.param("dilated", {"depth": 3}, id="dilated"),
        pytest.param("unet", {"upsampling": "bilinear", "in_channels": 2}, id="bilinear"),
    ],
)
def test_another_architecture_has_another_structure(
    trace: Callable[..., Any], variant: str, overrides: dict[str, Any]
) -> None:
    assert structure_sha256(trace(variant, **overrides)[1].model) != structure_sha256(trace()[1].model)


def test_precision_is_structure(trace: Callable[..., Any]) -> None:
    model = trace()[1].model
    graphs = [model, convert_fp16(model), convert_fp16(model, ["head"]), store_fp16(model)]
    assert len({structure_sha256(graph) for graph in graphs}) == 4


def test_an_attribute_an_edge_and_an_index_are_structure(trace: Callable[..., Any]) -> None:
    model = trace("attention")[1].model
    original = structure_sha256(model)

    def changed(change: Callable[[onnx.GraphProto], None]) -> str:
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        change(copied.graph)
        return structure_sha256(copied)

    def dilate(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "Conv")
        next(attribute for attribute in node.attribute if attribute.name == "dilations").ints[0] = 2

    def rewire(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "Concat")
        node.input[0], node.input[1] = node.input[1], node.input[0]

    def shift(graph: onnx.GraphProto) -> None:
        index = next(t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64)
        values = onnx.numpy_helper.to_array(index) + 1
        index.CopyFrom(onnx.numpy_helper.from_array(values, index.name))

    assert len({original, changed(dilate), changed(rewire), changed(shift)}) == 4
