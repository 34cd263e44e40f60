"""`unetx-opt train` on ChestX-ray14 with CheXmask masks: several classes or one, filters, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_opt.cli.main import main
from unetx_opt.models.checkpoint import read_checkpoint
from unetx_opt.training.nih import NihDataset, NihOptions
from unetx_opt.training.run_lengths import encode_run_lengths

pytest.importorskip("torch", reason="training needs torch: pip install 'unetx-opt[train]'")
pytest.importorskip("monai", reason="views are cut by MONAI: pip install 'unetx-opt[train]'")

_SIDE = 48
_ENTRY_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
_MASK_HEADER = "Image Index,Dice RCA (Mean),Landmarks,Left Lung,Right Lung,Heart,Height,Width"


def _organs(random: np.random.Generator) -> tuple[Any, Any, Any]:
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE]
    down, right = random.integers(-2, 3, 2)

    def ellipse(row: int, column: int, tall: int, wide: int) -> Any:
        return ((rows - row - down) / tall) ** 2 + ((columns - column - right) / wide) ** 2 < 1

    heart = ellipse(32, 27, 9, 7)
    # The left lung is the patient's: it lies on the right of the image.
    return ellipse(24, 36, 16, 8) & ~heart, ellipse(24, 12, 16, 8) & ~heart, heart


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty patients with an image each: lungs dark, the heart bright, the sides told apart by nothing but place."""
    root = tmp_path_factory.mktemp("release")
    (root / "images").mkdir()
    entries, masks = [_ENTRY_HEADER], [_MASK_HEADER]
    for patient in range(1, 41):
        name, random = f"{patient:08d}_000.png", np.random.default_rng(patient)
        left, right, heart = _organs(random)
        grey = np.where(heart, 230, np.where(left | right, 50, 140)) + random.normal(0, 6, (_SIDE, _SIDE))
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(root / "images" / name)
        entries.append(f"{name},No Finding,0,{patient},50,F,PA,2000,2000,0.2,0.2")
        runs = ",".join(encode_run_lengths(mask) for mask in (left, right, heart))
        masks.append(f"{name},{0.5 if patient % 10 == 0 else 0.9},,{runs},{_SIDE},{_SIDE}")
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(entries) + "\n")
    (root / "masks.csv").write_text("\n".join(masks) + "\n")
    return root


def _train(release: Path, output: Path, *extra: str) -> int:
    tiny = ["--width", "4", "--size", "32", "--batch-size", "4", "--precision", "fp32"]
    return main(["train", "--variant", "unet", "--data", str(release), "-o", str(output), *tiny, *extra])


def test_four_classes_are_learnt_and_left_is_told_from_right_in_spite_of_mirrored_views(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "organs.safetensors"
    assert _train(release, output, "--epochs", "14", "--learning-rate", "0.02", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    checkpoint = read_checkpoint(output)
    assert checkpoint.spec.num_classes == 4
    data = json.loads(checkpoint.metadata["data"])
    assert data["labels"] == ["background", "left lung", "right lung", "heart"]
    training = NihDataset.open(release, "train")
    assert data["images"] == {"train": len(training), "validation": len(NihDataset.open(release, "validation"))}
    assert data["train_sha256"] == training.digest()
    assert result["validation"]["dice"]["mean"] > 0.75

    arguments = ["evaluate", "--checkpoint", str(output), "--data", str(release), "--split", "validation", "--json"]
    assert main(arguments) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert set(evaluated["classes"]) == {"left lung", "right lung", "heart"}
    # A network that cannot tell the sides gets a third of each lung at best.
    assert all(evaluated["classes"][name]["dice"]["mean"] > 0.7 for name in ("left lung", "right lung"))
    assert evaluated["metrics"]["dice"]["mean"] == pytest.approx(result["validation"]["dice"]["mean"], abs=1e-6)


def test_lungs_are_one_class_and_filters_choose_the_images(release: Path, tmp_path: Path) -> None:
    output = tmp_path / "lungs.safetensors"
    assert _train(release, output, "--epochs", "1", "--labels", "lungs", "--minimum-dice", "0.4") == 0
    checkpoint = read_checkpoint(output)
    assert checkpoint.spec.num_classes == 1
    data = json.loads(checkpoint.metadata["data"])
    assert data["labels"] == ["background", "lungs"]
    everything = NihDataset.open(release, "train", NihOptions("lungs", minimum_dice=0.0))
    assert data["images"]["train"] == len(everything) > len(NihDataset.open(release, "train"))
    assert data["train_sha256"] == everything.digest()


def test_a_missing_image_is_named_or_left_out(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "part"
    root.mkdir()
    for name in ("Data_Entry_2017_v2020.csv", "masks.csv"):
        (root / name).symlink_to(release / name)
    (root / "images").mkdir()
    lost = NihDataset.open(release, "train").names[0]
    for path in (release / "images").iterdir():
        if path.name != lost:
            (root / "images" / path.name).symlink_to(path)
    output = tmp_path / "model.safetensors"
    assert _train(root, output, "--epochs", "1") == 1
    assert f"1 images have no file in {root}/images or {root}/images_*/images, beginning with {lost}" in (
        capsys.readouterr().err
    )
    assert _train(root, output, "--epochs", "1", "--partial", "--masks", str(release / "masks.csv")) == 0
    images = json.loads(read_checkpoint(output).metadata["data"])["images"]
    assert images["train"] == len(NihDataset.open(release, "train")) - 1


def test_labels_are_refused_for_a_folder_of_masks(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "folder"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for path in (release / "images").iterdir():
            (root / folder / path.name).symlink_to(path)
    assert _train(root, tmp_path / "model.safetensors", "--labels", "organs") == 2
    assert "--labels is for ChestX-ray14" in capsys.readouterr().err
