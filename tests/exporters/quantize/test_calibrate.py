"""Calibration: what is counted, that memory does not grow, what is refused, and how a range is chosen."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from unetx_exporters.quantize.calibrate import CalibrationOptions, calibrate_ranges
from unetx_exporters.quantize.disturbance import logit_errors
from unetx_exporters.quantize.histogram import histogram_of
from unetx_exporters.quantize.ranges import METHODS, choose_scales, squared_error
from unetx_exporters.quantize.schemes import get_form
from unetx_opt.errors import DataError, ExportError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

TENSORS = ("image", "down.relu.out", "bottom.relu.out", "up.out", "merge.relu.out")
ALL = CalibrationOptions(sampled_values=10**9, threads=1)


def smooth(seed: int) -> np.ndarray:
    """An image (1, 1, 32, 32) of waves: neighbours are alike, no two seeds are."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] / 32.0
    waves = [np.sin(2.0 * np.pi * (generator.normal() * x + generator.normal() * y) + k) for k in range(3)]
    image: np.ndarray = (0.5 + 0.2 * sum(waves))[np.newaxis, np.newaxis].astype(np.float32)
    return image


def every_tensor(model: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    marked = onnx.shape_inference.infer_shapes(model)
    outputs = {value.name: value for value in marked.graph.value_info}
    marked.graph.output.extend(outputs[name] for name in TENSORS[1:])
    session = ort.InferenceSession(marked.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {"image": image, **dict(zip(names, session.run(names, {"image": image}), strict=True))}


def test_the_histograms_are_those_of_all_values_of_all_images(tiny_unet: Callable[..., Any]) -> None:
    model = tiny_unet()
    found = calibrate_ranges(model, map(smooth, range(3)), ALL)
    assert set(found.histograms) == set(TENSORS)
    assert found.images == 3
    computed = [every_tensor(model, smooth(seed)) for seed in range(3)]
    for name in TENSORS:
        whole = np.concatenate([tensors[name].ravel() for tensors in computed])
        histogram = found.histograms[name]
        assert (histogram.low, histogram.high) == pytest.approx((float(whole.min()), float(whole.max())), abs=1e-6)
        assert histogram.total == whole.size
        expected = histogram_of(whole)
        assert abs(float(np.dot(histogram.centres(), histogram.counts) - whole.sum())) < 1e-3 * whole.size
        assert expected.exponent == histogram.exponent


def test_neither_the_order_of_the_images_nor_the_grouping_of_tensors_matters(tiny_unet: Callable[..., Any]) -> None:
    model = tiny_unet()
    one = calibrate_ranges(model, map(smooth, (1, 2, 3)), ALL)
    other = calibrate_ranges(model, map(smooth, (3, 1, 2)), CalibrationOptions(group_bytes=1, threads=1))
    for name in TENSORS:
        assert (one.histograms[name].low, one.histograms[name].high) == (
            other.histograms[name].low,
            other.histograms[name].high,
        )
        np.testing.assert_array_equal(one.histograms[name].counts, other.histograms[name].counts)


def test_images_pass_one_at_a_time_whatever_their_number(tiny_unet: Callable[..., Any]) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal most
        for seed in range(40):
            image = smooth(seed)
            alive.append(weakref.ref(image))
            yield image
            del image
            most = max(most, sum(reference() is not None for reference in alive))

    found = calibrate_ranges(tiny_unet(), images(), CalibrationOptions(threads=1))
    assert found.images == 40
    assert len(found.probes) == 4
    assert most <= 1
    assert max(len(histogram.counts) for histogram in found.histograms.values()) <= 2048


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.random.default_rng(0).random((1, 1, 32, 32), np.float32), "looks like noise"),
        (np.full((1, 1, 32, 32), 0.5, np.float32), "of one grey"),
        (np.full((1, 1, 32, 32), np.nan, np.float32), "not finite"),
        (np.zeros((32, 32), np.float32), r"expected \(N, C, H, W\)"),
    ],
    ids=["noise", "constant", "nan", "shape"],
)
def test_what_is_no_image_is_refused(tiny_unet: Callable[..., Any], image: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibrate_ranges(tiny_unet(), [smooth(0), image], ALL)


def test_no_image_at_all_is_refused_and_few_are_warned_about(tiny_unet: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="no calibration image"):
        calibrate_ranges(tiny_unet(), [], ALL)
    few = calibrate_ranges(tiny_unet(), map(smooth, range(3)), ALL)
    assert "3 images only" in few.warnings[0]
    assert calibrate_ranges(tiny_unet(), map(smooth, range(16)), ALL).warnings == ()


def test_a_model_that_overflows_is_refused_with_the_tensor(tiny_unet: Callable[..., Any]) -> None:
    model = tiny_unet()
    for tensor in model.graph.initializer:
        if tensor.name == "bottom.weight":
            huge = np.full(tuple(tensor.dims), 3e38, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(huge, tensor.name))
    with pytest.raises(ExportError, match=r"bottom.relu.out is not finite"):
        calibrate_ranges(model, [smooth(0)], ALL)


def with_pair(model: Any, tensor: str, scale: float, zero_point: int) -> Any:
    """Insert one Q/DQ pair behind a tensor, by hand."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    helper = onnx.helper
    for node in changed.graph.node:
        for index, name in enumerate(node.input):
            if name == tensor:
                node.input[index] = "rounded"
    place = next(
        (i + 1 for i, node in enumerate(changed.graph.node) if tensor in node.output),
        0,
    )
    changed.graph.node.insert(place, helper.make_node("QuantizeLinear", [tensor, "s", "z"], ["codes"]))
    changed.graph.node.insert(place + 1, helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["rounded"]))
    for name, value in (("s", np.float32(scale)), ("z", np.uint8(zero_point))):
        changed.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return changed


@pytest.mark.parametrize("tensor", TENSORS)
def test_the_disturbance_is_that_of_a_pair_in_the_graph(tiny_unet: Callable[..., Any], tensor: str) -> None:
    model, grid, images = tiny_unet(), get_form("cpu").activations, [smooth(5), smooth(6)]
    limits = (-0.7, 1.3)
    found = logit_errors(model, {tensor: {"only": limits}}, grid, images)[tensor]["only"]
    quantizer = grid.fit(*limits)
    sessions = [
        ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        for graph in (model, with_pair(model, tensor, quantizer.scale, quantizer.zero_point))
    ]
    logits = [[session.run(None, {"image": image})[0] for image in images] for session in sessions]
    direct = np.mean([np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(*logits, strict=True)])
    assert found == pytest.approx(float(direct), rel=1e-3)
    assert found > 0.0


def test_the_method_that_disturbs_the_logits_least_is_chosen(tiny_unet: Callable[..., Any]) -> None:
    model, grid = tiny_unet(), get_form("cpu").activations
    calibration = calibrate_ranges(model, map(smooth, range(6)), ALL)
    chosen = choose_scales(calibration, model)
    minmax = {name: {"min-max": (h.low, h.high)} for name, h in calibration.histograms.items()}
    images = calibration.probes[:2]
    errors = logit_errors(model, minmax, grid, images)
    for name, found in chosen.items():
        assert found.method in METHODS
        assert found.error <= errors[name]["min-max"] * 1.000001
        again = logit_errors(model, {name: {"own": (found.low, found.high)}}, grid, images)[name]["own"]
        assert again == pytest.approx(found.error, rel=1e-6)


def test_a_candidate_that_is_beaten_on_the_first_image_is_left_out(tiny_unet: Callable[..., Any]) -> None:
    candidates = {"merge.relu.out": {"fair": (0.0, 1.0), "absurd": (0.0, 1e-3), "worse": (0.0, 1000.0)}}
    found = logit_errors(tiny_unet(), candidates, get_form("cpu").activations, [smooth(5), smooth(6)])
    assert list(found["merge.relu.out"]) == ["fair"]


def test_without_kept_images_the_error_of_the_tensor_itself_decides(tiny_unet: Callable[..., Any]) -> None:
    calibration = calibrate_ranges(tiny_unet(), map(smooth, range(4)), CalibrationOptions(probes=0, threads=1))
    assert calibration.probes == ()
    grid = get_form("cpu").activations
    for name, found in choose_scales(calibration, tiny_unet()).items():
        histogram = calibration.histograms[name]
        assert found.error == squared_error(histogram, grid, (found.low, found.high))
        assert found.error <= squared_error(histogram, grid, (histogram.low, histogram.high))


def test_the_record_is_plain_json_and_names_every_tensor(tiny_unet: Callable[..., Any]) -> None:
    import json

    calibration = calibrate_ranges(tiny_unet(), map(smooth, range(4)), ALL)
    record = json.loads(json.dumps(calibration.to_json()))
    assert set(record["tensors"]) == set(TENSORS)
    assert record["images"] == 4
    chosen = {name: found.to_json() for name, found in choose_scales(calibration, tiny_unet()).items()}
    assert json.loads(json.dumps(chosen)) == chosen
