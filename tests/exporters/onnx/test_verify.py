"""Parity of a graph with its module, junction by junction, and of a graph with itself when nothing is marked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from unetx_exporters.onnx.verify import (
    FP32_LIMIT,
    GraphRunner,
    ParityLimit,
    compare_tensors,
    junction_parity,
    require_parity,
    unmarked_parity,
)
from unetx_opt.errors import ExportError
from unetx_opt.imaging.files import read_image
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.specs import InputContract

IMAGES = [np.random.default_rng(seed).random((2, 1, 64, 64), np.float32) for seed in range(2)]


def damaged(model: onnx.ModelProto, weight: str) -> onnx.ModelProto:
    """Copy a graph with one weight shifted."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for tensor in copied.graph.initializer:
        if tensor.name == weight:
            values = numpy_helper.to_array(tensor) + np.float32(0.05)
            tensor.CopyFrom(numpy_helper.from_array(values, weight))
    return copied


@pytest.mark.parametrize("variant", ["unet", "attention"])
def test_a_traced_graph_passes_at_every_junction_and_unmarked(trace: Callable[..., Any], variant: str) -> None:
    model, traced = trace(variant)
    rows = junction_parity(model, traced.model, IMAGES, traced.junctions)
    assert [row.name for row in rows] == [*traced.junctions, "logits"]
    assert all(row.passed for row in rows)
    require_parity(rows, "the ONNX graph")
    assert unmarked_parity(traced.model, IMAGES, traced.junctions).passed


def test_a_traced_graph_passes_on_real_radiographs(trace: Callable[..., Any], lungs: Path) -> None:
    model, traced = trace("attention")
    contract = InputContract(height=64, width=64)
    paths = sorted((lungs / "images").iterdir())[:2]
    images = [prepare_image(read_image(path).pixels, contract)[0][None] for path in paths]
    require_parity(junction_parity(model, traced.model, images, traced.junctions), "the ONNX graph")


@pytest.mark.parametrize(
    ("weight", "first"),
    [
        pytest.param("encoder.0.conv1.weight", "junction.bottleneck", id="encoder"),
        pytest.param("decoder.1.up.project.weight", "junction.skip1", id="upsampling"),
        pytest.param("decoder.1.block.conv2.weight", "junction.skip0", id="decoder"),
        pytest.param("head.weight", "logits", id="head"),
    ],
)
def test_the_error_names_the_first_junction_that_differs(trace: Callable[..., Any], weight: str, first: str) -> None:
    model, traced = trace()
    rows = junction_parity(model, damaged(traced.model, weight), IMAGES, traced.junctions)
    with pytest.raises(ExportError, match=f"the ONNX graph differs from its reference first at {first}: by "):
        require_parity(rows, "the ONNX graph")


def test_a_value_that_is_not_finite_never_passes() -> None:
    good, bad = np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32)
    for value in (np.nan, np.inf):
        bad[0, 0, 0, 0] = value
        for expected, actual in ((good, bad), (bad, good), (bad, bad)):
            row = compare_tensors("logits", expected, actual, ParityLimit(1e9, 1e9))
            assert (row.passed, row.max_abs) == (False, np.inf)


def test_the_limit_is_absolute_plus_relative_to_the_largest_value() -> None:
    expected = np.array([0.0, -200.0], np.float32)
    row = compare_tensors("logits", expected, expected + np.float32(0.5), ParityLimit(atol=0.1, rtol=0.002))
    assert (row.max_abs, row.rel, row.limit, row.passed) == (0.5, 0.0025, 0.5, True)
    assert not compare_tensors("logits", expected, expected + np.float32(0.6), ParityLimit(0.1, 0.002)).passed


def test_another_shape_is_an_error_and_not_broadcast() -> None:
    with pytest.raises(ExportError, match=r"shape \(1, 1\), expected \(2, 1\)"):
        compare_tensors("logits", np.zeros((2, 1)), np.zeros((1, 1)), FP32_LIMIT)


def test_comparing_nothing_is_an_error(trace: Callable[..., Any]) -> None:
    model, traced = trace()
    with pytest.raises(ExportError, match="at least one input"):
        junction_parity(model, traced.model, [], traced.junctions)
    with pytest.raises(ExportError, match="at no tensor"):
        require_parity([], "the graph")


def test_the_module_keeps_its_mode(trace: Callable[..., Any], make_model: Callable[..., Any]) -> None:
    model = make_model().train()
    traced = trace()[1]
    assert all(row.passed for row in junction_parity(model, traced.model, IMAGES[:1], traced.junctions))
    assert model.training


def test_a_runner_takes_bytes_gives_outputs_by_name_and_says_why_it_cannot(trace: Callable[..., Any]) -> None:
    traced = trace()[1]
    with GraphRunner(traced.model.SerializeToString(), threads=1) as runner:
        assert runner.outputs == ("logits",)
        assert runner.run(IMAGES[0])["logits"].shape == (2, 1, 64, 64)
    with pytest.raises(ExportError, match=r"ONNX Runtime .* refuses the graph"):
        GraphRunner(b"not a graph")
    with pytest.raises(TypeError, match="ModelProto"):
        GraphRunner(traced.model.SerializeToString(), outputs=traced.junctions)
