"""Folders of radiographs with masks, and how they are split: numpy and pillow only, so that gates can use them.

A data folder holds ``images/NAME`` and ``masks/NAME`` (grey PNG, 8 or 16 bit) and may hold ``splits.csv`` with the
columns ``file``, ``patient`` and ``split``; further columns are ignored, and images that it does not list take no
part. Without that file each image is assigned to a split by the SHA-256 of its name (see `split_of_name`).
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from unetx_opt.errors import DataError, ImageError
from unetx_opt.files import relative_name
from unetx_opt.training.labelled import file_sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SPLITS", "FolderDataset", "Split", "split_counts", "split_of_name"]


@dataclass(frozen=True, slots=True)
class Split:
    """One of the disjoint parts of a data set.

    Attributes
    ----------
    name : str
        What ``splits.csv`` and the command line call it.
    purpose : str
        What its images may be used for.
    percent : int
        Share of the images where there is no ``splits.csv``.
    """

    name: str
    purpose: str
    percent: int


#: Split name -> its row, in the order in which `split_of_name` fills them.
SPLITS: Final[Mapping[str, Split]] = MappingProxyType(
    {
        row.name: row
        for row in (
            Split("train", "fitting weights", 70),
            Split("calibration", "ranges of INT8 tensors", 8),
            Split("validation", "choosing epochs, thresholds and precision", 10),
            Split("test", "what a report prints", 12),
        )
    }
)

_COLUMNS: Final = ("file", "patient", "split")


@dataclass(frozen=True, slots=True)
class FolderDataset:
    """The images of one split of a data folder, with their masks.

    Attributes
    ----------
    root : pathlib.Path
        Folder with ``images/`` and ``masks/``.
    split : str or None
        A key of `SPLITS`, or None for every image that takes part.
    names : tuple of str
        File names in code-point order.
    """

    root: Path
    split: str | None
    names: tuple[str, ...]

    @classmethod
    def open(cls, root: Path, split: str | None = None) -> FolderDataset:
        """List the images of a split; no image is decoded.

        Parameters
        ----------
        root : pathlib.Path
            The data folder.
        split : str or None
            A key of `SPLITS`, or None for all images.

        Raises
        ------
        DataError
            A folder, an image, a mask or a column is missing, a name would leave the folder, a patient is in two
            splits, the split is unknown, or it is empty.
        """
        if split is not None and split not in SPLITS:
            raise DataError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
        assigned = _read_assignment(root)
        names = tuple(sorted(name for name, part in assigned.items() if split in (None, part)))
        if not names:
            counts = ", ".join(f"{part} {n}" for part, n in sorted(Counter(assigned.values()).items()))
            raise DataError(
                f"{root} has no image in split {split!r} (it has {counts}): add images or change splits.csv"
            )
        for name in names:
            for folder in ("images", "masks"):
                if not (root / folder / name).is_file():
                    raise DataError(f"{root}: {folder}/{name} is missing: add the file, or take it out of the set")
        return cls(root, split, names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the values of `mask`."""
        return ("background", "foreground")

    def image(self, index: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Read one image, (H, W), grey values as stored.

        Raises
        ------
        DataError
            The file is not a grey PNG of 8 or 16 bits.
        """
        return _read_grey(self.root / "images" / self.names[index])

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Read one mask, (H, W), 1 where the stored value is above half of its range (127 of 255), else 0.

        Raises
        ------
        DataError
            The file is not a grey PNG, has another size than its image, or holds class numbers (its brightest
            value is above 0 but below the threshold, which would silently empty every mask).
        """
        import numpy as np

        path = self.root / "masks" / self.names[index]
        stored = _read_grey(path)
        limit = 127 if stored.dtype == np.uint8 else 32639
        brightest = int(stored.max())
        if 0 < brightest <= limit:
            raise DataError(
                f"{path}: the largest value is {brightest}, expected foreground above {limit}: "
                f"write foreground as {2 * limit + 1}"
            )
        expected = _size_px(self.root / "images" / self.names[index])
        if stored.shape != expected:
            raise DataError(
                f"{path} has {stored.shape[0]} x {stored.shape[1]} pixels, its image has "
                f"{expected[0]} x {expected[1]}: they must agree"
            )
        return (stored > limit).astype(np.uint8)

    def fingerprint(self, index: int) -> str:
        """Return two lines: name and SHA-256 of an image's file, and of its mask's."""
        names = (f"{folder}/{self.names[index]}" for folder in ("images", "masks"))
        return "".join(f"{name} {file_sha256(self.root / name)}\n" for name in names)

    def digest(self, fingerprints: Iterable[str] | None = None) -> str:
        """SHA-256 (hex) over the names and the bytes of every image and mask: the identity of this split.

        Parameters
        ----------
        fingerprints : iterable of str, optional
            Of every image in order, where the caller needs them too; otherwise they are computed.
        """
        digest = hashlib.sha256()
        computed = (self.fingerprint(index) for index in range(len(self)))
        for lines in computed if fingerprints is None else fingerprints:
            digest.update(lines.encode())
        return digest.hexdigest()


def split_counts(root: Path) -> dict[str, int]:
    """Count the images of a data folder per split, splits without images included.

    Raises
    ------
    DataError
        As `FolderDataset.open`.
    """
    counted = Counter(_read_assignment(root).values())
    return {name: counted[name] for name in SPLITS}


def split_of_name(name: str) -> str:
    """Choose a split by name, for folders without ``splits.csv``.

    The first eight bytes of SHA-256(name), read as a big-endian integer modulo 100, fill the splits of `SPLITS` in
    order by their percentages. The choice never changes when other images come or go. It knows no patients:
    several images of one patient can fall into different splits, and only ``splits.csv`` can prevent that.

    Parameters
    ----------
    name : str
        File name.

    Returns
    -------
    str
        A key of `SPLITS`.
    """
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    for row in SPLITS.values():
        if place < row.percent:
            return row.name
        place -= row.percent
    raise AssertionError("the percentages of SPLITS sum to 100")


def _read_assignment(root: Path) -> dict[str, str]:
    """File name -> split."""
    for folder in (root, root / "images", root / "masks"):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder: a data folder holds images/ and masks/ with the same names")
    table = root / "splits.csv"
    if table.is_file():
        return _read_splits(table)
    names = sorted(path.name for path in (root / "images").iterdir() if path.suffix.lower() == ".png")
    if not names:
        raise DataError(f"{root / 'images'} holds no .png file")
    return {name: split_of_name(name) for name in names}


def _read_splits(table: Path) -> dict[str, str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            missing = [column for column in _COLUMNS if column not in header]
            if missing:
                raise DataError(
                    f"{table} has no column {', '.join(missing)} (it has {', '.join(header) or 'nothing'}): "
                    f"the first line must name {', '.join(_COLUMNS)}"
                )
            rows = [(reader.line_num, row["file"] or "", row["patient"] or "", row["split"] or "") for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} is not a UTF-8 table with commas: {error}") from error
    if not rows:
        raise DataError(f"{table} lists no image")
    return _check_rows(table, rows)


def _check_rows(table: Path, rows: list[tuple[int, str, str, str]]) -> dict[str, str]:
    assigned: dict[str, str] = {}
    split_of_patient: dict[str, str] = {}
    for line, name, patient, split in rows:
        if relative_name(name) is None or "/" in name:
            raise DataError(f"{table}, line {line}: {name!r} is not a plain file name in images/")
        if split not in SPLITS:
            raise DataError(f"{table}, line {line}: unknown split {split!r}, expected one of {', '.join(SPLITS)}")
        if name in assigned:
            raise DataError(f"{table}, line {line}: {name} is listed twice")
        if not patient:
            raise DataError(f"{table}, line {line}: {name} has no patient: give each image one, for disjoint splits")
        if split_of_patient.setdefault(patient, split) != split:
            raise DataError(
                f"{table}, line {line}: patient {patient} is in {split_of_patient[patient]} and in {split}: "
                "keep all images of a patient in one split"
            )
        assigned[name] = split
    return assigned


def _read_grey(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    from unetx_opt.imaging.files import read_image

    try:
        pixels = read_image(path).pixels
    except ImageError as error:
        raise DataError(str(error)) from error
    return pixels


def _size_px(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.height, image.width
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no readable PNG: {error}") from error
