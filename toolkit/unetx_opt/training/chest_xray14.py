"""Tables of NIH ChestX-ray14: patients, findings, boxes and the official split.

ChestX-ray14 (Wang et al., CVPR 2017) publishes its tables with unquoted commas in the header ("OriginalImage[Width,
Height]"), so that a header and its rows agree in the number of fields only by their position. The older
``Data_Entry_2017.csv`` ends each line with a comma and writes ages as ``058Y``. Tables may be compressed (.gz).
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from unetx_opt.errors import DataError
from unetx_opt.files import relative_name

__all__ = ["DataEntry", "FindingBox", "read_data_entries", "read_file_list", "read_finding_boxes"]

_ENTRY_COLUMNS: Final = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
)
_BOX_COLUMNS: Final = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
_MAX_LINE_CHARACTERS: Final = 4096
# Ages above are typing errors of the source (up to 414 in the 2017 file), not refused: no one trains on them.
_AGE_UNITS: Final = {"Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}


@dataclass(frozen=True, slots=True)
class DataEntry:
    """One row of ``Data_Entry``.

    Attributes
    ----------
    name : str
        File name of the image.
    findings : tuple of str
        Labels; ("No Finding",) where there is none.
    patient : str
        Patient number as written.
    age_years : float
        As written; months and days are converted.
    gender, view : str
        "M" or "F"; "PA" or "AP".
    original_size_px : tuple of int
        Height and width before the image was scaled to 1024 x 1024.
    original_spacing_mm : tuple of float
        Distance between rows and between columns of the original image.
    """

    name: str
    findings: tuple[str, ...]
    patient: str
    age_years: float
    gender: str
    view: str
    original_size_px: tuple[int, int]
    original_spacing_mm: tuple[float, float]


@dataclass(frozen=True, slots=True)
class FindingBox:
    """One row of ``BBox_List``: a finding and its box, in pixels of the 1024 x 1024 image."""

    name: str
    finding: str
    left_px: float
    top_px: float
    width_px: float
    height_px: float


def read_data_entries(path: Path) -> Iterator[DataEntry]:
    """Yield the rows of ``Data_Entry_2017.csv`` or ``Data_Entry_2017_v2020.csv``, one at a time.

    Parameters
    ----------
    path : pathlib.Path
        The table, or the same compressed with gzip.

    Raises
    ------
    DataError
        A column is missing, or a row is malformed; file and line are named.
    """
    for where, fields in _rows(path, _ENTRY_COLUMNS):
        name, labels, _, patient, age, gender, view, width, height, spacing_x, spacing_y = fields
        if not patient:
            raise DataError(f"{where}: {name} has no Patient ID")
        try:
            yield DataEntry(
                name=_check_name(name, where),
                findings=tuple(labels.split("|")),
                patient=patient,
                age_years=_parse_age(age),
                gender=gender,
                view=view,
                original_size_px=(int(height), int(width)),
                original_spacing_mm=(float(spacing_y), float(spacing_x)),
            )
        except ValueError as error:
            raise DataError(f"{where}: {error}, expected a number") from error


def read_finding_boxes(path: Path) -> Iterator[FindingBox]:
    """Yield the rows of ``BBox_List_2017.csv``, one at a time.

    Raises
    ------
    DataError
        As `read_data_entries`.
    """
    for where, (name, finding, *numbers) in _rows(path, _BOX_COLUMNS):
        try:
            left, top, width, height = (float(number) for number in numbers)
        except ValueError as error:
            raise DataError(f"{where}: {error}, expected a number of pixels") from error
        yield FindingBox(_check_name(name, where), finding, left, top, width, height)


def read_file_list(path: Path) -> Iterator[str]:
    """Yield the image names of ``train_val_list.txt`` or ``test_list.txt``; blank lines are passed over.

    Raises
    ------
    DataError
        A line is no plain file name.
    """
    with _open_text(path) as file:
        for number, line in enumerate(_bounded_lines(path, file), start=1):
            name = line.strip()
            if name:
                yield _check_name(name, f"{path}, line {number}")


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    with _open_text(path) as file:
        reader = csv.reader(_bounded_lines(path, file))
        header = [token.strip() for token in next(reader, [])]
        if tuple(header[: len(columns)]) != columns or any(header[len(columns) :]):
            missing = [column for column in columns if column not in header]
            raise DataError(
                f"{path} has the columns {','.join(header)[:200] or '(none)'}, expected {','.join(columns)}"
                + (f": {', '.join(missing)} missing" if missing else " in this order")
            )
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if len(fields) < len(columns) or any(fields[len(columns) :]):
                raise DataError(f"{where}: the row has {len(fields)} fields, expected {len(columns)}")
            yield where, [field.strip() for field in fields[: len(columns)]]


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("rb") as raw:
            binary = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
                yield text
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: copy it from the ChestX-ray14 release") from error
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a UTF-8 table: {error}") from error


def _bounded_lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(_MAX_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > _MAX_LINE_CHARACTERS:
            raise DataError(f"{path}, line {number} has more than {_MAX_LINE_CHARACTERS} characters")
        yield line


def _check_name(name: str, where: str) -> str:
    if relative_name(name) is None or "/" in name:
        raise DataError(f"{where}: {name[:80]!r} is not a plain file name")
    return name


def _parse_age(text: str) -> float:
    unit = text[-1:].upper()
    if unit in _AGE_UNITS:
        return int(text[:-1]) * _AGE_UNITS[unit]
    return float(text)
