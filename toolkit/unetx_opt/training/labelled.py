"""What training asks of a data set, whatever its files are, and how its identity is computed in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from unetx_opt.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Identity", "LabelledImages", "class_count", "file_sha256", "identify", "mirrored_labels"]

_SIDES = ("left ", "right ")


class LabelledImages(Protocol):
    """Images with a label per pixel; `FolderDataset` and `NihDataset` are such.

    An object of it is sent to worker processes, so it must be picklable; it holds names and no pixel.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """File names, in a fixed order."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, ...; the background first."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Read one image, (H, W) grey values as stored."""
        ...

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Read one mask, (H, W), indices into `label_names`."""
        ...

    def fingerprint(self, index: int) -> str:
        """Name one image and the SHA-256 of all bytes that decide its pixels and labels; lines that end in \\n."""
        ...

    def digest(self, fingerprints: Iterable[str] | None = None) -> str:
        """SHA-256 (hex) of the whole set, from the fingerprints of all images in order; None computes them."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What a data set held when it was looked through.

    Attributes
    ----------
    digest : str
        Of the whole set.
    keys : tuple of bytes
        SHA-256 of every image's fingerprint: 65 bytes of memory an image, whatever its size.
    """

    digest: str
    keys: tuple[bytes, ...]


def identify(images: LabelledImages) -> Identity:
    """Read every byte of a data set once; memory holds one file's chunk and the keys."""
    keys: list[bytes] = []

    def lines() -> Iterator[str]:
        for index in range(len(images)):
            line = images.fingerprint(index)
            keys.append(hashlib.sha256(line.encode()).digest())
            yield line

    digest = images.digest(lines())
    return Identity(digest, tuple(keys))


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in chunks.

    Raises
    ------
    DataError
        The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def class_count(label_names: tuple[str, ...]) -> int:
    """Logits of a network for these labels: one for a single class, else one per label with the background.

    Raises
    ------
    DataError
        There is no label but the background.
    """
    if len(label_names) < 2:
        raise DataError(f"the data set has the labels {label_names}, expected the background and at least one class")
    return 1 if len(label_names) == 2 else len(label_names)


def mirrored_labels(label_names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Labels of a mirrored image: in it the patient's left lung lies where the right one is expected.

    Parameters
    ----------
    label_names : tuple of str
        Names; "left X" and "right X" are the two sides of one organ.

    Returns
    -------
    tuple of int or None
        Label -> label after left and right were swapped in the pixels. None where a sided label has no partner,
        so that a mirrored image cannot be labelled and must not be shown.
    """
    places = {name: index for index, name in enumerate(label_names)}
    mirrored = []
    for name in label_names:
        partner = name
        for side, other in (_SIDES, _SIDES[::-1]):
            if name.startswith(side):
                partner = other + name.removeprefix(side)
        if partner not in places:
            return None
        mirrored.append(places[partner])
    return tuple(mirrored)
