"""CheXmask tables: the published samples against their own landmarks, and rows of every odd form."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from unetx_opt.errors import DataError
from unetx_opt.metrics.overlap import dice, iou
from unetx_opt.training.chexmask import ORGANS, CheXmaskTable, is_chexmask_table
from unetx_opt.training.run_lengths import decode_run_lengths, encode_run_lengths, parse_landmarks

AUTOMATIC = "chexmask_ChestX-Ray8_subset50.csv"
PHYSICIAN = "chexmask_ChestX-Ray8_physician_julia.csv"
PADCHEST = "chexmask_Padchest_head3.csv"
SHAPE = (1024, 1024)
HEADER = "Image Index,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,Width"


def fill_polygon(points: Any) -> Any:
    """Rasterise a contour with Pillow, which shares no code with the reader."""
    canvas = Image.new("1", SHAPE[::-1])
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in points], fill=1, outline=1)
    return np.array(canvas)


def write_table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "masks.csv"
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("file", [AUTOMATIC, PADCHEST])
def test_published_masks_are_the_polygons_of_their_landmarks(nih_samples: Path, file: str) -> None:
    table = CheXmaskTable(nih_samples / file)
    assert len(table.names) in (50, 3)
    for name in table.names:
        row = table.row(name)
        landmarks = parse_landmarks(row.landmarks)
        contours = {"Left Lung": landmarks.left_lung, "Right Lung": landmarks.right_lung, "Heart": landmarks.heart}
        for organ, contour in contours.items():
            assert iou(row.mask(organ, SHAPE), fill_polygon(contour)) >= 0.99, (name, organ)


def test_left_is_the_side_of_the_patient(nih_samples: Path) -> None:
    table = CheXmaskTable(nih_samples / AUTOMATIC)
    row = table.row(next(iter(table.names)))
    centres = {organ: np.argwhere(row.mask(organ))[:, 1].mean() for organ in ORGANS}
    assert centres["Right Lung"] < centres["Heart"] < centres["Left Lung"]


def test_a_physician_agrees_with_the_automatic_masks_as_far_as_both_files_say(nih_samples: Path) -> None:
    """Measured over the 50 images: mean Dice 0.970 right lung, 0.962 left lung, 0.921 heart; lowest 0.347."""
    automatic, physician = CheXmaskTable(nih_samples / AUTOMATIC), CheXmaskTable(nih_samples / PHYSICIAN)
    assert set(automatic.names) == set(physician.names)
    assert physician.quality(next(iter(physician.names))) is None
    expected = {"Right Lung": 0.970, "Left Lung": 0.962, "Heart": 0.921}
    for organ, mean in expected.items():
        scores = [dice(automatic.row(n).mask(organ), physician.row(n).mask(organ, SHAPE)) for n in automatic.names]
        print(f"{organ}: mean {np.mean(scores):.4f}, median {np.median(scores):.4f}, lowest {min(scores):.4f}")
        assert np.mean(scores) == pytest.approx(mean, abs=5e-3)
        assert 0.3 < min(scores) < max(scores) <= 1.0


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_survive_a_round_trip(mask: Any) -> None:
    text = encode_run_lengths(mask)
    np.testing.assert_array_equal(decode_run_lengths(text, *mask.shape), mask)
    inside = set()
    for start, length in zip(*[iter(map(int, text.split()))] * 2, strict=True):
        inside |= set(range(start, start + length))
    assert inside == {place for place, value in enumerate(mask.ravel().tolist(), start=1) if value}


def test_run_lengths_count_from_one_along_rows() -> None:
    assert decode_run_lengths("2 2 4 1", 2, 3).astype(int).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert not decode_run_lengths("", 2, 2).any()


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("1", (2, 2), "pairs"),
        ("0 1", (2, 2), "begin before pixel 1"),
        ("1 0", (2, 2), "empty"),
        ("3 1 1 1", (2, 2), "order"),
        ("1 3 2 1", (2, 2), "overlap"),
        ("4 2", (2, 2), "ends at pixel 5"),
        ("-1 2", (2, 2), "whole numbers"),
        ("1_0 2", (2, 2), "whole numbers"),
        ("1 9999999999999999999", (2, 2), "whole numbers"),
        ("1 1", (16384, 16384), "at most"),
        ("1 1", (0, 4), "expected 1 to"),
    ],
)
def test_malformed_run_lengths_are_named(text: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_run_lengths(text, *size)


@pytest.mark.parametrize("text", ["", "1,2", "1," * 239 + "x", "1," * 241 + "1"])
def test_landmarks_that_are_not_240_whole_numbers_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="landmarks"):
        parse_landmarks(text)


@pytest.mark.parametrize("column", ["Image Index", "ImageID", "Path", "dicom_id", "image_id"])
def test_the_image_is_found_under_any_name_of_its_column_in_any_order(tmp_path: Path, column: str) -> None:
    header = f"Width,Heart,Right Lung,{column},Dice RCA (Max),Left Lung,Dice RCA (Mean),Height"
    table = CheXmaskTable(write_table(tmp_path, '"3.0",1 1,2 1,a/b.png,0.9,3 1,0.8,2', header=header))
    row = table.row("a/b.png")
    assert table.quality("a/b.png") == 0.8
    assert row.shape == (2, 3)
    assert [int(np.flatnonzero(row.mask(organ))[0]) for organ in ORGANS] == [2, 1, 0]


def test_rows_end_as_windows_writes_them_and_the_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "masks.csv"
    path.write_bytes(f"\ufeff{HEADER}\r\na.png,0.9,0.9,,1 1,2 1,3 1,2,2\r\nb.png,1,1,,,,,2,2".encode())
    table = CheXmaskTable(path)
    assert list(table.names) == ["a.png", "b.png"]
    assert is_chexmask_table(path)
    assert table.row("a.png").shape == (2, 2)
    assert not table.row("b.png").mask("Heart").any()


def test_an_unknown_size_is_asked_for_by_image(tmp_path: Path) -> None:
    row = CheXmaskTable(write_table(tmp_path, "a.png,0.9,0.9,,1 1,2 1,3 1,,")).row("a.png")
    with pytest.raises(DataError, match=r"a\.png.*Height and Width are empty"):
        row.mask("Heart")
    assert row.mask("Heart", (2, 2)).sum() == 1


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ((), HEADER, "no row"),
        (("a,1,1,,1 1,,",), HEADER, "the row has 7 fields, its header 9"),
        ((",1,1,,,,,2,2",), HEADER, "Image Index is empty"),
        (("a,1,1,,,,,2,2", "a,1,1,,,,,2,2"), HEADER, "line 3: a is listed twice"),
        (("a,good,1,,,,,2,2",), HEADER, "Dice RCA"),
        (("a,nan,1,,,,,2,2",), HEADER, "Dice RCA"),
        (('a,1,1,",,,,2,2',), HEADER, "line 2"),
        (("a,1,1,,,,,2,wide",), HEADER, "two whole numbers"),
        (("a,1,1,,,,,2,",), HEADER, "two whole numbers"),
        (("a,1,1",), "ImageID,Left Lung,Right Lung", "no column Heart"),
        (("a,1,1",), "file,Left Lung,Right Lung,Heart", "no column for the image's name"),
        (("a,1,1",), "Path,ImageID,Left Lung,Right Lung,Heart", "Path"),
        (("a,1,1",), "ImageID,Heart,Left Lung,Right Lung,Heart", "twice"),
    ],
)
def test_malformed_tables_are_named(tmp_path: Path, rows: tuple[str, ...], header: str, message: str) -> None:
    path = write_table(tmp_path, *rows, header=header)
    with pytest.raises(DataError, match=message):
        CheXmaskTable(path).row("a")


def test_an_endless_row_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "masks.csv"
    with path.open("wb") as file:
        file.write(f"{HEADER}\na.png,1,1,,".encode())
        file.seek(1 << 28)
        file.write(b"\n")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than"):
            CheXmaskTable(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_the_index_stays_small_however_long_the_rows_are(tmp_path: Path) -> None:
    runs = " ".join(f"{start} 2" for start in range(1, 8000, 4))
    path = tmp_path / "masks.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER + "\n")
        file.writelines(f'{i:08d}_000.png,0.9,0.9,"1,2",{runs},{runs},1 1,1024,1024\n' for i in range(2000))
    assert path.stat().st_size > 50e6
    tracemalloc.start()
    try:
        table = CheXmaskTable(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"kept {kept / 2000:.0f} bytes a row, peak {peak / 1e6:.2f} MB for {path.stat().st_size / 1e6:.0f} MB")
    assert kept < 400 * 2000
    assert peak < 3e6
    assert table.row("00001999_000.png").mask("Heart").sum() == 1


def test_a_table_that_changed_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = write_table(tmp_path, "a.png,1,1,,,,,2,2", "b.png,1,1,,,,,2,2")
    table = CheXmaskTable(path)
    write_table(tmp_path, "b.png,1,1,,,,,2,2", "a.png,1,1,,,,,2,2")
    with pytest.raises(DataError, match="changed since"):
        table.row("a.png")
    with pytest.raises(DataError, match=r"no row of c\.png"):
        table.row("c.png")
