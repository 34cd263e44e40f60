"""The images that a gate is decided on: procedural phantoms, or a split of a data folder, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import DataError

__all__ = [
    "GateImage",
    "GateImages",
    "folder_gate_images",
    "image_sha256",
    "phantom_gate_images",
]

#: Each build seed owns this many phantoms, and they lie above every seed that training or calibration uses.
_PHANTOMS_PER_SEED: Final = 1 << 16
_FIRST_PHANTOM: Final = 1 << 32
#: Sides that `unetx_opt.imaging.phantom.chest_phantom` can draw.
_PHANTOM_SIDES_PX: Final = (64, 4096)


@dataclass(frozen=True, slots=True)
class GateImage:
    """One image.

    Attributes
    ----------
    name : str
        Unique within its set.
    sha256 : str
        Identity of the pixels, see `image_sha256`.
    pixels : numpy.ndarray
        (H, W) grey values, larger is brighter.
    truth : numpy.ndarray or None
        (H, W) integer labels of the ground truth, None where it is not known.
    spacing_mm : tuple of float or None
        Distance between rows and between columns, None where it is not known.
    """

    name: str
    sha256: str
    pixels: NDArray[Any]
    truth: NDArray[Any] | None = None
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class GateImages:
    """A set of images that can be gone through more than once and holds one image at a time.

    Attributes
    ----------
    data : str
        "phantom", or the name of the data folder.
    split : str or None
        Split of the data folder.
    note : str
        What a reader of the evidence must know about these images, as a sentence.
    count : int
        Number of images.
    read : callable
        Takes an index from 0 to ``count - 1``; gives that image.
    """

    data: str
    split: str | None
    note: str
    count: int
    read: Callable[[int], GateImage]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[GateImage]:
        return map(self.read, range(self.count))


def phantom_gate_images(n: int = 24, size_px: int = 512, seed: int = 0) -> GateImages:
    """Take procedural chest phantoms, which every machine can make.

    Parameters
    ----------
    n : int
        Number of phantoms, 1 to 65536.
    size_px : int
        Height and width, usually those of the engine's input; beyond 64 to 4096 the nearest of the two.
    seed : int
        0 or more; sets of different seeds share no phantom.

    Raises
    ------
    DataError
        `n` or `seed` is out of range.
    """
    if not 1 <= n <= _PHANTOMS_PER_SEED or seed < 0:
        raise DataError(
            f"{n} phantoms of seed {seed} were asked for, expected 1 to {_PHANTOMS_PER_SEED} and a seed >= 0"
        )
    first = _FIRST_PHANTOM + seed * _PHANTOMS_PER_SEED
    side_px = min(max(size_px, _PHANTOM_SIDES_PX[0]), _PHANTOM_SIDES_PX[1])

    def read(index: int) -> GateImage:
        from unetx_opt.imaging.phantom import chest_phantom

        pixels, truth = chest_phantom(first + index, size_px=side_px)
        return GateImage(f"phantom-{seed}-{index:04d}", image_sha256(pixels), pixels, truth)

    return GateImages(
        data="phantom",
        split=None,
        note="Procedural phantoms, not patients: they show that an engine computes what its reference computes, "
        "and nothing about accuracy on people.",
        count=n,
        read=read,
    )


def folder_gate_images(root: Path, split: str = "validation") -> GateImages:
    """Take one split of a data folder.

    Parameters
    ----------
    root : pathlib.Path
        Data folder, as `unetx_opt.training.datasets` reads it.
    split : str
        One of its splits; ``calibration`` belongs to INT8 ranges and ``test`` to what a report prints.

    Raises
    ------
    DataError
        The folder or the split is missing or malformed; single images are read when it is gone through.
    """
    from unetx_opt.training.datasets import FolderDataset

    dataset = FolderDataset.open(root, split)

    def read(index: int) -> GateImage:
        pixels = dataset.image(index)
        return GateImage(dataset.names[index], image_sha256(pixels), pixels, dataset.mask(index))

    name = root.resolve().name
    return GateImages(
        data=name,
        split=split,
        note=f"Data folder {name}, split {split}: figures hold for such images, and are no clinical evaluation.",
        count=len(dataset.names),
        read=read,
    )


def image_sha256(pixels: NDArray[Any]) -> str:
    """Hash an image's type, shape and grey values, not the file that it came from.

    Parameters
    ----------
    pixels : numpy.ndarray
        (H, W) of any real type.

    Returns
    -------
    str
        SHA-256 in hexadecimal digits of ``"<dtype> <H>x<W>\\n"`` followed by the values, row by row, little-endian.
    """
    values = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    shape = "x".join(map(str, pixels.shape))
    digest = hashlib.sha256(f"{pixels.dtype.name} {shape}\n".encode())
    digest.update(values.tobytes())
    return digest.hexdigest()
