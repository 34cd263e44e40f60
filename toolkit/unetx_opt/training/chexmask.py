"""CheXmask tables: run-length masks, landmarks and quality estimates, read one row at a time.

CheXmask (Gaggion et al., Scientific Data 11, 2024) publishes masks of left lung, right lung and heart for several
collections of chest radiographs. A table has 100,000 rows of about 20 kB: only the place of each row is kept, and
a row is read when its mask is asked for. "Left" and "right" are the patient's sides: the left lung lies on the right
of the image.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unetx_opt.errors import DataError
from unetx_opt.training.run_lengths import decode_run_lengths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "ID_COLUMNS",
    "ORGANS",
    "CheXmaskRow",
    "CheXmaskTable",
    "is_chexmask_table",
]

#: Names that the parts of CheXmask give to the column of image names.
ID_COLUMNS: Final = ("Image Index", "ImageID", "Path", "dicom_id", "image_id")
#: Columns of masks, in the order of the labels 1, 2, 3.
ORGANS: Final = ("Left Lung", "Right Lung", "Heart")
DICE_COLUMN: Final = "Dice RCA (Mean)"

# Published rows have about 20 kB; 8 MiB hold the runs of three masks whose every second pixel begins one at 1024^2.
_MAX_ROW_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class CheXmaskRow:
    """One row of a table, still as text.

    Attributes
    ----------
    where : str
        File, line and image, for messages.
    runs : mapping of str to str
        Organ of `ORGANS` -> its run lengths.
    landmarks : str
        Text of the landmarks, empty where the table has none.
    shape : tuple of int or None
        Height and width of the masks; None where the table does not say.
    """

    where: str
    runs: Mapping[str, str]
    landmarks: str
    shape: tuple[int, int] | None

    def mask(self, organ: str, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """Decode the mask of an organ, (H, W).

        Parameters
        ----------
        organ : str
            One of `ORGANS`.
        shape : tuple of int, optional
            Height and width where the row has none.

        Raises
        ------
        DataError
            The runs are malformed, or no size is known.
        """
        size = self.shape or shape
        if size is None:
            raise DataError(f"{self.where}: Height and Width are empty: fill them in, or give the image's size")
        try:
            return decode_run_lengths(self.runs[organ], *size)
        except DataError as error:
            raise DataError(f"{self.where}, {organ}: {error}") from error


class CheXmaskTable:
    """The rows of a CheXmask file, found by image name; the masks stay on disk.

    The index holds a name, a byte offset and a quality per row, about 150 bytes each.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    names : mapping of str to int
        Image name -> number of its row, in the order of the file.
    """

    def __init__(self, path: Path) -> None:
        """Index a file in one pass; no mask is decoded, and the columns behind the first ones not even parsed.

        Raises
        ------
        DataError
            A column is missing, a row is oversized, nameless, without quality or listed twice, or there is none.
        """
        self.path = path
        self.names: dict[str, int] = {}
        self._offsets = array("q")
        self._qualities = array("d")
        try:
            self._index()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as a UTF-8 table: {error}") from error

    def quality(self, name: str) -> float | None:
        """Estimated Dice ("Dice RCA (Mean)") of an image's masks; None where the table has no such column."""
        return self._qualities[self.names[name]] if DICE_COLUMN in self._columns else None

    def row(self, name: str) -> CheXmaskRow:
        """Read the row of an image.

        Raises
        ------
        DataError
            The file has no such image or was changed since it was opened, or its size is malformed.
        """
        number = self.names.get(name)
        if number is None:
            raise DataError(f"{self.path} has no row of {name}")
        where = f"{self.path}, line {number + 2} ({name})"
        with self.path.open("rb") as file:
            file.seek(self._offsets[number])
            fields = _split_row(file.readline(_MAX_ROW_BYTES + 1), where, len(self.header))
        if fields[self._columns[self._id_column]] != name:
            raise DataError(f"{where}: the file was changed since it was opened: open it again")
        return CheXmaskRow(
            where,
            {organ: fields[self._columns[organ]] for organ in ORGANS},
            fields[self._columns["Landmarks"]] if "Landmarks" in self._columns else "",
            self._shape(fields, where),
        )

    def _index(self) -> None:
        with self.path.open("rb") as file:
            self.header = _read_header(self.path, file.readline(_MAX_ROW_BYTES))
            self._columns = {column: place for place, column in enumerate(self.header)}
            self._id_column = _find_id_column(self.path, self.header)
            wanted = [self._id_column, *((DICE_COLUMN,) if DICE_COLUMN in self._columns else ())]
            pick = _picker([self._columns[column] for column in wanted], len(self.header))
            while True:
                offset = file.tell()
                line = file.readline(_MAX_ROW_BYTES + 1)
                if not line:
                    break
                self._add(offset, pick(line, f"{self.path}, line {len(self._offsets) + 2}"))
        if not self.names:
            raise DataError(f"{self.path} has a header and no row")

    def _add(self, offset: int, picked: Sequence[str]) -> None:
        name, number = picked[0], len(self._offsets)
        where = f"{self.path}, line {number + 2}"
        if not name:
            raise DataError(f"{where}: the column {self._id_column} is empty")
        if name in self.names:
            raise DataError(f"{where}: {name} is listed twice: keep one of its rows")
        self.names[name] = number
        self._offsets.append(offset)
        self._qualities.append(_parse_quality(picked[1], where) if len(picked) > 1 else 0.0)

    def _shape(self, fields: Sequence[str], where: str) -> tuple[int, int] | None:
        texts = [fields[self._columns[name]].strip() if name in self._columns else "" for name in ("Height", "Width")]
        if not any(texts):
            return None
        try:
            # Some parts went through a table program that writes whole numbers as 1024.0.
            height, width = (int(text.removesuffix(".0")) for text in texts)
        except ValueError as error:
            raise DataError(f"{where}: Height and Width are {texts}, expected two whole numbers of pixels") from error
        return height, width


def is_chexmask_table(path: Path) -> bool:
    """Whether the first line of a file names the mask columns of CheXmask."""
    try:
        with path.open("rb") as file:
            header = file.readline(1 << 16).decode("utf-8-sig").strip().split(",")
    except (OSError, UnicodeDecodeError):
        return False
    return set(ORGANS) <= {column.strip().strip('"') for column in header}


def _parse_quality(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise DataError(f"{where}: {DICE_COLUMN} is {text[:20]!r}, expected 0 to 1")
    return value


def _read_header(path: Path, line: bytes) -> tuple[str, ...]:
    header = tuple(column.strip() for column in next(csv.reader([line.decode("utf-8-sig")]), []))
    missing = [column for column in ORGANS if column not in header]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)} (it has {', '.join(header)[:200] or 'nothing'}): "
            "pass a CheXmask table, as plain .csv"
        )
    if len(set(header)) != len(header):
        raise DataError(f"{path} names a column twice: {', '.join(header)[:200]}")
    return header


def _find_id_column(path: Path, header: tuple[str, ...]) -> str:
    found = [column for column in ID_COLUMNS if column in header]
    if len(found) != 1:
        raise DataError(
            f"{path} has {' and '.join(found) or 'no column'} for the image's name, "
            f"expected one of {', '.join(ID_COLUMNS)}"
        )
    return found[0]


def _picker(places: Sequence[int], count: int) -> Callable[[bytes, str], list[str]]:
    """Return a function that takes some columns of a line; unquoted leading ones without parsing the masks."""
    last = max(places)

    def pick(line: bytes, where: str) -> list[str]:
        head = line.split(b",", last + 1)
        if len(line) > _MAX_ROW_BYTES or len(head) < last + 2 or any(b'"' in field for field in head[: last + 1]):
            fields = _split_row(line, where, count)
            return [fields[place] for place in places]
        return [head[place].decode() for place in places]

    return pick


def _split_row(line: bytes, where: str, count: int) -> list[str]:
    if len(line) > _MAX_ROW_BYTES:
        raise DataError(f"{where}: the row has more than {_MAX_ROW_BYTES} bytes")
    previous = csv.field_size_limit(_MAX_ROW_BYTES)
    try:
        fields = next(csv.reader([line.decode()], strict=True), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{where} is no row of a UTF-8 table with commas: {error}") from error
    finally:
        csv.field_size_limit(previous)
    if len(fields) != count:
        raise DataError(f"{where}: the row has {len(fields)} fields, its header {count}")
    return fields
