"""8-bit graphs of a small trained network, a search with real images, and networks made hostile on purpose."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from unetx_exporters.gate import DriftOptions, measure_drift
from unetx_exporters.gate_images import phantom_gate_images
from unetx_exporters.onnx.trace import trace_onnx
from unetx_exporters.onnx.verify import GraphRunner
from unetx_exporters.quantize.calibrate import calibrate_ranges
from unetx_exporters.quantize.candidates import Plan, get_scheme, list_groups
from unetx_exporters.quantize.images import calibration_set
from unetx_exporters.quantize.insert import QuantizePlan, insert_qdq
from unetx_exporters.quantize.ranges import choose_scales
from unetx_exporters.quantize.request import GateTask, QuantizedGraph, QuantizeRequest
from unetx_exporters.quantize.stage import Quantization, open_quantized
from unetx_exporters.quantize.state import SearchState
from unetx_opt.errors import GateError
from unetx_opt.metrics.gates import decide_gate
from unetx_opt.models.checkpoint import load_model, read_checkpoint
from unetx_opt.specs import InputContract

SIZE_PX = 64
LAYER = "decoder.0.block.conv2"  # reads what the block's first convolution gives


@pytest.fixture(scope="module")
def traced(tiny_checkpoint: Path) -> onnx.ModelProto:
    return trace_onnx(load_model(read_checkpoint(tiny_checkpoint)), SIZE_PX, SIZE_PX).model


def scaled_channels(model: onnx.ModelProto, factors: Mapping[int, float]) -> onnx.ModelProto:
    """Scale channels between the last block's convolutions, and take it back in the second: the same function."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    first, second = "decoder.0.block.conv1", "decoder.0.block.conv2"
    for name, axis, power in ((f"{first}.weight", 0, 1), (f"{first}.bias", 0, 1), (f"{second}.weight", 1, -1)):
        values = numpy_helper.to_array(tensors[name]).copy()
        for channel, factor in factors.items():
            place: list[slice | int] = [slice(None)] * values.ndim
            place[axis] = channel
            values[tuple(place)] *= np.float32(factor**power)
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return changed


def loudest_channel(model: onnx.ModelProto) -> int:
    """Channel of the last block's first convolution with the largest value on a phantom."""
    name = "decoder.0.block.relu.out"
    image = next(calibration_set(None, SIZE_PX, 0).prepared(InputContract(height=SIZE_PX, width=SIZE_PX)))
    with GraphRunner(model, outputs=[name], threads=1) as runner:
        peaks: NDArray[np.float32] = runner.run(image)[name][0].max((1, 2))
    return int(peaks.argmax())


def to_range(model: onnx.ModelProto, peak: float) -> onnx.ModelProto:
    """Give the loudest channel a peak, and leave the others as they are."""
    channel = loudest_channel(model)
    name = "decoder.0.block.relu.out"
    image = next(calibration_set(None, SIZE_PX, 0).prepared(InputContract(height=SIZE_PX, width=SIZE_PX)))
    with GraphRunner(model, outputs=[name], threads=1) as runner:
        present = float(runner.run(image)[name][0, channel].max())
    return scaled_channels(model, {channel: peak / present})


def offset(model: onnx.ModelProto, amount: float) -> onnx.ModelProto:
    """Add a constant between the last block's convolutions and take it off again, but for the image's border.

    Other than a scale of channels, no equalization undoes it: the range is the constant, the signal a step of it.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    first, second = "decoder.0.block.conv1.bias", "decoder.0.block.conv2.bias"
    weights = numpy_helper.to_array(tensors["decoder.0.block.conv2.weight"])
    taken = {first: amount, second: -amount * weights.sum((1, 2, 3))}
    for name, change in taken.items():
        values = (numpy_helper.to_array(tensors[name]) + change).astype(np.float32)
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return changed


HOSTILE: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "a range of 1e5": lambda model: to_range(model, 1e5),
    "outlier channels": lambda model: scaled_channels(model, {0: 300.0, 2: 300.0}),
    "an offset of 1e4": lambda model: offset(model, 1e4),
}


def open_stage(model: onnx.ModelProto, directory: Path, scheme: str = "cpu", **changes: object) -> Quantization:
    directory.mkdir(exist_ok=True)
    path = directory / "fp32.onnx"
    path.write_bytes(model.SerializeToString())
    runner = GraphRunner(model, threads=1)
    task = GateTask(
        "standard",
        phantom_gate_images(24, SIZE_PX),
        lambda image: np.asarray(runner.run(image)["logits"]),
        DriftOptions(worst_cases=0),
    )
    request = QuantizeRequest(
        graph=path,
        calibration=calibration_set(None, SIZE_PX, 0),
        contract=InputContract(height=SIZE_PX, width=SIZE_PX),
        schemes=(scheme,),
        directory=directory,
        gate=task,
    )
    return Quantization(dataclasses.replace(request, **changes), lambda stage, done, total: None)  # type: ignore[arg-type]


def search(model: onnx.ModelProto, directory: Path, scheme: str = "cpu", **changes: object) -> QuantizedGraph:
    return open_stage(model, directory, scheme, **changes).graphs()[scheme]


@dataclasses.dataclass(frozen=True)
class Searched:
    """A finished search of the network as it was trained."""

    stage: Quantization
    found: QuantizedGraph
    state: Path


@pytest.fixture(scope="module")
def searched(traced: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    directory = tmp_path_factory.mktemp("searched")
    stage = open_stage(traced, directory / "a", state=directory / "x.search")
    return Searched(stage, stage.graphs()["cpu"], directory / "x.search")


@pytest.mark.usefixtures("exact_products")
def test_a_well_behaved_network_is_int8_throughout_and_its_pareto_points_say_so(searched: Searched) -> None:
    found = searched.found
    assert set(found.plan.types) == {"int8"}
    assert found.kept() == {}
    assert [point.chosen for point in found.points].count(True) == 1
    assert any(point.best for point in found.points)
    quantized = onnx.load(found.path)
    assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node) > 0


def test_a_layer_without_8_bit_arithmetic_says_so_and_not_that_it_was_sensitive(traced: onnx.ModelProto) -> None:
    groups = list_groups(traced, get_scheme("tensorrt"))
    found = QuantizedGraph("tensorrt", Path("int8-tensorrt.onnx"), Plan.narrowest(groups), groups)
    transposed = {node.name for node in traced.graph.node if node.op_type == "ConvTranspose"}
    assert set(found.kept()) == transposed
    assert transposed
    assert all("no 8-bit arithmetic for it" in reason for reason in found.kept().values())


def keeps_the_gate_as_plain_int8(model: onnx.ModelProto) -> bool:
    """Convert as the usual tools do: ranges of calibration images, every layer in 8 bits, nothing else."""
    contract = InputContract(height=SIZE_PX, width=SIZE_PX)
    calibration = calibrate_ranges(model, calibration_set(None, SIZE_PX, 0).prepared(contract))
    groups = list_groups(model, get_scheme("cpu"))
    types = Plan.narrowest(groups).layer_types(groups)
    plain = insert_qdq(model, choose_scales(calibration, model), QuantizePlan("cpu", types))
    with GraphRunner(model, threads=1) as reference, open_quantized(plain) as engine:
        images = phantom_gate_images(24, SIZE_PX)
        run = reference.run
        measured = measure_drift(
            lambda image: np.asarray(run(image)["logits"]), {"plain": engine}, images, contract, DriftOptions()
        )
    return decide_gate("standard", measured.drifts["plain"]).passed


@pytest.mark.usefixtures("exact_products")
def test_a_plain_conversion_of_the_network_as_it_was_trained_keeps_the_gate(traced: onnx.ModelProto) -> None:
    assert keeps_the_gate_as_plain_int8(traced)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_network_fails_as_plain_int8_and_is_rescued_which_the_evidence_explains(
    kind: str, traced: onnx.ModelProto, tmp_path: Path
) -> None:
    hostile = HOSTILE[kind](traced)
    assert not keeps_the_gate_as_plain_int8(hostile)
    stage = open_stage(hostile, tmp_path)
    found = stage.graphs()["cpu"]
    assert found.result is not None
    assert found.result.passed
    assert any(step.verdict.passed and step.plan == found.plan for step in found.result.steps)
    assert found.plan.int8_share(found.groups) >= 0.5
    equalized = any(step["kept"] for step in stage.preparation("cpu")["steps"])
    assert LAYER in found.kept() or equalized
    if kind == "an offset of 1e4":
        assert "takes" in found.kept()[LAYER]


def test_a_network_that_cannot_be_rescued_is_rejected_with_the_gate_the_image_and_the_layer(
    traced: onnx.ModelProto, tmp_path: Path
) -> None:
    ruined = HOSTILE["an offset of 1e4"](traced)
    # What is left in int8 must be nearly everything, so that the one layer cannot be raised.
    with pytest.raises(GateError) as caught:
        search(ruined, tmp_path, minimum_share=0.999)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "gate standard fails on 24 images" in message
    assert "image phantom-0-" in message
    # What the border leaves of the offset reaches the head as well.
    assert re.search(rf"the most sensitive layer is ({re.escape(LAYER)}|head) ", message)
    assert "\n" not in message


def test_the_same_search_started_again_measures_nothing(
    searched: Searched, traced: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = json.loads((searched.state / "cpu.json").read_text())["found"]
    measured: list[str] = []
    real = SearchState.recall

    def recall(self: SearchState, key: str, measure: Callable[[], Mapping[str, object]]) -> Mapping[str, object]:
        if not self.knows(key):
            measured.append(key)
        return real(self, key, measure)

    monkeypatch.setattr(SearchState, "recall", recall)
    again = search(traced, tmp_path / "b", state=searched.state)
    assert measured == []
    assert again.plan == searched.found.plan
    assert again.path.read_bytes() == searched.found.path.read_bytes()
    assert len(stored) >= len(again.groups)


def test_a_spent_budget_says_how_to_go_on(traced: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="the budget is spent: run the same command again to go on"):
        search(HOSTILE["an offset of 1e4"](traced), tmp_path, budget_s=0.0)


def test_without_a_gate_every_layer_is_int8(traced: onnx.ModelProto, tmp_path: Path) -> None:
    found = search(traced, tmp_path, gate=None)
    assert set(found.plan.types) == {"int8"}
    assert found.result is None
    assert found.points == ()


@pytest.mark.usefixtures("exact_products")
def test_widening_raises_the_most_sensitive_layer_that_is_left(searched: Searched) -> None:
    found = searched.found
    assert found.result is not None
    wider = searched.stage.widen(found)
    assert wider is not None
    raised = [i for i, (a, b) in enumerate(zip(found.plan.types, wider.plan.types, strict=True)) if a != b]
    severities = [row.severity for row in found.result.sensitivities]
    assert [severities[index] for index in raised] == [max(severities)]
