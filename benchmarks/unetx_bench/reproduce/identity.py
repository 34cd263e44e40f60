"""What data is: its content, as two folders of one name may hold different images, or split them differently."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

__all__ = ["TRAINING_SPLITS", "identify_folder", "identify_training"]

#: What `train` reads.
TRAINING_SPLITS: Final = ("train", "validation")
_DIGITS: Final = 16


def identify_training(root: Path, *, partial: bool) -> str:
    """Identify the images and masks that a training on a data folder reads, each in its split.

    Parameters
    ----------
    root : pathlib.Path
        Data folder of either kind.
    partial : bool
        ChestX-ray14: leave out images without a file or a mask.

    Returns
    -------
    str
        16 hexadecimal digits of a SHA-256. Every byte of these images is read for it.

    Raises
    ------
    DataError
        The folder cannot be read, or has no such split.
    """
    from unetx_opt.training.nih import NihOptions, open_dataset

    options = NihOptions(partial=partial)
    return _join({split: open_dataset(root, split, options).digest() for split in TRAINING_SPLITS})


def identify_folder(root: Path) -> str:
    """Identify all images and masks of a data folder, each in its split, as `identify_training` does its two.

    Parameters
    ----------
    root : pathlib.Path
        Folder with ``images/`` and ``masks/``.

    Raises
    ------
    DataError
        The folder cannot be read.
    """
    from unetx_opt.training.datasets import FolderDataset, split_counts

    splits = [split for split, count in split_counts(root).items() if count]
    return _join({split: FolderDataset.open(root, split).digest() for split in splits})


def _join(digests: dict[str, str]) -> str:
    text = "".join(f"{split} {digest}\n" for split, digest in digests.items())
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
