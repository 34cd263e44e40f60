"""The whole way from a checkpoint to a bundle, with a small model and real engines."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from unetx_exporters import attempt, pipeline
from unetx_exporters.evaluation import Evaluation, evaluate_engines
from unetx_exporters.onnxruntime import build as ort_build
from unetx_exporters.openvino import build as openvino_build
from unetx_exporters.options import BuildOptions
from unetx_exporters.pipeline import build_bundle
from unetx_exporters.request import BuildRequest
from unetx_exporters.result import BuildResult
from unetx_exporters.targets import TARGETS, choose_targets
from unetx_opt.bundle.open import open_verified
from unetx_opt.cli.main import main
from unetx_opt.errors import ExportError, GateError, SpecError, UnetxError
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.metrics.gates import decide_gate
from unetx_opt.models.checkpoint import load_model, read_checkpoint, write_checkpoint
from unetx_opt.runtime import open_bundle
from unetx_opt.runtime.sessions.table import SESSIONS
from unetx_opt.specs import EngineRecord, Host, Precision

SIZE_PX = 64
CPU_TARGETS = ("onnxruntime-cpu", "openvino-cpu")


def options_for(checkpoint: Path, output: Path, **changes: object) -> BuildOptions:
    options = BuildOptions(
        "attention", Precision.FP16, output, targets=CPU_TARGETS, checkpoint=checkpoint, size_px=SIZE_PX
    )
    return dataclasses.replace(options, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def built(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> BuildResult:
    """A bundle with every target that this machine can build."""
    output = tmp_path_factory.mktemp("bundle") / request.param
    return build_bundle(options_for(tiny_checkpoint, output, precision=Precision(request.param), targets=()))


def test_every_target_that_can_be_built_is_in_the_bundle_and_the_others_say_why(built: BuildResult) -> None:
    assert set(CPU_TARGETS) <= {engine.target for engine in built.engines}
    assert {engine.target for engine in built.engines} | set(built.skipped) == set(TARGETS)
    assert all(built.skipped.values())
    with open_verified(built.bundle) as bundle:
        manifest = bundle.manifest
    assert [engine.target for engine in manifest.engines] == [engine.target for engine in built.engines]
    assert manifest.gate.name == "strict"
    assert manifest.gate.images is not None
    assert manifest.gate.images.data == "phantom"
    assert all(engine.gate is not None and engine.gate.passed for engine in manifest.engines)
    assert manifest.operations.ratio <= 0.85


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_an_engine_gives_the_masks_of_the_pytorch_model(
    target: str, built: BuildResult, tiny_checkpoint: Path
) -> None:
    model = load_model(read_checkpoint(tiny_checkpoint))
    with open_bundle(built.bundle, target=target) as segmenter:
        for seed in range(1000, 1004):
            pixels, _ = chest_phantom(seed, size_px=SIZE_PX)
            segmentation = segmenter.segment(pixels)
            image, _ = prepare_image(pixels, segmenter.contract)
            with torch.no_grad():
                expected = model(torch.from_numpy(image)[None])[0, 0].numpy()
            sure = np.abs(expected) > 0.2  # fp16 and bf16 may turn a pixel on the contour
            assert np.array_equal(segmentation.labels[sure], (expected > 0)[sure])


def test_the_type_of_every_engine_is_what_it_says(built: BuildResult) -> None:
    stored = {"fp32": "float32", "fp16": "float16"}[built.precision]
    for engine in built.engines:
        assert engine.storage_dtype == stored
        if engine.target == "onnxruntime-cpu":
            assert engine.compute_dtype == "float32"
        if engine.target.startswith("tensorrt"):
            assert engine.compute_dtype == stored


def test_of_one_target_the_engine_that_was_fastest_before_the_gate_comes_first(built: BuildResult) -> None:
    evidence = json.loads((built.bundle / "evidence" / "gate.json").read_text())
    took_ms = {entry["name"]: entry["median_call_ms"] for entry in evidence["targets"] if entry["kept"]}
    with open_verified(built.bundle) as bundle:
        records = [engine.record for engine in bundle.manifest.engines if engine.target == "openvino-cpu"]
    names = [f"openvino-cpu {record.settings['inference_precision']}" for record in records]
    times = [took_ms.get(name, took_ms.get("openvino-cpu")) for name in names]
    assert times
    assert times == sorted(times)


def test_engines_that_cannot_run_here_were_judged_by_their_graph(built: BuildResult) -> None:
    with open_verified(built.bundle) as bundle:
        for engine in bundle.manifest.engines:
            assert engine.gate is not None
            assert (engine.gate.evaluated == "engine") == (engine.target in CPU_TARGETS)


def test_two_builds_of_the_same_checkpoint_give_the_same_engines(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    manifests = []
    for name in ("a", "b"):
        build_bundle(options_for(tiny_checkpoint, tmp_path / name, targets=("onnxruntime-cpu",), gate="off"))
        manifests.append((tmp_path / name / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_the_archive_holds_what_the_directory_holds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle.unetx"
    options = options_for(tiny_checkpoint, output, targets=("onnxruntime-cpu",), archive=True, gate="off")
    build_bundle(options)
    pixels, _ = chest_phantom(5, size_px=SIZE_PX)
    with open_verified(output) as bundle, open_bundle(output) as segmenter:
        assert bundle.kind == "archive"
        assert bundle.manifest.gate.name == "off"
        assert segmenter.segment(pixels).labels.shape == pixels.shape
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.unetx"]


def test_a_users_state_dict_builds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(read_checkpoint(tiny_checkpoint))
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    result = build_bundle(options_for(tmp_path / "mine.pt", tmp_path / "x", targets=("onnxruntime-cpu",), gate="off"))
    with open_verified(result.bundle) as bundle:
        assert bundle.manifest.checkpoint.source == "mine.pt"
        assert bundle.manifest.spec == model.spec


def _break_weights(request: BuildRequest) -> tuple[EngineRecord, ...]:
    """Build an engine whose head is not the model's: what a wrong fusion would do."""
    records = _real_build(request)
    path = request.directory / records[0].files[0]
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if "head" in tensor.name and len(tensor.dims) == 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 2, tensor.name))
    onnx.save(model, path)
    return records


_real_build = ort_build.build_onnxruntime_cpu


def test_an_engine_that_is_not_the_model_fails_the_gate_with_exit_3_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort_build, "build_onnxruntime_cpu", _break_weights)
    # The comparison at the junctions would refuse it first.
    monkeypatch.setattr(attempt, "watch_engine", lambda engine, inputs: ())
    monkeypatch.setattr(attempt, "watch_random", lambda *asked, **how: ())
    arguments = ["build", "--variant", "attention", "--precision", "fp32", "--target", "onnxruntime-cpu"]
    arguments += ["--checkpoint", str(tiny_checkpoint), "--size", str(SIZE_PX), "-o", str(tmp_path / "x")]
    assert main(arguments) == 3
    error = capsys.readouterr().err
    assert "onnxruntime-cpu: gate strict fails on 24 images" in error
    assert "image phantom-0-" in error
    assert list(tmp_path.iterdir()) == []


def _offer_two_more(request: BuildRequest) -> tuple[EngineRecord, ...]:
    """Build an engine with float32 arithmetic, call it one with bfloat16 too, and tell of one with float16."""
    record = _real_openvino_build(request)[0]
    request.leave_out("openvino-cpu f16", "1 of 9 layers computes in float32")
    return record, dataclasses.replace(record, settings={"inference_precision": "bf16"})


_real_openvino_build = openvino_build.build_openvino_cpu


def test_an_arithmetic_that_is_left_out_beside_another_is_named_with_its_reason(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(*asked: Any) -> Evaluation:
        found = evaluate_engines(*asked)
        drifts = found.measurement.drifts["openvino-cpu bf16"]
        failed = decide_gate("strict", [dataclasses.replace(drift, hausdorff_shift_px=9.0) for drift in drifts])
        return dataclasses.replace(found, decisions={**found.decisions, "openvino-cpu bf16": failed})

    monkeypatch.setattr(openvino_build, "build_openvino_cpu", _offer_two_more)
    monkeypatch.setattr(attempt, "evaluate_engines", evaluate)
    monkeypatch.setattr(attempt, "watch_engine", lambda engine, inputs: ())
    monkeypatch.setattr(attempt, "watch_random", lambda *asked, **how: ())
    arguments = ["build", "--variant", "attention", "--precision", "fp16", "--target", "openvino-cpu"]
    arguments += ["--checkpoint", str(tiny_checkpoint), "--size", str(SIZE_PX), "-o", str(tmp_path / "x")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    reason = "gate strict fails on 24 images: lungs: "
    assert "left out openvino-cpu f16: 1 of 9 layers computes in float32" in printed
    (line,) = [line for line in printed if line.startswith(f"left out openvino-cpu bf16: {reason}")]
    assert " is 9, expected <= " in line
    with open_verified(tmp_path / "x") as bundle:
        (engine,) = bundle.manifest.engines
        notes = [note for note in bundle.manifest.notes if note.startswith("Tried and left out: ")]
    assert engine.settings == {"inference_precision": "f32"}
    assert notes[0] == "Tried and left out: openvino-cpu f16: 1 of 9 layers computes in float32."
    assert notes[1].startswith(f"Tried and left out: openvino-cpu bf16: {reason}")


@pytest.fixture
def offset_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The small model with 4000 added within its last block and taken off again: float16 loses the rest."""
    model = load_model(read_checkpoint(tiny_checkpoint))
    block = model.decoder[0].block
    with torch.no_grad():
        block.norm1.bias += 4000
        block.norm2.running_mean += 4000 * block.conv2.weight.sum((1, 2, 3))
    write_checkpoint(tmp_path / "offset.safetensors", model, "attention")
    return tmp_path / "offset.safetensors"


def test_layers_are_raised_to_fp32_until_the_gate_passes(
    offset_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for(offset_checkpoint, tmp_path / "x", targets=("onnxruntime-cpu",))
    monkeypatch.setattr(pipeline, "_LOGIT_ERRORS", (1e9,))  # no layer is raised
    with pytest.raises(GateError, match="onnxruntime-cpu: gate strict fails"):
        build_bundle(options)
    assert not options.output.exists()
    monkeypatch.setattr(pipeline, "_LOGIT_ERRORS", (1e9, 1e-5))
    build_bundle(options)
    with open_verified(options.output) as bundle:
        kept = bundle.manifest.precision.kept_fp32
        assert any(layer.name.startswith("decoder.0") and layer.reason for layer in kept)
        assert bundle.manifest.precision.dtype_counts["float16"] > 0


def test_weights_are_stored_in_8_bits_where_that_keeps_the_gate(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain = build_bundle(options_for(tiny_checkpoint, tmp_path / "plain"))
    built = build_bundle(options_for(tiny_checkpoint, tmp_path / "small", compress_weights=True))
    assert {engine.target for engine in built.engines} == set(CPU_TARGETS)
    for engine in built.engines:
        assert (engine.storage_dtype, engine.gate) == ("int8", "strict")
        assert engine.compute_dtype in ("float32", "bfloat16")
    sizes = [(bundle / "engines/openvino-cpu/model.bin").stat().st_size for bundle in (plain.bundle, built.bundle)]
    assert sizes[1] < 0.6 * sizes[0]
    with open_verified(built.bundle) as bundle:
        assert any(note.startswith("The CPU engines store their weights in 8 bits") for note in bundle.manifest.notes)


def test_weights_that_8_bits_cannot_hold_stay_float16_and_the_manifest_says_why(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_model(read_checkpoint(tiny_checkpoint))
    block = model.decoder[0].get_submodule("block")
    with torch.no_grad():  # the same function, but one weight of each channel drowns all others
        for name in ("norm1.weight", "norm1.bias"):
            block.get_parameter(name)[0] *= 1e-3
        block.get_parameter("conv2.weight")[:, 0] *= 1e3
    write_checkpoint(tmp_path / "loud.safetensors", model, "attention")
    options = options_for(tmp_path / "loud.safetensors", tmp_path / "x", compress_weights=True)
    built = build_bundle(dataclasses.replace(options, targets=("onnxruntime-cpu",)))
    (engine,) = built.engines
    assert engine.storage_dtype == "float16"
    with open_verified(built.bundle) as bundle:
        (note,) = [note for note in bundle.manifest.notes if note.startswith("Weights in 8 bits were tried")]
    assert "gate strict fails" in note
    assert "onnxruntime-cpu" in note


def test_8_bit_weights_of_another_precision_than_fp16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="8-bit weights were asked for with int8, expected fp16"):
        BuildOptions("unet", Precision.INT8, tmp_path / "x", compress_weights=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_options": {"tensorrt_max_batch": "x"}}, "tensorrt_max_batch is 'x'"),
        ({"target_options": {"tensorrt_colour": 1}}, "unknown option tensorrt_colour"),
        ({"compute_capabilities": ("3.5",)}, "does not build for compute capability 3.5"),
    ],
    ids=str,
)
def test_a_wrong_setting_of_a_builder_is_found_before_the_work(
    changes: dict[str, object], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        build_bundle(options_for(tiny_checkpoint, tmp_path / "x", **changes))


def test_every_engine_passes_the_strict_gate_on_real_radiographs(lungs: Path, tmp_path: Path) -> None:
    options = BuildOptions("attention", Precision.FP16, tmp_path / "x", data=lungs, split="validation")
    build_bundle(options)
    with open_verified(options.output) as bundle:
        manifest = bundle.manifest
    assert manifest.gate.images is not None
    assert (manifest.gate.images.data, manifest.gate.images.count) == ("lungs", 56)
    assert set(CPU_TARGETS) <= {engine.target for engine in manifest.engines}
    assert all(engine.gate is not None and engine.gate.passed for engine in manifest.engines)


def test_the_command_prints_one_json_document(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--variant", "attention", "--precision", "fp32", "--target", "onnxruntime-cpu"]
    arguments += ["--checkpoint", str(tiny_checkpoint), "--size", str(SIZE_PX), "-o", str(tmp_path / "x"), "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["bundle"] == str(tmp_path / "x")
    assert printed["engines"][0]["target"] == "onnxruntime-cpu"
    assert Path(printed["gate_report"]).is_file()
    command = json.loads((tmp_path / "x" / "manifest.json").read_text())["build"]["command"]
    assert command[:4] == ["unetx-opt", "build", "--variant", "attention"]
    assert str(tmp_path) not in " ".join(command)


def test_too_few_images_are_an_error_that_says_how_many_are_needed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from PIL import Image

    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for seed in range(3):
        pixels, mask = chest_phantom(seed, size_px=SIZE_PX)
        Image.fromarray((pixels >> 8).astype(np.uint8)).save(tmp_path / "data/images" / f"{seed}.png")
        Image.fromarray(mask * np.uint8(255)).save(tmp_path / "data/masks" / f"{seed}.png")
    rows = [f"{seed}.png,{seed},validation" for seed in range(3)]
    (tmp_path / "data/splits.csv").write_text("\n".join(["file,patient,split", *rows]) + "\n")
    with pytest.raises(GateError, match=r"has 3 images, the gate needs at least 21: add 18 more"):
        build_bundle(options_for(tiny_checkpoint, tmp_path / "x", data=tmp_path / "data"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_px": 100}, "size 100 is not a multiple of 8.*choose 96"),
        ({"variant": "crf"}, "holds variant attention, asked for crf"),
        ({"variant": "resnet"}, "choose one of unet"),
        ({"targets": ("tpu",)}, "unknown target 'tpu'"),
        ({"targets": ("tensorrt",)}, "target tensorrt cannot be built here"),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_clear_line(
    changes: dict[str, object], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnetxError, match=message) as caught:
        build_bundle(options_for(tiny_checkpoint, tmp_path / "x", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_without_a_size_the_engine_reads_what_the_checkpoint_was_trained_at(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_model(read_checkpoint(tiny_checkpoint))
    write_checkpoint(tmp_path / "c.safetensors", model, "attention", {"training": '{"size_px": 48}'})
    options = options_for(
        tmp_path / "c.safetensors", tmp_path / "x", targets=("onnxruntime-cpu",), gate="off", size_px=None
    )
    assert build_bundle(options).size_px == 48


def test_a_setting_of_no_builder_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown option batch"):
        options_for(tiny_checkpoint, tmp_path / "x", target_options={"batch": 1})


def test_an_existing_output_is_kept_unless_it_is_to_be_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "x"
    output.mkdir()
    (output / "mine").write_text("kept")
    options = options_for(tiny_checkpoint, output, targets=("onnxruntime-cpu",), gate="off")
    with pytest.raises(UnetxError, match="already exists"):
        build_bundle(options)
    assert (output / "mine").read_text() == "kept"
    build_bundle(dataclasses.replace(options, overwrite=True))
    with open_verified(output) as bundle:
        assert "mine" not in bundle.names


def test_a_build_that_is_killed_leaves_nothing_at_the_output(tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    arguments = ["build", "--variant", "attention", "--precision", "fp32", "--checkpoint", str(tiny_checkpoint)]
    arguments += ["--size", str(SIZE_PX), "-o", str(output)]
    for target in CPU_TARGETS:
        arguments += ["--target", target]
    program = f"import sys; from unetx_opt.cli.main import main; sys.exit(main({arguments!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    chance = random.Random(0)
    killed = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + chance.uniform(0.5, 12.0)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        if output.exists():  # it was done before the signal came: then the bundle is whole
            with open_verified(output):
                pass
            shutil.rmtree(output)
    assert killed, "no build lived long enough to be killed"
    build_bundle(options_for(tiny_checkpoint, output, targets=("onnxruntime-cpu",), gate="off", overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_runtime_knows_every_target_that_can_be_built() -> None:
    assert set(TARGETS) == set(SESSIONS)


def test_a_bare_machine_is_told_what_every_target_lacks() -> None:
    with pytest.raises(ExportError, match=r"tensorrt: .*onnxruntime-cpu: .*openvino-cpu: "):
        choose_targets((), Host(system="Linux", machine="x86_64"))


def test_without_comparisons_the_engine_is_the_same_and_the_bundle_says_that_nothing_was_compared(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for name, compare in (("with", True), ("without", False)):
        options = options_for(tiny_checkpoint, tmp_path / name, targets=("onnxruntime-cpu",), gate="off")
        build_bundle(dataclasses.replace(options, compare=compare))
    engine = "engines/onnxruntime-cpu/model.onnx"
    assert (tmp_path / "with" / engine).read_bytes() == (tmp_path / "without" / engine).read_bytes()
    note = "Nothing was compared with PyTorch."
    said = {name: note in (tmp_path / name / "manifest.json").read_text() for name in ("with", "without")}
    assert said == {"with": False, "without": True}
    assert not (tmp_path / "without" / "evidence" / "junctions.json").exists()


def test_a_gate_without_comparisons_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="without comparisons, expected 'off'"):
        dataclasses.replace(options_for(tiny_checkpoint, tmp_path / "x", gate="strict"), compare=False)
