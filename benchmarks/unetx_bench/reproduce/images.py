"""The images behind the accuracy columns: the test split of a data set, or phantoms that are called so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from unetx_bench.reproduce.record import DataRecord
from unetx_exporters.gate_images import image_sha256, phantom_gate_images
from unetx_opt.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TEST_SPLIT", "ImageChoice", "TestImages", "open_images"]

TEST_SPLIT: Final = "test"
# The sets of other seeds, which gates and builds take, share no phantom with this one.
_PHANTOM_SEED: Final = 2017


@dataclass(frozen=True, slots=True)
class TestImages:
    """Images with true masks, read one at a time.

    Attributes
    ----------
    record : DataRecord
        What they are.
    names : tuple of str
        File names.
    label_count : int
        Labels of the masks, the background included.
    read : callable
        Takes an index; gives the grey values (H, W) and the labels uint8 (H, W).
    """

    record: DataRecord
    names: tuple[str, ...]
    label_count: int
    read: Callable[[int], tuple[NDArray[Any], NDArray[np.uint8]]]


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """Which images are opened.

    Attributes
    ----------
    root : pathlib.Path or None
        Data folder; None makes phantoms.
    limit : int or None
        At most so many, chosen by the SHA-256 of their names: neither by what is in them nor by their order.
    phantoms, size_px : int
        Number and side of the phantoms.
    partial : bool
        ChestX-ray14: leave out images without a file or a mask, in place of an error.
    """

    root: Path | None
    limit: int | None
    phantoms: int
    size_px: int
    partial: bool = False


def open_images(choice: ImageChoice, label_count: int) -> TestImages:
    """Open the test images.

    Parameters
    ----------
    choice : ImageChoice
        Which ones.
    label_count : int
        Labels of the networks, the background included.

    Raises
    ------
    DataError
        There is no test split, or its masks have other labels than the networks.
    """
    root = choice.root
    if root is None:
        return _phantoms(label_count, choice.phantoms, choice.size_px)
    from unetx_opt.training.nih import LABEL_SETS, NihDataset, NihOptions, open_dataset

    labels = next((name for name, names in LABEL_SETS.items() if len(names) == label_count), "lungs")
    dataset = open_dataset(root, TEST_SPLIT, NihOptions(labels, partial=choice.partial))
    is_nih = isinstance(dataset, NihDataset)
    offered = len(dataset.label_names) if isinstance(dataset, NihDataset) else 2
    if offered != label_count:
        raise DataError(f"the masks of {root} have {offered} labels and those of the networks {label_count}")
    chosen = sorted(range(len(dataset)), key=lambda index: hashlib.sha256(dataset.names[index].encode()).digest())
    kept = sorted(chosen[: choice.limit])
    names = tuple(dataset.names[index] for index in kept)

    def read(index: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        return dataset.image(kept[index]), dataset.mask(kept[index])

    name = root.resolve().name
    note = (
        f"NIH ChestX-ray14 with masks of CheXmask, folder {name}: masks made by a program, not by readers."
        if is_nih
        else f"Data folder {name}, which is not NIH ChestX-ray14: no accuracy here is an NIH result."
    )
    record = _record(name, "nih" if is_nih else "folder", len(names), len(dataset), note)
    return TestImages(_hashed(record, names, read), names, label_count, read)


def _phantoms(label_count: int, count: int, size_px: int) -> TestImages:
    if label_count != 2:
        raise DataError(f"the networks have {label_count} labels, phantoms have 2: pass --data")
    images = phantom_gate_images(count, size_px, _PHANTOM_SEED)
    names = tuple(f"phantom-{index:04d}" for index in range(count))

    def read(index: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        image = images.read(index)
        assert image.truth is not None  # noqa: S101  (phantoms are drawn with their masks)
        return image.pixels, image.truth.astype("uint8")

    note = "Procedural phantoms, not patients: their accuracy columns say nothing about people or about NIH data."
    record = _record("phantoms", "phantom", count, count, note)
    return TestImages(_hashed(record, names, read), names, label_count, read)


def _record(
    name: str, kind: Literal["folder", "nih", "phantom"], images: int, available: int, note: str
) -> DataRecord:
    split = None if kind == "phantom" else TEST_SPLIT
    return DataRecord(
        name=name,
        kind=kind,
        split=split,
        images=images,
        available=available,
        images_sha256=hashlib.sha256().hexdigest(),
        note=note,
    )


def _hashed(
    record: DataRecord, names: tuple[str, ...], read: Callable[[int], tuple[NDArray[Any], NDArray[np.uint8]]]
) -> DataRecord:
    """Fill in the hash of all names, pixels and masks, in their order."""
    digest = hashlib.sha256()
    for index, name in enumerate(names):
        pixels, truth = read(index)
        digest.update(f"{name} {image_sha256(pixels)} {image_sha256(truth)}\n".encode())
    return record.model_copy(update={"images_sha256": digest.hexdigest()})
