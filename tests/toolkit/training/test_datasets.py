"""Data folders: what is read, how it is split, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unetx_opt.errors import DataError
from unetx_opt.training.datasets import SPLITS, FolderDataset, split_counts, split_of_name


def _write_folder(root: Path, names: list[str], splits: str | None = None) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for value, name in enumerate(names):
        image = np.full((20, 24), value, dtype=np.uint8)
        mask = np.zeros((20, 24), dtype=np.uint8)
        mask[5:10, 6:12] = 255
        Image.fromarray(image).save(root / "images" / name)
        Image.fromarray(mask).save(root / "masks" / name)
    if splits is not None:
        (root / "splits.csv").write_text(splits, encoding="utf-8")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "file,patient,sex,split\nb.png,2,f,train\na.png,1,m,train\nc.png,3,f,test\n"
    return _write_folder(tmp_path / "set", ["a.png", "b.png", "c.png"], rows)


def test_a_split_lists_its_images_in_order_and_reads_them(folder: Path) -> None:
    dataset = FolderDataset.open(folder, "train")
    assert dataset.names == ("a.png", "b.png")
    assert len(dataset) == 2
    assert dataset.image(1).shape == (20, 24)
    assert int(dataset.image(1)[0, 0]) == 1
    mask = dataset.mask(0)
    assert mask.dtype == np.uint8
    assert np.unique(mask).tolist() == [0, 1]
    assert int(mask.sum()) == 30


def test_no_split_means_every_image_that_takes_part(folder: Path) -> None:
    assert FolderDataset.open(folder).names == ("a.png", "b.png", "c.png")


def test_counts_name_every_split(folder: Path) -> None:
    assert split_counts(folder) == {"train": 2, "calibration": 0, "validation": 0, "test": 1}


def test_sixteen_bit_images_keep_their_values_and_masks_their_threshold(folder: Path) -> None:
    Image.fromarray(np.full((20, 24), 40_000, dtype=np.uint16)).save(folder / "images" / "a.png")
    mask = np.zeros((20, 24), dtype=np.uint16)
    mask[0, :3] = (32_639, 32_640, 65_535)
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    dataset = FolderDataset.open(folder, "train")
    assert int(dataset.image(0).max()) == 40_000
    assert dataset.mask(0)[0, :4].tolist() == [0, 1, 1, 0]


def test_a_mask_pixel_is_foreground_above_127(folder: Path) -> None:
    mask = np.zeros((20, 24), dtype=np.uint8)
    mask[0, :3] = (127, 128, 255)
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    assert FolderDataset.open(folder, "train").mask(0)[0, :4].tolist() == [0, 1, 1, 0]


def test_a_bilevel_mask_is_read_or_refused_but_never_emptied(folder: Path) -> None:
    mask = np.zeros((20, 24), dtype=bool)
    mask[3:6, 3:6] = True
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    dataset = FolderDataset.open(folder, "train")
    try:
        assert int(dataset.mask(0).sum()) == 9
    except DataError as error:
        assert "foreground" in str(error)


def test_a_mask_of_class_numbers_is_refused_and_not_read_as_empty(folder: Path) -> None:
    Image.fromarray(np.ones((20, 24), dtype=np.uint8)).save(folder / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: the largest value is 1, expected foreground above 127"):
        FolderDataset.open(folder, "train").mask(0)


def test_a_mask_of_another_size_is_refused(folder: Path) -> None:
    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save(folder / "masks" / "a.png")
    with pytest.raises(DataError, match="20 x 20 pixels, its image has 20 x 24"):
        FolderDataset.open(folder, "train").mask(0)


def test_a_file_that_is_no_png_is_named(folder: Path) -> None:
    (folder / "images" / "a.png").write_bytes(b"GIF89a")
    dataset = FolderDataset.open(folder, "train")
    with pytest.raises(DataError, match=r"a\.png"):
        dataset.image(0)
    with pytest.raises(DataError, match=r"a\.png"):
        dataset.mask(0)


@pytest.mark.parametrize("missing", ["images/a.png", "masks/b.png"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(DataError, match=missing.replace(".", r"\.") + " is missing"):
        FolderDataset.open(folder, "train")


@pytest.mark.parametrize("missing", ["", "images", "masks"])
def test_a_missing_folder_is_named(tmp_path: Path, missing: str) -> None:
    for name in {"images", "masks"} - {missing}:
        (tmp_path / "set" / name).mkdir(parents=True)
    root = tmp_path / "set" if missing else tmp_path / "elsewhere"
    with pytest.raises(DataError, match=f"{missing or 'elsewhere'} is not a folder"):
        FolderDataset.open(root)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        pytest.param("file,split\na.png,train\n", "has no column patient", id="column"),
        pytest.param("", "has no column file, patient, split", id="empty file"),
        pytest.param("file,patient,split\n", "lists no image", id="no rows"),
        pytest.param("file,patient,split\na.png,1,dev\n", "line 2: unknown split 'dev'", id="split"),
        pytest.param("file,patient,split\na.png\n", "line 2: unknown split ''", id="short row"),
        pytest.param("file,patient,split\na.png,,train\n", "has no patient", id="patient"),
        pytest.param("file,patient,split\na.png,1,train\na.png,1,train\n", "listed twice", id="twice"),
        pytest.param(
            "file,patient,split\na.png,1,train\nb.png,1,test\n", "patient 1 is in train and in test", id="leak"
        ),
        pytest.param("file,patient,split\nz.png,1,train\n", r"images/z\.png is missing", id="no such image"),
    ],
)
def test_a_table_that_does_not_fit_says_what_is_wrong(tmp_path: Path, splits: str, message: str) -> None:
    root = _write_folder(tmp_path / "set", ["a.png", "b.png"], splits)
    with pytest.raises(DataError, match=message):
        FolderDataset.open(root)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "sub/a.png", "..", "C:a.png", "a\\b.png", "nul.png", ""])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    root = _write_folder(tmp_path / "set", ["a.png"], f"file,patient,split\n{name},1,train\n")
    with pytest.raises(DataError, match="not a plain file name"):
        FolderDataset.open(root)


def test_a_table_that_is_not_text_is_an_error_of_the_data(tmp_path: Path) -> None:
    root = _write_folder(tmp_path / "set", ["a.png"])
    (root / "splits.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(DataError, match="not a UTF-8 table"):
        FolderDataset.open(root)


def test_an_unknown_or_empty_split_lists_what_there_is(folder: Path) -> None:
    with pytest.raises(DataError, match="unknown split 'dev', expected one of train, calibration, validation, test"):
        FolderDataset.open(folder, "dev")
    with pytest.raises(DataError, match=r"no image in split 'validation' \(it has test 1, train 2\)"):
        FolderDataset.open(folder, "validation")


def test_without_a_table_names_decide_the_split_and_newcomers_move_no_one(tmp_path: Path) -> None:
    names = [f"{i:03d}.png" for i in range(60)]
    first = _write_folder(tmp_path / "few", names[:40])
    second = _write_folder(tmp_path / "many", names)
    for split in ("train", "validation"):
        few, many = (set(FolderDataset.open(root, split).names) for root in (first, second))
        assert few <= many
    assert sum(split_counts(second).values()) == 60


def test_split_shares_follow_the_table() -> None:
    counted = Counter(split_of_name(f"image-{i}.png") for i in range(10_000))
    for row in SPLITS.values():
        assert abs(counted[row.name] / 100 - row.percent) < 1.5


@given(st.text())
def test_every_name_has_one_split_for_ever(name: str) -> None:
    assert split_of_name(name) in SPLITS
    assert split_of_name(name) == split_of_name(name)


def test_the_digest_changes_with_a_single_mask_pixel(folder: Path) -> None:
    before = FolderDataset.open(folder, "train").digest()
    assert before == FolderDataset.open(folder, "train").digest()
    Image.fromarray(np.zeros((20, 24), dtype=np.uint8)).save(folder / "masks" / "a.png")
    assert FolderDataset.open(folder, "train").digest() != before


def test_reading_a_data_set_needs_no_torch(folder: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from unetx_opt.training.datasets import FolderDataset\n"
        "dataset = FolderDataset.open(pathlib.Path(sys.argv[1]), 'train')\n"
        "dataset.image(0), dataset.mask(0), dataset.digest()\n"
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env=environment)
