"""Variants that end with a step: from a checkpoint with its parameters to a bundle that gives the same masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unetx_exporters.gate_images import phantom_gate_images
from unetx_exporters.options import BuildOptions
from unetx_exporters.pipeline import PHANTOM_COUNT, build_bundle
from unetx_opt.bundle.open import open_verified
from unetx_opt.cli.main import main
from unetx_opt.errors import CheckpointError, MissingPackageError
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.imaging.refinement import crf_step_parameters, decide_labels, make_refiner
from unetx_opt.metrics.overlap import dice
from unetx_opt.models.checkpoint import load_model, read_checkpoint, write_checkpoint
from unetx_opt.models.postprocess import METADATA_KEY, StepRecord, step_metadata
from unetx_opt.models.unet import UNet, build_model
from unetx_opt.models.variants import variant_spec
from unetx_opt.runtime import open_bundle
from unetx_opt.specs import InputContract, Precision

pytestmark = pytest.mark.skipif(BACKENDS["grid"].why_not() is not None, reason=str(BACKENDS["grid"].why_not()))

SIDE = 64
CONTRACT = InputContract(height=SIDE, width=SIDE)
# Strong enough to change every mask.
PARAMETERS = crf_step_parameters(CrfParameters(3.0, 6.0, 8.0, 30.0, 4.0, iterations=5), SIDE)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`crf` and `combined` of width 4 and depth 2, trained for seconds on phantoms of 64 x 64 px."""
    pairs = [chest_phantom(seed, size_px=SIDE) for seed in range(24)]
    images = torch.from_numpy(np.stack([prepare_image(pixels, CONTRACT)[0] for pixels, _ in pairs]))
    masks = torch.from_numpy(np.stack([mask for _, mask in pairs]).astype(np.float32))[:, None]
    folder, paths = tmp_path_factory.mktemp("weights"), {}
    for variant in ("crf", "combined"):
        torch.manual_seed(0)
        model = build_model(variant_spec(variant, width=4, depth=2))
        optimizer = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(40):
            batch = torch.randperm(len(images))[:8]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images[batch]), masks[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        paths[variant] = folder / f"{variant}.safetensors"
        metadata = {
            METADATA_KEY: step_metadata(StepRecord("dense_crf", PARAMETERS)),
            "training": json.dumps({"size_px": SIDE}),
        }
        write_checkpoint(paths[variant], model.eval(), variant, metadata)
    return paths


@pytest.fixture(scope="module", params=["crf", "combined"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(variant: str, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / variant
    options = BuildOptions(
        variant, Precision.FP32, output, targets=("onnxruntime-cpu",), checkpoint=checkpoints[variant]
    )
    return build_bundle(options).bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight phantoms of another size than the network's input, all of them in the test split."""
    root = tmp_path_factory.mktemp("phantoms")
    lines = ["file,patient,split"]
    for name in ("images", "masks"):
        (root / name).mkdir()
    for index in range(8):
        pixels, mask = chest_phantom(500 + index, size_px=96)
        Image.fromarray((pixels >> 4).astype(np.uint8)[:, 5:]).save(root / "images" / f"{index}.png")
        Image.fromarray((mask * np.uint8(255))[:, 5:]).save(root / "masks" / f"{index}.png")
        lines.append(f"{index}.png,p{index},test")
    (root / "splits.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def logits_of(model: UNet, image_chw: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = model(torch.tensor(image_chw)[None])[0].numpy()
    return logits


def test_the_manifest_carries_the_step_and_its_grid(bundle: Path) -> None:
    with open_verified(bundle) as opened:
        step = opened.manifest.postprocess
    assert step is not None
    assert (step.name, step.grid, step.parameters) == ("dense_crf", "input", PARAMETERS)


def test_the_gate_compared_the_masks_behind_the_step(
    bundle: Path, variant: str, checkpoints: dict[str, Path]
) -> None:
    (target,) = json.loads((bundle / "evidence" / "gate.json").read_text())["targets"]
    model = load_model(read_checkpoint(checkpoints[variant]))
    refiner = make_refiner("dense_crf", PARAMETERS, CONTRACT)
    changed = 0
    for drift, image in zip(target["drifts"], phantom_gate_images(PHANTOM_COUNT, SIDE, 0), strict=True):
        image_chw, geometry = prepare_image(image.pixels, CONTRACT)
        logits = logits_of(model, image_chw)
        refined, plain = (dice(decide_labels(logits, image_chw, geometry, r), image.truth) for r in (refiner, None))
        assert drift["dice_reference_vs_truth"] == pytest.approx(refined, abs=1e-9)
        assert drift["dice_engine_vs_truth"] == pytest.approx(refined, abs=0.01)
        assert 0 < drift["max_logit_difference"] < 1e-3, "logits are compared before the step"
        changed += refined != plain
    assert changed > PHANTOM_COUNT // 2


def test_evaluate_gives_the_same_masks_for_the_checkpoint_and_the_bundle(
    bundle: Path,
    variant: str,
    checkpoints: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reports = {}
    for name, subject in (("checkpoint", checkpoints[variant]), ("bundle", bundle)):
        arguments = [f"--{name}", str(subject), "--data", str(folder), "--save-masks", str(tmp_path / name)]
        assert main(["evaluate", *arguments, "--json"]) == 0
        reports[name] = json.loads(capsys.readouterr().out)
    assert {report["model"]["postprocess"] for report in reports.values()} == {"dense_crf"}
    assert reports["checkpoint"]["metrics"]["dice"] == reports["bundle"]["metrics"]["dice"]
    for index in range(8):
        first, second = ((tmp_path / name / f"{index}.png").read_bytes() for name in ("checkpoint", "bundle"))
        assert first == second


def test_segmenting_runs_the_step_that_the_checkpoint_was_fitted_with(
    bundle: Path, variant: str, checkpoints: dict[str, Path]
) -> None:
    model = load_model(read_checkpoint(checkpoints[variant]))
    refiner = make_refiner("dense_crf", PARAMETERS, CONTRACT)
    pixels, _ = chest_phantom(900, size_px=128)
    with open_bundle(bundle) as segmenter:
        result = segmenter.segment(pixels)
    image_chw, geometry = prepare_image(pixels, CONTRACT)
    logits = logits_of(model, image_chw)
    np.testing.assert_array_equal(result.labels, decide_labels(logits, image_chw, geometry, refiner))
    assert (result.labels != decide_labels(logits, image_chw, geometry)).any()


def options_without_a_gate(variant: str, checkpoint: Path, output: Path) -> BuildOptions:
    return BuildOptions(
        variant,
        Precision.FP32,
        output,
        targets=("onnxruntime-cpu",),
        checkpoint=checkpoint,
        size_px=SIDE,
        gate="off",
    )


def test_a_checkpoint_without_parameters_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    write_checkpoint(path, build_model(variant_spec("crf", width=2, depth=2)), "crf")
    with pytest.raises(CheckpointError, match=r"no parameters of the step dense_crf.* --weights bare\.safetensors"):
        build_bundle(options_without_a_gate("crf", path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_the_steps_package_nothing_is_built(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetx_opt.imaging.dense_crf import backends

    monkeypatch.setattr(backends, "find", lambda module: False)
    with pytest.raises(MissingPackageError, match=r"'unetx-opt\[crf\]'"):
        build_bundle(options_without_a_gate("crf", checkpoints["crf"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
