"""NIH ChestX-ray14 with the masks of CheXmask, as both are published.

A data folder holds

- ``Data_Entry_2017_v2020.csv`` or ``Data_Entry_2017.csv`` (or .gz): which image is which patient's;
- the images, in ``images/`` or, as the release unpacks, in ``images_001/images/`` ... ``images_012/images/``;
- one CheXmask table (any .csv with the columns Left Lung, Right Lung, Heart);
- ``train_val_list.txt`` and ``test_list.txt``, both or neither.

With the lists, the official test images are the test split, and the patients of the other list are divided among
train, calibration and validation; without them the patients are divided among all four. A patient's place is chosen
by `unetx_opt.training.datasets.split_of_name` of the patient number, so it never changes when images come or go.

Memory holds names and offsets, no row of a table and no image: measured for all 112,120 images, 24 MB, and 43 MB
while the folder is opened. Training adds a key of 65 bytes an image: a process that has 112,120 of them open stayed
at 94 MB while it prepared and read 12,000.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from unetx_opt.errors import DataError, ImageError
from unetx_opt.training.chexmask import ORGANS, CheXmaskRow, CheXmaskTable
from unetx_opt.training.datasets import SPLITS, FolderDataset
from unetx_opt.training.labelled import file_sha256
from unetx_opt.training.nih_folder import assign_splits, entry_table, find_images, find_table
from unetx_opt.training.run_lengths import parse_landmarks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LABEL_SETS", "NihDataset", "NihOptions", "open_dataset"]

#: Name -> names of the labels 0, 1, ... "lungs" joins both; "organs" keeps the three masks apart, and a pixel that
#: a lung and the heart share is the heart's, which lies in front in the published contours.
LABEL_SETS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "lungs": ("background", "lungs"),
        "organs": ("background", "left lung", "right lung", "heart"),
    }
)

# How far, in pixels, a mask may reach from its own landmarks before their grids must differ.
_LANDMARK_SLACK_PX: Final = 16


@dataclass(frozen=True, slots=True)
class NihOptions:
    """How the published files are read.

    Attributes
    ----------
    labels : str
        A key of `LABEL_SETS`.
    minimum_dice : float
        Images whose masks are estimated worse ("Dice RCA (Mean)") take no part. The authors of CheXmask advise 0.7.
        A table without that column, such as a physician's, is not filtered.
    partial : bool
        Images without a file or without masks take no part, instead of being an error.
    masks : pathlib.Path or None
        The CheXmask table, where the folder holds none or several.
    """

    labels: str = "organs"
    minimum_dice: float = 0.7
    partial: bool = False
    masks: Path | None = None

    def __post_init__(self) -> None:
        if self.labels not in LABEL_SETS:
            raise DataError(f"unknown labels {self.labels!r}, expected one of {', '.join(LABEL_SETS)}")
        if not 0.0 <= self.minimum_dice <= 1.0:
            raise DataError(f"minimum_dice is {self.minimum_dice}, expected 0 to 1")


@dataclass(frozen=True, slots=True)
class NihDataset:
    """The images of one split of ChestX-ray14 with their masks; used as a `FolderDataset` is.

    Attributes
    ----------
    root : pathlib.Path
        The data folder.
    split : str or None
        A key of `SPLITS`, or None for every image that takes part.
    names : tuple of str
        File names in code-point order.
    label_names : tuple of str
        Names of the values of `mask`.
    """

    root: Path
    split: str | None
    names: tuple[str, ...]
    label_names: tuple[str, ...]
    _folders: Mapping[str, Path]
    _table: CheXmaskTable

    @classmethod
    def open(cls, root: Path, split: str | None = None, options: NihOptions | None = None) -> NihDataset:
        """List the images of a split; no image and no mask is decoded.

        Parameters
        ----------
        root : pathlib.Path
            The data folder.
        split : str or None
            A key of `SPLITS`, or None for all images.
        options : NihOptions, optional
            Labels, filter, and what to do about missing files.

        Raises
        ------
        DataError
            A table, a column, an image or a mask is missing, a row is malformed, a patient is in both lists, the
            split is unknown, or it is empty.
        """
        chosen = options or NihOptions()
        if split is not None and split not in SPLITS:
            raise DataError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
        assigned = assign_splits(root)
        table = CheXmaskTable(chosen.masks or find_table(root))
        folders = find_images(root)
        members = sorted(name for name, part in assigned.items() if split in (None, part))
        unmasked = [name for name in members if name not in table.names]
        kept = [name for name in members if name in table.names and _is_good(table, name, chosen.minimum_dice)]
        absent = [name for name in kept if name not in folders]
        if not chosen.partial:
            _refuse_missing(unmasked, f"have no row in {table.path}")
            _refuse_missing(absent, f"have no file in {root}/images or {root}/images_*/images")
        names = tuple(name for name in kept if name in folders)
        if not names:
            raise DataError(
                f"{root} has no usable image in split {split!r}: of {len(members)} images {len(unmasked)} have no "
                f"mask, {len(members) - len(unmasked) - len(kept)} are below Dice {chosen.minimum_dice} and "
                f"{len(absent)} have no file"
            )
        return cls(root, split, names, LABEL_SETS[chosen.labels], {name: folders[name] for name in names}, table)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Read one image, (H, W), grey values as stored.

        Raises
        ------
        DataError
            The file is no PNG, or is in colour.
        """
        from unetx_opt.imaging.files import read_image

        try:
            pixels: NDArray[np.uint8] | NDArray[np.uint16] = read_image(self._path(index)).pixels
        except ImageError as error:
            raise DataError(str(error)) from error
        return pixels

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Read one mask, uint8 (H, W) on the grid of the image; the values are indices into `label_names`.

        Where the table's masks have another size than the image, each pixel takes the mask's pixel under its centre
        (nearest neighbour).

        Raises
        ------
        DataError
            The runs are malformed, or the table gives no size and that of the image does not fit the landmarks.
        """
        row = self._table.row(self.names[index])
        shape = self._image_shape(index)
        left, right, heart = (row.mask(organ, shape) for organ in ORGANS)
        if row.shape is None:
            _check_grid(row, left | right | heart)
        labels = _combine(left, right, heart, len(self.label_names))
        return _resize_nearest(labels, shape)

    def fingerprint(self, index: int) -> str:
        """Return a line: an image's name, the SHA-256 of its file, and that of its masks and their size."""
        row = self._table.row(self.names[index])
        masks = hashlib.sha256("|".join((str(row.shape), *(row.runs[organ] for organ in ORGANS))).encode())
        return f"{self.names[index]} {file_sha256(self._path(index))} {masks.hexdigest()}\n"

    def digest(self, fingerprints: Iterable[str] | None = None) -> str:
        """SHA-256 (hex) over names, labels, and the bytes of every image and mask: the identity of this split.

        Parameters
        ----------
        fingerprints : iterable of str, optional
            Of every image in order, where the caller needs them too; otherwise they are computed.
        """
        digest = hashlib.sha256("|".join(self.label_names).encode())
        computed = (self.fingerprint(index) for index in range(len(self)))
        for line in computed if fingerprints is None else fingerprints:
            digest.update(line.encode())
        return digest.hexdigest()

    def _path(self, index: int) -> Path:
        name = self.names[index]
        return self._folders[name] / name

    def _image_shape(self, index: int) -> tuple[int, int]:
        from PIL import Image

        path = self._path(index)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                return image.height, image.width
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is no readable PNG: {error}") from error


def open_dataset(
    root: Path, split: str | None = None, options: NihOptions | None = None
) -> FolderDataset | NihDataset:
    """Open a data folder of either kind: ChestX-ray14 where it has a ``Data_Entry`` table, else images and masks.

    Raises
    ------
    DataError
        As `FolderDataset.open` or `NihDataset.open`.
    """
    if entry_table(root) is not None:
        return NihDataset.open(root, split, options)
    return FolderDataset.open(root, split)


def _is_good(table: CheXmaskTable, name: str, minimum_dice: float) -> bool:
    quality = table.quality(name)
    return quality is None or quality >= minimum_dice


def _refuse_missing(names: list[str], what: str) -> None:
    if names:
        raise DataError(
            f"{len(names)} images {what}, beginning with {names[0]}: add them, or leave such images out (--partial)"
        )


def _check_grid(row: CheXmaskRow, mask: NDArray[np.bool_]) -> None:
    """Compare a mask of guessed size with its landmarks: runs of another width decode into skewed stripes."""
    if not row.landmarks or not mask.any():
        return
    import numpy as np

    landmarks = parse_landmarks(row.landmarks)
    points = np.concatenate([landmarks.right_lung, landmarks.left_lung, landmarks.heart])
    found = [axis for flat in (mask.any(axis=0), mask.any(axis=1)) for axis in np.flatnonzero(flat)[[0, -1]]]
    expected = [int(bound) for axis in (0, 1) for bound in (points[:, axis].min(), points[:, axis].max())]
    if any(abs(int(a) - b) > _LANDMARK_SLACK_PX for a, b in zip(found, expected, strict=True)):
        raise DataError(
            f"{row.where}: Height and Width are empty, and the image's {mask.shape[0]} x {mask.shape[1]} does not "
            "fit the landmarks: fill them in"
        )


def _combine(
    left: NDArray[np.bool_], right: NDArray[np.bool_], heart: NDArray[np.bool_], count: int
) -> NDArray[np.uint8]:
    import numpy as np

    if count == 2:
        return (left | right).astype(np.uint8)
    labels = left.astype(np.uint8)
    labels[right] = 2
    labels[heart] = 3
    return labels


def _resize_nearest(labels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    import numpy as np

    if labels.shape == shape:
        return labels
    rows, columns = (
        ((np.arange(count) + 0.5) * source / count).astype(np.intp)
        for count, source in zip(shape, labels.shape, strict=True)
    )
    return np.ascontiguousarray(labels[np.ix_(rows, columns)])
