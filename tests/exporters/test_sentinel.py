"""Engines watched at their skip junctions: rounding passes, a wrong view of a concatenation does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from unetx_exporters.evaluation import BuiltEngine
from unetx_exporters.junction_limits import LIMITS
from unetx_exporters.onnx.barriers import add_barriers
from unetx_exporters.onnx.graph import producers
from unetx_exporters.onnx.verify import GraphRunner
from unetx_exporters.openvino.build import write_ir
from unetx_exporters.random_watch import random_model
from unetx_exporters.sentinel import JunctionRow, SentinelInputs, explain_junction, watch_engine
from unetx_exporters.tensor_error import fit_channels, relative_error
from unetx_opt.models.variants import variant_spec
from unetx_opt.specs import EngineRecord

JUNCTION = "junction.join"
TARGETS = ("onnxruntime-cpu", "openvino-cpu")


@pytest.fixture
def unet(tiny_unet: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    model = tiny_unet()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = JUNCTION if name == "join.out" else name
    return model


class Reference:
    """The network of a graph as a module with junctions, run by ONNX Runtime in place of PyTorch."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.runner = GraphRunner(model, outputs=[JUNCTION], threads=1)

    def forward_with_junctions(self, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        found = self.runner.run(image.numpy())
        return torch.from_numpy(found["logits"]), {"join": torch.from_numpy(found[JUNCTION])}


def swapped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Join the two tensors in the wrong order: what a wrong stride at a concatenation amounts to."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    join = next(node for node in changed.graph.node if node.op_type == "Concat")
    # Both have the same shape once the deeper one is cut to as many channels; here they differ, so roll instead.
    first, second = join.input
    join.input[0], join.input[1] = second, first
    return changed


def watch(target: str, right: onnx.ModelProto, built: onnx.ModelProto, directory: Path) -> Any:
    graph, made = directory / "graph.onnx", directory / "built.onnx"
    graph.write_bytes(right.SerializeToString())
    made.write_bytes(built.SerializeToString())
    files: tuple[str, ...] = ("built.onnx",)
    settings: dict[str, str] = {}
    if target == "openvino-cpu":
        write_ir(made, directory / "model.xml")
        files, settings = ("model.xml", "model.bin"), {"inference_precision": "f32"}
    record = EngineRecord(target, files, settings=settings, storage_dtype="float32", compute_dtype="float32")
    generator = np.random.default_rng(0)
    images = [generator.uniform(0, 1, (1, 1, 32, 32)).astype(np.float32) for _ in range(2)]
    inputs = SentinelInputs(Reference(right), "trained", (JUNCTION,), images, directory)  # type: ignore[arg-type]
    return watch_engine(BuiltEngine(target, record, graph, None), inputs)


@pytest.mark.parametrize("target", TARGETS)
def test_an_engine_that_computes_its_graph_is_within_the_limits_at_every_tensor(
    target: str, unet: onnx.ModelProto, tmp_path: Path
) -> None:
    rows = watch(target, unet, unet, tmp_path)
    assert {row.tensor for row in rows} == {JUNCTION, "logits", "logits as shipped"}
    assert {row.against for row in rows} == {"PyTorch", "ONNX Runtime"}
    assert explain_junction(rows) is None
    assert max(row.error for row in rows) < 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_view_of_the_concatenation_is_found_at_the_junction_and_named(
    target: str, unet: onnx.ModelProto, tmp_path: Path
) -> None:
    rows = watch(target, unet, swapped(unet), tmp_path)
    message = explain_junction(rows)
    assert message is not None
    assert f"{target} with trained weights differs from PyTorch first at {JUNCTION}" in message
    # Far beyond what any precision is allowed: the limits tell faults from rounding.
    worst = max(row.error for row in rows if row.tensor == JUNCTION)
    assert worst > 2 * max(limit.torch for limit in LIMITS.values())


def test_rounding_to_a_narrow_type_is_left_to_the_gate_and_a_strange_result_of_the_graph_is_not() -> None:
    row = JunctionRow("x", "trained", "PyTorch", JUNCTION, 0.5, 0.25, decisive=False)
    assert not row.passed
    assert explain_junction([row]) is None
    fault = dataclasses.replace(row, against="ONNX Runtime", decisive=True)
    message = explain_junction([row, fault])
    assert message is not None
    assert "differs from ONNX Runtime first" in message


def test_an_engine_that_cannot_run_here_is_not_watched(unet: onnx.ModelProto, tmp_path: Path) -> None:
    record = EngineRecord("tensorrt-rtx", ("x.engine",))
    inputs = SentinelInputs(Reference(unet), "trained", (JUNCTION,), (), tmp_path)  # type: ignore[arg-type]
    engine = BuiltEngine("tensorrt-rtx", record, tmp_path / "x.onnx", "there is no GPU")
    assert watch_engine(engine, inputs) == ()
    assert watch_engine(dataclasses.replace(engine, why_graph=None), inputs) == ()


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([6.0, 8.0], [3.0, 4.0], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1e-9, 0.0], [0.0, 0.0], np.inf),
        ([np.nan, 4.0], [3.0, 4.0], np.inf),
        ([3.0, 4.0], [np.inf, 4.0], np.inf),
        ([3.0], [3.0, 4.0], np.inf),
    ],
    ids=["same", "zero", "double", "both zero", "zero expected", "nan", "inf", "other shape"],
)
def test_the_relative_error_of_two_tensors(actual: list[float], expected: list[float], error: float) -> None:
    def make(values: list[float]) -> NDArray[np.float32]:
        return np.array(values, np.float32)

    assert relative_error(make(expected), make(actual)) == pytest.approx(error)


def test_a_barrier_changes_no_value_and_stays_in_the_graph_that_onnx_runtime_executes(
    unet: onnx.ModelProto, tmp_path: Path
) -> None:
    import onnxruntime

    barred = add_barriers(unet, [JUNCTION])
    assert producers(barred.graph)[JUNCTION].op_type == "Min"
    image = np.random.default_rng(1).standard_normal((1, 1, 32, 32)).astype(np.float32)
    with GraphRunner(unet, threads=1) as plain, GraphRunner(barred, threads=1) as other:
        assert np.allclose(plain.run(image)["logits"], other.run(image)["logits"], atol=1e-5)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(barred.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert any(node.op_type == "Min" for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def test_activations_of_a_random_network_have_the_usual_size_at_every_junction() -> None:
    spec = variant_spec("unet", width=4, depth=3)
    images = [np.random.default_rng(seed).uniform(0, 1, (1, 1, 32, 32)).astype(np.float32) for seed in range(3)]
    before = torch.random.get_rng_state()
    first, second = (random_model(spec, images) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not first.training
    with torch.no_grad():
        logits, junctions = first.forward_with_junctions(torch.from_numpy(images[0]))
        assert torch.equal(logits, second.forward_with_junctions(torch.from_numpy(images[0]))[0])
    for name, tensor in junctions.items():
        halves = tensor.chunk(2, dim=1) if name.startswith("skip") else (tensor,)
        for half in halves:
            assert 0.02 < float(half.std()) < 20, name


def test_a_factor_for_each_channel_is_no_difference_to_an_8_bit_engine_and_other_pixels_are() -> None:
    generator = np.random.default_rng(0)
    expected = generator.standard_normal((1, 4, 8, 8)).astype(np.float32)
    scaled = expected * np.array([0.5, 1, 7, 1e-3], np.float32)[:, np.newaxis, np.newaxis]
    assert relative_error(expected, fit_channels(scaled, expected)) < 1e-6
    assert relative_error(expected, fit_channels(-expected, expected)) == pytest.approx(1.0)
    for wrong in (np.roll(expected, 1, axis=-1), np.roll(expected, 1, axis=1), expected[..., ::-1]):
        assert relative_error(expected, fit_channels(np.ascontiguousarray(wrong), expected)) > 0.8
