"""A folder of ChestX-ray14 with CheXmask masks: splits by patient, filters, sizes, and what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_opt.errors import DataError
from unetx_opt.training.datasets import SPLITS, FolderDataset
from unetx_opt.training.nih import LABEL_SETS, NihDataset, NihOptions, open_dataset
from unetx_opt.training.run_lengths import encode_run_lengths

ENTRY_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
MASK_HEADER = "Image Index,Dice RCA (Mean),Landmarks,Left Lung,Right Lung,Heart,Height,Width"
SIDE = 32


def name_of(patient: int, follow_up: int = 0) -> str:
    return f"{patient:08d}_{follow_up:03d}.png"


def organ_masks(side: int = SIDE) -> tuple[Any, Any, Any]:
    left, right, heart = (np.zeros((side, side), dtype=bool) for _ in range(3))
    left[side // 4 : side // 2, side // 2 :] = True
    right[side // 4 : side // 2, : side // 4] = True
    heart[side // 4 : side // 4 * 3, side // 4 : side // 4 * 3] = True
    return left, right, heart


def write_masks(root: Path, qualities: dict[str, float], side: int = SIDE, size: str = f"{SIDE},{SIDE}") -> None:
    runs = ",".join(encode_run_lengths(mask) for mask in organ_masks(side))
    rows = [f"{name},{quality},,{runs},{size}" for name, quality in qualities.items()]
    (root / "ChestX-Ray8.csv").write_text("\n".join((MASK_HEADER, *rows)) + "\n")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Forty patients with two images each, unpacked into two folders, as the archives are."""
    names = [name_of(patient, follow_up) for patient in range(1, 41) for follow_up in (0, 1)]
    rows = [f"{n},No Finding,0,{int(n[:8])},50,F,PA,2000,2000,0.2,0.2" for n in names]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("\n".join((ENTRY_HEADER, *rows)) + "\n")
    (tmp_path / "README.csv").write_text("nothing\n")
    for place, folder in enumerate(("images_001/images", "images_002/images")):
        (tmp_path / folder).mkdir(parents=True)
        for name in names[place * 40 : place * 40 + 40]:
            grey = np.full((SIDE, SIDE), int(name[:8]), dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / folder / name)
    write_masks(tmp_path, dict.fromkeys(names, 0.9))
    return tmp_path


def write_lists(root: Path, first_test_patient: int = 31) -> None:
    names = [name_of(patient, follow_up) for patient in range(1, 41) for follow_up in (0, 1)]
    parts = {"train_val_list.txt": [], "test_list.txt": []}  # type: dict[str, list[str]]
    for name in names:
        parts["test_list.txt" if int(name[:8]) >= first_test_patient else "train_val_list.txt"].append(name)
    for file, members in parts.items():
        (root / file).write_text("\n".join(members) + "\n")


def patients_of(dataset: NihDataset) -> set[str]:
    return {name[:8] for name in dataset.names}


def test_it_is_used_as_a_folder_of_images_is(release: Path) -> None:
    dataset = open_dataset(release)
    assert isinstance(dataset, NihDataset)
    assert len(dataset) == 80
    assert dataset.names == tuple(sorted(dataset.names))
    assert dataset.image(0).tolist() == np.full((SIDE, SIDE), 1).tolist()
    assert dataset.image(79).max() == 40
    assert dataset.mask(0).dtype == np.uint8
    assert dataset.mask(0).shape == dataset.image(0).shape
    shared = {name for name in dir(FolderDataset) if not name.startswith("_")}
    assert shared <= set(dir(dataset))


def test_labels_are_the_published_organs_and_the_heart_lies_in_front(release: Path) -> None:
    left, right, heart = organ_masks()
    organs = NihDataset.open(release).mask(3)
    assert LABEL_SETS["organs"][1:] == ("left lung", "right lung", "heart")
    np.testing.assert_array_equal(organs == 3, heart)
    np.testing.assert_array_equal(organs == 1, left & ~heart)
    np.testing.assert_array_equal(organs == 2, right & ~heart)
    lungs = NihDataset.open(release, options=NihOptions(labels="lungs")).mask(3)
    np.testing.assert_array_equal(lungs, left | right)


def test_patients_are_never_in_two_splits_with_or_without_lists(release: Path) -> None:
    for with_lists in (False, True):
        if with_lists:
            write_lists(release)
        parts = {split: NihDataset.open(release, split) for split in SPLITS}
        assert sum(len(part) for part in parts.values()) == 80
        seen = [patient for part in parts.values() for patient in patients_of(part)]
        assert len(seen) == len(set(seen)) == 40
    assert patients_of(parts["test"]) == {f"{patient:08d}" for patient in range(31, 41)}


def test_a_patient_in_both_lists_is_named(release: Path) -> None:
    write_lists(release)
    train = release / "train_val_list.txt"
    train.write_text("\n".join(line for line in train.read_text().split() if line != name_of(7, 1)) + "\n")
    with (release / "test_list.txt").open("a") as file:
        file.write(name_of(7, 1) + "\n")
    with pytest.raises(DataError, match=r"patient 7 \(00000007_001\.png\) is in both lists"):
        NihDataset.open(release, "train")


@pytest.mark.parametrize(
    ("text", "message"), [(name_of(99), "no row in the Data_Entry"), (name_of(1), "listed twice"), ("../x", "plain")]
)
def test_lists_that_do_not_fit_are_named(release: Path, text: str, message: str) -> None:
    write_lists(release)
    with (release / "train_val_list.txt").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(DataError, match=message):
        NihDataset.open(release)


def test_one_list_alone_is_refused(release: Path) -> None:
    write_lists(release)
    (release / "train_val_list.txt").unlink()
    with pytest.raises(DataError, match=r"has test_list\.txt alone"):
        NihDataset.open(release)


def test_masks_below_the_quality_limit_take_no_part(release: Path) -> None:
    names = NihDataset.open(release).names
    write_masks(release, dict(zip(names, np.linspace(0.4, 1.0, len(names)), strict=True)))
    kept = NihDataset.open(release)
    assert len(kept) == int(np.count_nonzero(np.linspace(0.4, 1.0, 80) >= 0.7))
    assert len(NihDataset.open(release, options=NihOptions(minimum_dice=0.0))) == 80
    with pytest.raises(DataError, match=r"80 are below Dice 1\.0|79 are below Dice 1\.0"):
        write_masks(release, dict.fromkeys(names, 0.9))
        NihDataset.open(release, options=NihOptions(minimum_dice=1.0))


def test_missing_images_and_masks_are_named_or_left_out_on_request(release: Path) -> None:
    (release / "images_001" / "images" / name_of(2)).unlink()
    with pytest.raises(DataError, match=r"1 images have no file.*beginning with 00000002_000\.png"):
        NihDataset.open(release)
    assert len(NihDataset.open(release, options=NihOptions(partial=True))) == 79
    write_masks(release, {name_of(3): 0.9})
    with pytest.raises(DataError, match=r"79 images have no row.*beginning with 00000001_000\.png"):
        NihDataset.open(release)
    assert NihDataset.open(release, options=NihOptions(partial=True)).names == (name_of(3),)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("Data_Entry_2017_v2020.csv", "no Data_Entry_2017_v2020.csv or Data_Entry_2017.csv"),
        ("ChestX-Ray8.csv", "one CheXmask table.*none"),
        ("images_001", "neither images/"),
    ],
)
def test_missing_parts_are_named(release: Path, gone: str, message: str) -> None:
    if gone == "images_001":
        for folder in ("images_001", "images_002"):
            shutil.rmtree(release / folder)
    else:
        (release / gone).unlink()
    with pytest.raises(DataError, match=message):
        NihDataset.open(release)


def test_of_several_mask_tables_one_must_be_named(release: Path) -> None:
    shutil.copy(release / "ChestX-Ray8.csv", release / "other.csv")
    with pytest.raises(DataError, match=r"ChestX-Ray8\.csv, other\.csv"):
        NihDataset.open(release)
    assert len(NihDataset.open(release, options=NihOptions(masks=release / "other.csv"))) == 80


def test_a_mask_of_another_size_takes_the_nearest_pixel(release: Path) -> None:
    write_masks(release, dict.fromkeys(NihDataset.open(release).names, 0.9), 2 * SIDE, f"{2 * SIDE},{2 * SIDE}")
    lungs = NihDataset.open(release, options=NihOptions(labels="lungs")).mask(0)
    left, right, _ = organ_masks()
    np.testing.assert_array_equal(lungs, left | right)


def test_an_empty_size_is_that_of_the_image(release: Path) -> None:
    names = NihDataset.open(release).names
    write_masks(release, dict.fromkeys(names, 0.9), size=",")
    assert (NihDataset.open(release).mask(0) == 3).sum() == organ_masks()[2].sum()
    write_masks(release, dict.fromkeys(names, 0.9), 2 * SIDE, size=",")
    with pytest.raises(DataError, match=r"00000001_000\.png.*Height and Width"):
        NihDataset.open(release).mask(0)


def test_a_guessed_size_that_does_not_fit_the_landmarks_is_refused(nih_samples: Path, tmp_path: Path) -> None:
    table = (nih_samples / "chexmask_ChestX-Ray8_physician_julia.csv").read_text()
    name = table.split("\n")[1].split(",")[0]
    (tmp_path / "images").mkdir()
    (tmp_path / "masks.csv").write_text("\n".join(table.split("\n")[:2]) + "\n")
    row = f"{name},No Finding,0,1,50,F,PA,2000,2000,0.2,0.2"
    (tmp_path / "Data_Entry_2017.csv").write_text(f"{ENTRY_HEADER}\n{row}\n")
    for side, message in ((1024, None), (1200, "does not fit the landmarks")):
        Image.new("L", (side, side), 9).save(tmp_path / "images" / name)
        dataset = NihDataset.open(tmp_path)
        if message is None:
            assert set(np.unique(dataset.mask(0))) == {0, 1, 2, 3}
            continue
        with pytest.raises(DataError, match=message):
            dataset.mask(0)


def test_a_real_image_meets_its_real_mask(nih_samples: Path, tmp_path: Path) -> None:
    """The 64 pixel copy of 00000181_023.png: its lungs are darker than the rest of it."""
    (tmp_path / "images").mkdir()
    shutil.copy(nih_samples / "00000181_023_64px.png", tmp_path / "images" / "00000181_023.png")
    for file in ("Data_Entry_2017_v2020.csv.gz", "chexmask_ChestX-Ray8_subset50.csv"):
        shutil.copyfile(nih_samples / file, tmp_path / file)
    dataset = open_dataset(tmp_path, options=NihOptions(labels="lungs", partial=True))
    assert dataset.names == ("00000181_023.png",)
    image, mask = dataset.image(0), dataset.mask(0)
    assert mask.shape == image.shape == (64, 64)
    assert image[mask == 1].mean() < image[mask == 0].mean()
    with pytest.raises(DataError, match="have no row in"):
        open_dataset(tmp_path)


def test_the_identity_of_a_split_changes_with_image_mask_and_labels(release: Path) -> None:
    first = NihDataset.open(release).digest()
    assert first == NihDataset.open(release).digest()
    assert first != NihDataset.open(release, options=NihOptions(labels="lungs")).digest()
    Image.new("L", (SIDE, SIDE), 200).save(release / "images_001" / "images" / name_of(1))
    assert first != NihDataset.open(release).digest()


def test_a_damaged_image_and_unknown_words_are_named(release: Path) -> None:
    (release / "images_001" / "images" / name_of(1)).write_bytes(b"no image")
    dataset = NihDataset.open(release)
    for read in (dataset.image, dataset.mask):
        with pytest.raises(DataError, match=r"00000001_000\.png"):
            read(0)
    with pytest.raises(DataError, match="unknown split"):
        NihDataset.open(release, "tests")
    with pytest.raises(DataError, match="unknown labels"):
        NihOptions(labels="bones")
    with pytest.raises(DataError, match="minimum_dice"):
        NihOptions(minimum_dice=7)


def test_training_prepares_its_images_as_those_of_a_folder(release: Path) -> None:
    from unetx_opt.training.batches import BatchCutter, whole_batches
    from unetx_opt.training.prepared import PreparedImages

    pytest.importorskip("monai", reason="views are cut by MONAI: pip install 'unetx-opt[train]'")
    dataset = NihDataset.open(release, "test", NihOptions(labels="lungs"))
    with BatchCutter({"test": PreparedImages(dataset, SIDE)}) as cutter:
        batch = next(whole_batches(cutter, "test", 2))
    np.testing.assert_array_equal(batch.labels_nhw[0], dataset.mask(0))
