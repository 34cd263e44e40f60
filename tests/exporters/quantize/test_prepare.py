"""Rewritings change no float result, and stay only where the int8 graph comes closer to the float graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from unetx_exporters.quantize.bias import bias_shifts
from unetx_exporters.quantize.calibrate import CalibrationOptions, calibrate_ranges
from unetx_exporters.quantize.equalize import equalize_channels, equalize_junctions
from unetx_exporters.quantize.insert import QuantizePlan
from unetx_exporters.quantize.prepare import prepare_graph
from unetx_exporters.quantize.ranges import TensorRange

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

LAYERS = ("down", "bottom", "up", "merge", "head")


def smooth(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] / 32.0
    waves = [np.sin(2.0 * np.pi * (generator.normal() * x + generator.normal() * y) + k) for k in range(3)]
    image: np.ndarray = (0.5 + 0.2 * sum(waves))[np.newaxis, np.newaxis].astype(np.float32)
    return image


def scaled(model: Any, factors: Mapping[str, Any]) -> Any:
    """Multiply stored weights by factors that broadcast."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in factors:
            values = onnx.numpy_helper.to_array(tensor) * np.asarray(factors[tensor.name], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return changed


def weights(model: Any) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: Any, image: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(None, {"image": image})[0]
    return logits


def channel(count: int, index: int, factor: float, axis: int) -> np.ndarray:
    shape = [1] * 4
    shape[axis] = count
    factors = np.ones(count)
    factors[index] = factor
    return factors.reshape(shape)


def with_outlier_channel(model: Any) -> Any:
    """One channel of "bottom" is 512 times the others, and is divided again by its reader."""
    return scaled(model, {"bottom.weight": channel(8, 2, 512.0, 0), "up.weight": channel(8, 2, 1.0 / 512.0, 0)})


def calibrated(model: Any) -> Any:
    return calibrate_ranges(model, map(smooth, range(4)), CalibrationOptions(threads=1))


def test_equalizing_a_junction_changes_no_bit_and_brings_both_sides_to_one_size(
    tiny_unet: Callable[..., Any],
) -> None:
    model = scaled(tiny_unet(), {"up.weight": 1.0 / 16.0})
    ranges = {name: TensorRange(h.low, h.high, "min-max", 0.0) for name, h in calibrated(model).histograms.items()}
    equalized = equalize_junctions(model, ranges)
    np.testing.assert_array_equal(run(equalized, smooth(9)), run(model, smooth(9)))
    histograms = calibrated(equalized).histograms
    reach = [max(-histograms[name].low, histograms[name].high) for name in ("up.out", "down.relu.out")]
    assert 0.5 < reach[0] / reach[1] < 2.0
    factors = weights(equalized)["up.weight"] / weights(model)["up.weight"]
    assert np.all(factors == factors.flat[0])
    assert np.log2(factors.flat[0]) == round(float(np.log2(factors.flat[0])))


def test_equalizing_channels_changes_no_bit_and_takes_an_outlier_out(tiny_unet: Callable[..., Any]) -> None:
    model = with_outlier_channel(tiny_unet())
    equalized = equalize_channels(model)
    np.testing.assert_array_equal(run(equalized, smooth(9)), run(model, smooth(9)))
    before, after = (np.abs(weights(m)["bottom.weight"]).max(axis=(1, 2, 3)) for m in (model, equalized))
    assert before.max() / np.median(before) > 100.0
    assert after.max() / np.median(after) < 16.0


def test_the_shift_of_a_bias_is_what_rounding_the_weights_does_to_a_grey_image(tiny_unet: Callable[..., Any]) -> None:
    model = tiny_unet()
    grey = np.full((1, 1, 32, 32), 0.37, np.float32)
    shift = bias_shifts(model, [grey])["down"]
    w = weights(model)["down.weight"].astype(np.float64)
    scale = np.abs(w).max(axis=(1, 2, 3), keepdims=True) / 127.0
    difference = w - np.round(w / scale) * scale
    expected = [0.37 * sum(difference[o, 0, y, x] for y in range(3) for x in range(3)) for o in range(4)]
    np.testing.assert_allclose(shift, expected, rtol=1e-3, atol=1e-7)


def test_a_graph_with_an_outlier_channel_is_rescued_and_every_step_says_what_it_did(
    tiny_unet: Callable[..., Any],
) -> None:
    model = with_outlier_channel(tiny_unet())
    prepared = prepare_graph(model, calibrated(model))
    steps = {step.name: step for step in prepared.steps}
    assert list(steps) == ["junctions", "channels", "biases"]
    assert steps["channels"].kept
    assert steps["channels"].error_after < 0.5 * steps["channels"].error_before
    plan = QuantizePlan("cpu", dict.fromkeys(LAYERS, "int8"))
    plain = prepare_graph(tiny_unet(), calibrated(tiny_unet()))
    for seed in (20, 21):  # images that no step was measured on
        expected = run(model, smooth(seed))
        error = np.mean((run(prepared.quantize(plan), smooth(seed)) - expected) ** 2)
        usual = np.mean((run(plain.quantize(plan), smooth(seed)) - run(tiny_unet(), smooth(seed))) ** 2)
        assert error < 4.0 * usual


def test_steps_that_do_not_help_leave_the_graph_as_it_is(tiny_unet: Callable[..., Any]) -> None:
    model = tiny_unet()
    prepared = prepare_graph(model, calibrated(model))
    for step in prepared.steps:
        assert step.kept == (step.error_after < 0.98 * step.error_before)
    kept = {step.name for step in prepared.steps if step.kept}
    if not kept & {"junctions", "channels"}:
        assert prepared.model is model
    assert bool(prepared.bias_shifts) == ("biases" in kept)


def test_a_corrected_bias_is_only_that_of_a_layer_in_int8(tiny_unet: Callable[..., Any]) -> None:
    import dataclasses

    model = tiny_unet()
    prepared = prepare_graph(model, calibrated(model))
    shifts = {"down": np.full(4, 0.25, np.float32), "merge": np.full(4, 0.5, np.float32)}
    forced = dataclasses.replace(prepared, model=model, bias_shifts=shifts)
    nodes = {n.name: n for n in forced.quantize(QuantizePlan("cpu", {"down": "int8"})).graph.node}
    assert nodes["down"].input[2] == "down.bias.corrected"
    assert len(nodes["merge"].input) == 2
