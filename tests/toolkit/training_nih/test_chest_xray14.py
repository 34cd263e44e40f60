"""Tables of ChestX-ray14: the published ones, the older form, and malformed rows."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from unetx_opt.errors import DataError
from unetx_opt.training.chest_xray14 import read_data_entries, read_file_list, read_finding_boxes

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def test_the_published_table_has_its_images_patients_and_findings(nih_samples: Path) -> None:
    patients: set[str] = set()
    findings: Counter[str] = Counter()
    images = 0
    for entry in read_data_entries(nih_samples / "Data_Entry_2017_v2020.csv.gz"):
        images += 1
        patients.add(entry.patient)
        findings.update(entry.findings)
        if entry.name == "00000001_001.png":
            assert entry.findings == ("Cardiomegaly", "Emphysema")
            assert (entry.age_years, entry.gender, entry.view) == (58.0, "M", "PA")
            assert entry.original_size_px == (2729, 2894)
            assert entry.original_spacing_mm == pytest.approx((0.143, 0.143))
    assert (images, len(patients)) == (112_120, 30_805)
    assert len(findings) == 15


def test_the_published_boxes_lie_in_the_image(nih_samples: Path) -> None:
    boxes = list(read_finding_boxes(nih_samples / "BBox_List_2017.csv.gz"))
    assert len(boxes) == 984
    assert len({box.finding for box in boxes}) == 8
    for box in boxes:
        assert 0 <= box.left_px < box.left_px + box.width_px <= 1025
        assert 0 <= box.top_px < box.top_px + box.height_px <= 1025


@pytest.mark.parametrize(("age", "years"), [("058Y", 58.0), ("006M", 0.5), ("58", 58.0), ("414Y", 414.0)])
def test_the_older_table_with_trailing_commas_and_units_of_age_is_read(
    tmp_path: Path, age: str, years: float
) -> None:
    path = tmp_path / "Data_Entry_2017.csv"
    path.write_text(f"{HEADER},\r\na.png,No Finding,0,1,{age},M,PA,2682,2749,0.143,0.168,\r\n")
    (entry,) = read_data_entries(path)
    assert entry.age_years == pytest.approx(years)
    assert entry.original_spacing_mm == (0.168, 0.143)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none"),
        (HEADER.replace("Patient ID,", "") + "\n", "Patient ID missing"),
        (f"{HEADER}\na.png,x,0,1,58,M,PA,1,1,1\n", "line 2: the row has 10 fields"),
        (f"{HEADER}\na.png,x,0,1,58,M,PA,1,1,1,1,left\n", "line 2: the row has 12 fields"),
        (f"{HEADER}\n../a.png,x,0,1,58,M,PA,1,1,1,1\n", "plain file name"),
        (f"{HEADER}\n/etc/passwd,x,0,1,58,M,PA,1,1,1,1\n", "plain file name"),
        (f"{HEADER}\na.png,x,0,,58,M,PA,1,1,1,1\n", "no Patient ID"),
        (f"{HEADER}\na.png,x,0,1,old,M,PA,1,1,1,1\n", "expected a number"),
        (f"{HEADER}\na.png,{'x' * 5000},0,1,58,M,PA,1,1,1,1\n", "more than 4096 characters"),
        (HEADER + '\n"' + "x\n" * 80_000, "cannot be read"),
    ],
)
def test_malformed_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "Data_Entry_2017.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_data_entries(path))


def test_a_damaged_archive_and_a_missing_table_are_named(tmp_path: Path) -> None:
    path = tmp_path / "Data_Entry_2017.csv.gz"
    path.write_bytes(gzip.compress(HEADER.encode())[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        list(read_data_entries(path))
    with pytest.raises(DataError, match="is missing"):
        list(read_data_entries(tmp_path / "none.csv"))


def test_a_box_without_a_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "BBox_List_2017.csv"
    path.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Mass,1,2,3,wide\n")
    with pytest.raises(DataError, match="line 2"):
        list(read_finding_boxes(path))


def test_lists_hold_plain_names_and_may_hold_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "test_list.txt"
    path.write_text("a.png\r\n\r\nb.png")
    assert list(read_file_list(path)) == ["a.png", "b.png"]
    path.write_text("a.png\n../b.png\n")
    with pytest.raises(DataError, match="line 2"):
        list(read_file_list(path))
