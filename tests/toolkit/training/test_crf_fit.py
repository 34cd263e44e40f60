"""Parameters of the dense CRF: found on validation alone, better than none where a CRF can help, weak where not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_opt.cli.main import main
from unetx_opt.errors import DataError
from unetx_opt.imaging.dense_crf import BACKENDS
from unetx_opt.imaging.files import read_image
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.imaging.refinement import make_refiner
from unetx_opt.metrics.overlap import dice
from unetx_opt.models.checkpoint import load_model, read_checkpoint, write_checkpoint
from unetx_opt.models.postprocess import read_step
from unetx_opt.models.variants import variant_spec
from unetx_opt.training.crf_fit import SEARCHED_VALUES, CrfFitOptions, fit_crf_parameters
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.options import training_contract
from unetx_opt.training.scores import score_model, segment_image

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'unetx-opt[train]'")
pytestmark = pytest.mark.skipif(BACKENDS["grid"].why_not() is not None, reason=str(BACKENDS["grid"].why_not()))

SIDE = 48


class GreyModel(torch.nn.Module):
    """Dark is foreground, plus noise that is the same for an image every time."""

    def __init__(self, noise: float, classes: int = 1) -> None:
        super().__init__()
        self.noise, self.classes = noise, classes

    def forward(self, image: Any) -> Any:
        generator = torch.Generator().manual_seed(int(float(image.sum()) * 1000) % 2**31)
        plane = 4.0 * (0.5 - image[:, 0]) + self.noise * torch.randn(image.shape[2:], generator=generator)
        if self.classes == 1:
            return plane[:, None]
        return torch.stack([-plane, plane, plane - 9.0][: self.classes], dim=1)


@pytest.fixture
def validation(ellipse_folder: Path) -> FolderDataset:
    return FolderDataset.open(ellipse_folder, "validation")


OPTIONS = CrfFitOptions(size_px=SIDE)


def test_a_noisy_network_gets_a_crf_that_helps(validation: FolderDataset) -> None:
    tried: list[tuple[int, float]] = []
    fit = fit_crf_parameters(GreyModel(1.5), validation, OPTIONS, lambda count, best: tried.append((count, best)))
    assert fit.helps and fit.dice > fit.dice_without + 0.02
    assert fit.gain is not None and fit.gain.mean == pytest.approx(fit.dice - fit.dice_without, abs=1e-12)
    assert fit.images == 4
    assert [count for count, _ in tried] == list(range(1, fit.candidates + 1))
    assert [best for _, best in tried] == sorted(best for _, best in tried)
    assert tried[-1][1] - fit.dice <= OPTIONS.tie
    assert all(fit.parameters[name] in values for name, values in SEARCHED_VALUES.items())


def test_its_figures_are_those_of_the_masks_that_are_delivered(validation: FolderDataset) -> None:
    model = GreyModel(1.5)
    fit = fit_crf_parameters(model, validation, OPTIONS)
    step = make_refiner("dense_crf", fit.parameters, training_contract(SIDE))
    for refiner, figure in ((step, fit.dice), (None, fit.dice_without)):
        masks = [segment_image(model, validation.image(index), SIDE, refiner) for index in range(4)]
        scores = [dice(mask, validation.mask(index)) for index, mask in enumerate(masks)]
        assert figure == pytest.approx(np.mean(scores), abs=1e-12)
        assert figure == pytest.approx(
            np.mean([one.dice for one in score_model(model, validation, SIDE, refiner)]), abs=1e-12
        )


def test_a_network_without_errors_gets_the_weakest_crf_and_no_praise(validation: FolderDataset) -> None:
    class Truth(torch.nn.Module):
        def forward(self, image: Any) -> Any:
            mask = next(masks)
            rows = (np.arange(SIDE) + 0.5) * mask.shape[0] / SIDE
            columns = (np.arange(SIDE) + 0.5) * mask.shape[0] / SIDE - (mask.shape[0] - mask.shape[1]) / 2
            inside = np.clip(columns.astype(int), 0, mask.shape[1] - 1)
            placed = mask[np.ix_(rows.astype(int), inside)].astype(np.float32)
            return torch.from_numpy(200 * placed - 100)[None, None]

    masks = iter([validation.mask(index) for index in range(4)])
    fit = fit_crf_parameters(Truth(), validation, OPTIONS)
    assert fit.dice_without > 0.999
    assert not fit.helps
    assert fit.parameters["iterations"] == 1
    assert fit.parameters["smoothness_compat"] == 0.0
    assert fit.parameters["bilateral_compat"] == SEARCHED_VALUES["bilateral_compat"][0]


def test_the_search_gives_the_same_every_time_and_ends_at_its_limit(validation: FolderDataset) -> None:
    first, second = (fit_crf_parameters(GreyModel(1.0), validation, OPTIONS) for _ in range(2))
    assert first == second
    short = fit_crf_parameters(GreyModel(1.0), validation, dataclasses.replace(OPTIONS, most_candidates=35))
    assert 35 <= short.candidates < 35 + 12
    assert short.dice <= first.dice + OPTIONS.tie


def test_of_many_images_some_decide_evenly(validation: FolderDataset) -> None:
    class Counting:
        split = "validation"
        names = tuple(map(str, range(10)))

        def __init__(self) -> None:
            self.read: list[int] = []

        def __len__(self) -> int:
            return 10

        def image(self, index: int) -> Any:
            self.read.append(index)
            return validation.image(index % 4)

        def mask(self, index: int) -> Any:
            return validation.mask(index % 4)

    images: Any = Counting()
    fit = fit_crf_parameters(GreyModel(1.0), images, dataclasses.replace(OPTIONS, most_images=4, most_candidates=1))
    assert images.read == [0, 2, 5, 7]
    assert fit.images == 4


def test_several_classes_are_fitted_by_the_mean_of_their_dice(validation: FolderDataset) -> None:
    fit = fit_crf_parameters(GreyModel(1.5, classes=2), validation, OPTIONS)
    assert fit.helps


@pytest.mark.parametrize("split", ["test", "train", "calibration", None])
def test_images_of_another_split_are_refused(ellipse_folder: Path, split: str | None) -> None:
    images = dataclasses.replace(FolderDataset.open(ellipse_folder, "test"), split=split)
    with pytest.raises(DataError, match="to fit the CRF on, expected 'validation'"):
        fit_crf_parameters(GreyModel(1.0), images, OPTIONS)


def test_a_network_that_gives_nan_is_an_error(validation: FolderDataset) -> None:
    with pytest.raises(DataError, match=r"gives NaN or infinity for 10\.png"):
        fit_crf_parameters(GreyModel(float("nan")), validation, OPTIONS)


def tiny_weights(
    path: Path, variant: str, metadata: dict[str, str] | None = None, centre_on: np.ndarray | None = None
) -> Path:
    """Random weights; half of the pixels of `centre_on` are foreground, with logits of both signs."""
    from unetx_opt.models.unet import build_model

    torch.manual_seed(3)
    model = build_model(variant_spec(variant, width=4, depth=2)).eval()
    if centre_on is not None:
        image_chw, _ = prepare_image(centre_on, training_contract(SIDE))
        with torch.no_grad():
            model.head.weight /= model(torch.tensor(image_chw)[None]).std()
            model.head.bias -= model(torch.tensor(image_chw)[None]).median()
    write_checkpoint(path, model, variant, metadata)
    return path


def command(folder: Path, output: Path, variant: str, *extra: str) -> list[str]:
    return ["train", "--variant", variant, "--data", str(folder), "-o", str(output), *extra]


def test_weights_are_taken_over_and_only_the_crf_is_fitted(
    ellipse_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = FolderDataset.image
    monkeypatch.setattr(FolderDataset, "image", lambda self, index: (opened.append(self.split), real(self, index))[1])
    facts = {"training": json.dumps({"size_px": SIDE, "seed": 7}), "data": json.dumps({"name": "somewhere"})}
    weights = tiny_weights(tmp_path / "unet.safetensors", "unet", facts)
    output = tmp_path / "crf.safetensors"
    assert main(command(ellipse_folder, output, "crf", "--weights", str(weights), "--json")) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    before, after = read_checkpoint(weights), read_checkpoint(output)
    assert set(opened) == {"validation"}
    assert (after.variant, after.trained_size_px, after.sha256) == ("crf", SIDE, result["sha256"])
    assert {name: value.tolist() for name, value in after.tensors.items()} == {
        name: value.tolist() for name, value in before.tensors.items()
    }
    assert json.loads(after.metadata["training"])["seed"] == 7
    assert json.loads(after.metadata["data"]) == {"name": "somewhere"}
    assert json.loads(after.metadata["weights"])["sha256"] == before.sha256
    step = read_step(after)
    assert step is not None and step.name == "dense_crf"
    assert step.fit["validation_sha256"] == FolderDataset.open(ellipse_folder, "validation").digest()
    assert step.fit["split"] == "validation"
    assert result["postprocess"]["parameters"] == dict(step.parameters)
    assert f"{step.fit['dice']:.5f} with it, {step.fit['dice_without']:.5f} without" in captured.err
    recorded = json.loads(after.metadata["validation"])["dice"]["mean"]
    assert recorded == pytest.approx(step.fit["dice"], abs=1e-12)
    again = tmp_path / "again.safetensors"
    assert main(command(ellipse_folder, again, "crf", "--weights", str(output))) == 0
    assert again.read_bytes()[-2000:] == output.read_bytes()[-2000:]
    assert read_step(read_checkpoint(again)) == step


def test_a_state_dict_can_be_given_as_weights(ellipse_folder: Path, tmp_path: Path) -> None:
    model = load_model(read_checkpoint(tiny_weights(tmp_path / "unet.safetensors", "unet")))
    torch.save(model.state_dict(), tmp_path / "unet.pt")
    output = tmp_path / "crf.safetensors"
    assert main(command(ellipse_folder, output, "crf", "--weights", str(tmp_path / "unet.pt"), "--size", "32")) == 0
    assert read_checkpoint(output).trained_size_px == 32


def test_training_ends_with_the_fit(ellipse_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "combined.safetensors"
    tiny = ["--width", "2", "--size", "32", "--epochs", "1", "--batch-size", "4", "--precision", "fp32"]
    assert main(command(ellipse_folder, output, "combined", *tiny)) == 0
    assert "receptive field 308 x 308 px" in capsys.readouterr().err
    checkpoint = read_checkpoint(output)
    step = read_step(checkpoint)
    assert step is not None and step.fit["images"] == 4
    # The same weights without the parameters, as another tool may leave them, can be fitted afterwards.
    bare = tmp_path / "bare.safetensors"
    write_checkpoint(bare, load_model(checkpoint), "combined", {"training": checkpoint.metadata["training"]})
    refitted = tmp_path / "refitted.safetensors"
    assert main(command(ellipse_folder, refitted, "combined", "--weights", str(bare))) == 0
    assert read_step(read_checkpoint(refitted)) == step


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("unet",), 2, "--weights is for crf and combined"),
        (("crf", "--resume"), 2, "there is no run to --resume"),
        (("combined",), 1, "holds variant unet, asked for combined"),
    ],
    ids=["no step", "resume", "another network"],
)
def test_weights_that_cannot_be_used_are_refused(
    ellipse_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    weights = tiny_weights(tmp_path / "unet.safetensors", "unet")
    output = tmp_path / "out.safetensors"
    variant, *extra = arguments
    assert main(command(ellipse_folder, output, variant, "--weights", str(weights), *extra)) == status
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("variant", ["crf", "combined"])
def test_without_the_package_of_the_crf_nothing_is_trained_in_vain(
    ellipse_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
) -> None:
    monkeypatch.setattr("unetx_opt.imaging.dense_crf.backends.find", lambda module: False)
    output = tmp_path / "out.safetensors"
    assert main(command(ellipse_folder, output, variant, "--epochs", "1", "--width", "2", "--size", "32")) == 1
    assert "numba is not installed: run pip install 'unetx-opt[crf]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_evaluating_a_crf_checkpoint_scores_the_masks_behind_the_crf(
    ellipse_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = {
        "smoothness_sxy": 3.0,
        "smoothness_compat": 8.0,
        "bilateral_sxy": 12.0,
        "bilateral_srgb": 20.0,
        "bilateral_compat": 8.0,
        "iterations": 5.0,
        "grid_px": 48.0,
    }
    metadata = {
        "training": json.dumps({"size_px": SIDE}),
        "postprocess": json.dumps({"name": "dense_crf", "parameters": parameters}),
    }
    test = FolderDataset.open(ellipse_folder, "test")
    path = tiny_weights(tmp_path / "crf.safetensors", "crf", metadata, test.image(0))
    masks = tmp_path / "masks"
    arguments = ["--checkpoint", str(path), "--data", str(ellipse_folder), "--save-masks", str(masks), "--json"]
    assert main(["evaluate", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    model = load_model(read_checkpoint(path))
    refiner = make_refiner("dense_crf", parameters, training_contract(SIDE))
    for index, name in enumerate(test.names):
        wanted = segment_image(model, test.image(index), SIDE, refiner)
        saved = read_image(masks / name).pixels > 0
        np.testing.assert_array_equal(saved, wanted)
        assert (segment_image(model, test.image(index), SIDE) != wanted).any()
        assert report["per_image"][index]["dice"] == pytest.approx(dice(wanted, test.mask(index)), abs=1e-9)
