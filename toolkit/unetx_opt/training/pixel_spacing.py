"""How far apart the pixels of a data set's images lie, where its tables tell.

- A folder of images and masks: the optional columns ``row_spacing_mm`` and ``column_spacing_mm`` of its
  ``splits.csv``, of the stored image; an empty cell is an image whose spacing is not known.
- ChestX-ray14: ``OriginalImage[Width,Height]`` and ``OriginalImagePixelSpacing[x,y]`` of ``Data_Entry``. They are
  those of the radiograph before each of its sides was scaled to 1024 pixels on its own, so that the published image
  has another spacing, and another one along its rows than along its columns wherever the original was not square:
  original side times original spacing, divided by the side of the image at hand.

Distances are those on the detector: the patient's organs lie in front of it and are projected larger.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from unetx_opt.errors import DataError
from unetx_opt.training.chest_xray14 import read_data_entries
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.nih import NihDataset
from unetx_opt.training.nih_folder import entry_table

__all__ = ["SpacingOf", "read_pixel_spacing"]

#: Image name and its (height, width) in pixels -> its row and column spacing in mm, or None where it is not known.
SpacingOf = Callable[[str, tuple[int, int]], tuple[float, float] | None]

_COLUMNS: Final = ("row_spacing_mm", "column_spacing_mm")
# Chest detectors have 0.1 to 0.2 mm, thumbnails of 32 pixels some 15 mm: what lies far outside is another unit.
_RANGE_MM: Final = (0.01, 50.0)


def read_pixel_spacing(dataset: FolderDataset | NihDataset) -> SpacingOf:
    """Read the spacing of every image of a data set, in one pass over its table.

    Parameters
    ----------
    dataset : FolderDataset or NihDataset
        Memory holds two numbers for each of its images.

    Returns
    -------
    callable
        ``spacing_of(name, (height, width))``.

    Raises
    ------
    DataError
        The table has one of two columns, or a spacing that is no number or out of range.
    """
    names = frozenset(dataset.names)
    if isinstance(dataset, NihDataset):
        extents = dict(_read_extents(dataset.root, names))
        return lambda name, shape: _divide(extents.get(name), shape)
    stored = dict(_read_columns(dataset.root / "splits.csv", names))
    return lambda name, _: stored.get(name)


def _read_extents(root: Path, names: frozenset[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the height and width in mm of the original radiographs; a spacing of 0 means that it is not known."""
    table = entry_table(root)
    for entry in read_data_entries(table) if table is not None else ():
        height, width = (
            side * spacing for side, spacing in zip(entry.original_size_px, entry.original_spacing_mm, strict=True)
        )
        if entry.name in names and 0.0 < height < math.inf and 0.0 < width < math.inf:
            yield entry.name, (height, width)


def _divide(extent_mm: tuple[float, float] | None, shape: tuple[int, int]) -> tuple[float, float] | None:
    return None if extent_mm is None else (extent_mm[0] / shape[0], extent_mm[1] / shape[1])


def _read_columns(table: Path, names: frozenset[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    if not table.is_file():
        return
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        found = [column for column in _COLUMNS if column in (reader.fieldnames or ())]
        if len(found) == 1:
            raise DataError(f"{table} has the column {found[0]} alone: add {' and '.join(_COLUMNS)}, or neither")
        for row in reader if found else ():
            texts = tuple((row[column] or "").strip() for column in _COLUMNS)
            if row["file"] in names and any(texts):
                yield row["file"], _parse(texts, f"{table}, line {reader.line_num}")


def _parse(texts: tuple[str, ...], where: str) -> tuple[float, float]:
    try:
        rows_mm, columns_mm = (float(text) for text in texts)
    except ValueError as error:
        raise DataError(
            f"{where}: the spacing is {' x '.join(map(repr, texts))}, expected two numbers of millimetres or none"
        ) from error
    lowest, highest = _RANGE_MM
    if not (lowest <= rows_mm <= highest and lowest <= columns_mm <= highest):
        raise DataError(
            f"{where}: the spacing is {rows_mm} x {columns_mm}, expected {lowest} to {highest} millimetres"
        )
    return rows_mm, columns_mm
