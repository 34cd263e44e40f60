"""The choice of float32 nodes: overflow, headroom, blocks that disturb the logits, and its evidence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from unetx_exporters.onnx.precision import HalfLimits, choose_fp32_nodes, convert_fp16, emulate_fp16
from unetx_exporters.onnx.precision.comparison import compare_nodes
from unetx_exporters.onnx.verify import GraphRunner
from unetx_opt.errors import ExportError

IMAGES = [np.random.default_rng(seed).random((1, 1, 64, 64), np.float32) for seed in range(2)]


def scaled(model: onnx.ModelProto, factors: dict[str, float]) -> onnx.ModelProto:
    """Copy a graph with some initializers multiplied."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for tensor in copied.graph.initializer:
        if tensor.name in factors:
            values = numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copied


def overflowing(trace: Callable[..., Any]) -> onnx.ModelProto:
    """A graph whose second stage reaches beyond 65504, and whose next convolution brings it back."""
    factors = {
        "encoder.1.conv1.weight": 2.0**18,
        "encoder.1.conv1.bias": 2.0**16,
        "encoder.1.conv2.weight": 2.0**-10,
        "encoder.2.conv1.weight": 2.0**-8,
    }
    return scaled(trace()[1].model, factors)


def logits(model: onnx.ModelProto) -> np.ndarray:
    with GraphRunner(model) as runner:
        return np.stack([runner.run(image)["logits"] for image in IMAGES])


def test_a_graph_that_float16_holds_keeps_nothing(trace: Callable[..., Any]) -> None:
    for variant in ("unet", "attention"):
        choice = choose_fp32_nodes(trace(variant)[1].model, IMAGES)
        assert choice.keep_fp32 == ()
        assert 0.0 < choice.logit_error < 0.01
        assert choice.images == 2
        assert {record.dtype for record in choice.nodes} == {"float16"}
        assert {record.reason for record in choice.nodes} == {None}


def test_both_ends_of_an_overflowing_tensor_are_kept_and_no_more(trace: Callable[..., Any]) -> None:
    model = overflowing(trace)
    reference = logits(model)
    plain = logits(emulate_fp16(convert_fp16(model)))
    assert not np.allclose(plain, reference, atol=0.1 * np.abs(reference).max())

    choice = choose_fp32_nodes(model, IMAGES)

    assert choice.keep_fp32 == ("encoder.1.conv1", "encoder.1.relu", "encoder.1.conv2")
    assert choice.logit_error < 0.01
    chosen = logits(emulate_fp16(convert_fp16(model, choice.keep_fp32)))
    assert np.abs(chosen - reference).max() / np.abs(reference).max() == pytest.approx(choice.logit_error, rel=1e-3)
    rows = {record.name: record for record in choice.nodes}
    assert rows["encoder.1.conv1"].peak > 65504
    assert rows["encoder.1.conv1"].error is None
    assert "of 65504 (headroom 8)" in str(rows["encoder.1.conv1"].reason)


def test_headroom_keeps_a_tensor_that_does_not_overflow_yet(trace: Callable[..., Any]) -> None:
    model = trace()[1].model
    peak = max(record.peak for record in choose_fp32_nodes(model, IMAGES).nodes)
    choice = choose_fp32_nodes(model, IMAGES, HalfLimits(headroom=65504 / peak * 1.01))
    assert 0 < len(choice.keep_fp32) < 10


def test_blocks_follow_until_the_logit_error_holds(trace: Callable[..., Any]) -> None:
    model = trace()[1].model
    loose = choose_fp32_nodes(model, IMAGES).logit_error
    errors, sizes = [loose], [0]
    for limit in (loose * 0.7, loose * 0.1):
        choice = choose_fp32_nodes(model, IMAGES, HalfLimits(logit_error=limit))
        assert choice.logit_error <= limit
        errors.append(choice.logit_error)
        sizes.append(len(choice.keep_fp32))
        kept = [record for record in choice.nodes if record.name in choice.keep_fp32]
        assert all(record.dtype == "float32" and record.reason for record in kept)
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors == sorted(errors, reverse=True)


def test_a_limit_of_zero_ends_with_the_float32_graph(trace: Callable[..., Any]) -> None:
    model = trace()[1].model
    choice = choose_fp32_nodes(model, IMAGES[:1], HalfLimits(logit_error=0.0))
    assert choice.logit_error == 0.0
    assert set(choice.keep_fp32) == {node.name for node in model.graph.node}


def test_the_evidence_is_json(trace: Callable[..., Any]) -> None:
    choice = choose_fp32_nodes(overflowing(trace), IMAGES)
    text = json.dumps(dataclasses.asdict(choice), allow_nan=False)
    assert json.loads(text)["nodes"][0]["name"] == "encoder.0.conv1"


def test_peaks_and_errors_are_those_of_the_tensors(trace: Callable[..., Any]) -> None:
    model, traced = trace("attention")
    emulated = emulate_fp16(convert_fp16(traced.model))
    extremes = compare_nodes(traced.model, emulated, IMAGES)
    with GraphRunner(emulated, outputs=traced.junctions) as runner:
        halves = [runner.run(image) for image in IMAGES]
    with torch.no_grad():
        singles = [model.forward_with_junctions(torch.from_numpy(image))[1] for image in IMAGES]
    for name in traced.junctions:
        expected = np.stack([single[name.removeprefix("junction.")].numpy() for single in singles])
        actual = np.stack([half[name] for half in halves])
        assert extremes[name].peak == pytest.approx(np.abs(expected).max(), rel=1e-5)
        assert extremes[name].error == pytest.approx(np.abs(actual - expected).max(), rel=1e-2)


def test_choosing_without_images_or_from_a_broken_graph_is_an_error(trace: Callable[..., Any]) -> None:
    model = trace()[1].model
    with pytest.raises(ExportError, match="needs images"):
        choose_fp32_nodes(model, [])
    with pytest.raises(ExportError, match="not finite"):
        choose_fp32_nodes(scaled(model, {"head.weight": float("nan")}), IMAGES)
