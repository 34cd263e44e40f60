"""Where the spacing of pixels comes from, and that a scaled radiograph has a scaled spacing."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetx_opt.errors import DataError
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.nih import NihDataset, NihOptions
from unetx_opt.training.pixel_spacing import read_pixel_spacing

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def write_folder(root: Path, table: str | None) -> FolderDataset:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for name in ("a.png", "b.png", "c.png"):
            Image.fromarray(np.full((40, 32), 255, dtype=np.uint8)).save(root / folder / name)
    if table is not None:
        (root / "splits.csv").write_text(table, encoding="utf-8")
    return FolderDataset.open(root)


def write_nih(root: Path, rows: list[str]) -> NihDataset:
    (root / "images").mkdir()
    (root / "Data_Entry_2017.csv").write_text("\n".join((HEADER, *rows)) + "\n")
    names = [row.partition(",")[0] for row in rows]
    masks = [f"{name},0.9,1 5,10 5,20 5,16,16" for name in names]
    columns = "Image Index,Dice RCA (Mean),Left Lung,Right Lung,Heart,Height,Width"
    (root / "masks.csv").write_text("\n".join((columns, *masks)) + "\n")
    for name in names:
        Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(root / "images" / name)
    return NihDataset.open(root)


def test_a_folder_has_the_spacing_of_its_table_and_an_empty_cell_is_unknown(tmp_path: Path) -> None:
    table = (
        "file,patient,column_spacing_mm,split,row_spacing_mm\n"
        "a.png,1,0.5,test,0.25\nb.png,2,,test,\nc.png,3,0.143,train,0.143\n"
    )
    spacing_of = read_pixel_spacing(write_folder(tmp_path, table))
    assert spacing_of("a.png", (40, 32)) == (0.25, 0.5)
    assert spacing_of("b.png", (40, 32)) is None
    assert spacing_of("c.png", (40, 32)) == (0.143, 0.143)


@pytest.mark.parametrize("table", [None, "file,patient,split\na.png,1,test\nb.png,2,test\nc.png,3,test\n"])
def test_a_folder_without_the_columns_knows_no_spacing(tmp_path: Path, table: str | None) -> None:
    assert read_pixel_spacing(write_folder(tmp_path, table))("a.png", (40, 32)) is None


@pytest.mark.parametrize(
    ("header", "cells", "message"),
    [
        ("row_spacing_mm", "0.2", "has the column row_spacing_mm alone"),
        ("row_spacing_mm,column_spacing_mm", "0.2,", "line 2: the spacing is '0.2' x '', expected two numbers"),
        ("row_spacing_mm,column_spacing_mm", "0.2,x", "line 2: the spacing is '0.2' x 'x'"),
        ("row_spacing_mm,column_spacing_mm", "0.2,0", "line 2: the spacing is 0.2 x 0.0, expected 0.01 to 50.0"),
        ("row_spacing_mm,column_spacing_mm", "0.2,-1", "0.2 x -1.0"),
        ("row_spacing_mm,column_spacing_mm", "nan,0.2", "nan x 0.2"),
        ("row_spacing_mm,column_spacing_mm", "143,143", "143.0 x 143.0"),
    ],
)
def test_half_a_spacing_and_impossible_ones_are_named(tmp_path: Path, header: str, cells: str, message: str) -> None:
    dataset = write_folder(tmp_path, f"file,patient,split,{header}\na.png,1,test,{cells}\n")
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        read_pixel_spacing(dataset)


def test_a_chest_xray14_image_has_the_spacing_of_its_scaled_copy(tmp_path: Path) -> None:
    # Width 2500 and height 2048 at 0.168 mm, both scaled to 1024: columns lie further apart than rows.
    dataset = write_nih(tmp_path, ["00000181_023.png,No Finding,0,181,50,F,AP,2500,2048,0.168,0.168"])
    spacing_of = read_pixel_spacing(dataset)
    rows_mm, columns_mm = spacing_of("00000181_023.png", (1024, 1024)) or (0.0, 0.0)
    assert rows_mm == pytest.approx(2048 * 0.168 / 1024)
    assert columns_mm == pytest.approx(2500 * 0.168 / 1024)
    # Whatever the copy's size, the radiograph keeps its extent.
    for shape in ((512, 512), (64, 128), (2048, 2500)):
        found = spacing_of("00000181_023.png", shape)
        assert found is not None
        assert np.multiply(found, shape) == pytest.approx([2048 * 0.168, 2500 * 0.168])
    assert spacing_of("00000181_023.png", (2048, 2500)) == pytest.approx((0.168, 0.168))


def test_the_spacing_of_columns_stands_first_in_data_entry(tmp_path: Path) -> None:
    dataset = write_nih(tmp_path, ["00000001_000.png,No Finding,0,1,50,F,AP,1000,1000,0.3,0.1"])
    assert read_pixel_spacing(dataset)("00000001_000.png", (1000, 1000)) == pytest.approx((0.1, 0.3))


def test_a_spacing_of_zero_is_unknown_and_not_a_distance_of_zero(tmp_path: Path) -> None:
    dataset = write_nih(tmp_path, ["00000001_000.png,No Finding,0,1,50,F,AP,1000,1000,0,0"])
    assert read_pixel_spacing(dataset)("00000001_000.png", (16, 16)) is None


def test_the_real_table_gives_every_image_a_plausible_spacing(nih_samples: Path, tmp_path: Path) -> None:
    (tmp_path / "Data_Entry_2017_v2020.csv").write_bytes(
        gzip.decompress((nih_samples / "Data_Entry_2017_v2020.csv.gz").read_bytes())
    )
    (tmp_path / "masks.csv").write_bytes((nih_samples / "chexmask_ChestX-Ray8_subset50.csv").read_bytes())
    (tmp_path / "images").mkdir()
    small = (nih_samples / "00000181_023_64px.png").read_bytes()
    (tmp_path / "images" / "00000181_023.png").write_bytes(small)
    dataset = NihDataset.open(tmp_path, None, NihOptions(partial=True, minimum_dice=0.0))
    assert read_pixel_spacing(dataset)("00000181_023.png", (64, 64)) == pytest.approx(
        (2048 * 0.168 / 64, 2500 * 0.168 / 64)
    )
