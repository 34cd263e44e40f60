"""The images that 8-bit ranges come from: like those of the gate, none of them among those, and no noise."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_exporters.gate_images import GateImages, folder_gate_images, phantom_gate_images
from unetx_opt.errors import DataError
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.specs import InputContract

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CalibrationSet", "calibration_set", "neighbour_correlation", "refuse_shared_images"]

#: Phantoms for the ranges where there is no data folder.
_PHANTOM_COUNT: Final = 32
#: Build seeds are below 2**32: the sets of these seeds share no phantom with those of any gate.
_SEED_OFFSET: Final = 2**33
#: Ranges settle long before this many images; more are sampled, so that a build's duration has a bound.
_MOST_IMAGES: Final = 256
#: Fewer images than this are used, and the evidence says so.
_FEW_IMAGES: Final = 16
#: Least correlation of pixels that lie beside one another. Radiographs have 0.95 and more, noise has none.
_LEAST_CORRELATION: Final = 0.5
_CALIBRATION: Final = "calibration"
_REPORT_SPLIT: Final = "test"


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Images for ranges.

    Attributes
    ----------
    images : GateImages
        Read one at a time.
    indices : tuple of int
        Those that are used.
    sha256 : tuple of str
        Identity of the pixels of each image that is used, as `image_sha256`.
    notes : tuple of str
        What a reader of the evidence must know, as sentences.
    """

    images: GateImages
    indices: tuple[int, ...]
    sha256: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def prepared(self, contract: InputContract) -> Iterator[NDArray[np.float32]]:
        """Go through the images as the network reads them, (1, C, H, W) float32, one at a time."""
        for index in self.indices:
            image = self.images.read(index)
            yield prepare_image(image.pixels, contract, image.spacing_mm)[0][np.newaxis]


def calibration_set(data: Path | None, size_px: int, seed: int) -> CalibrationSet:
    """Choose the images for 8-bit ranges.

    Parameters
    ----------
    data : pathlib.Path or None
        Data folder, of which the split ``calibration`` is taken; None takes phantoms.
    size_px : int
        Height and width of phantoms.
    seed : int
        Of the phantoms, and of the sample where there are more images than ranges need.

    Raises
    ------
    DataError
        The folder has no such split, an image is there twice, or one is no radiograph but noise or of one grey.
    """
    notes: tuple[str, ...] = ()
    if data is None:
        images = phantom_gate_images(_PHANTOM_COUNT, size_px, _SEED_OFFSET + seed)
        notes = ("The 8-bit ranges come from procedural phantoms: calibrate on images of patients before use.",)
    else:
        images = folder_gate_images(data, _CALIBRATION)
    indices: Sequence[int] = range(len(images))
    if len(images) > _MOST_IMAGES:
        indices = sorted(random.Random(seed).sample(indices, _MOST_IMAGES))  # noqa: S311 - a sample, no secret
        notes += (f"The 8-bit ranges come from {_MOST_IMAGES} of {len(images)} images, sampled with seed {seed}.",)
    if len(indices) < _FEW_IMAGES:
        notes += (
            f"The 8-bit ranges come from {len(indices)} images only: give at least {_FEW_IMAGES} that are like those "
            "of the clinic.",
        )
    return CalibrationSet(images, tuple(indices), _hash_images(images, indices), notes)


def refuse_shared_images(calibration: CalibrationSet, gate: GateImages, data: Path | None) -> None:
    """Refuse images that serve two purposes: ranges, the gate, or the report.

    Parameters
    ----------
    calibration : CalibrationSet
        For the ranges.
    gate : GateImages
        For the gate.
    data : pathlib.Path or None
        Data folder; its split ``test`` is for reports, where it has one.

    Raises
    ------
    DataError
        Two images of different purposes have the same pixels, whatever their names.
    """
    purposes: dict[str, Mapping[str, str]] = {
        _CALIBRATION: dict(zip(calibration.sha256, calibration.sha256, strict=True)),
        "gate": {image.sha256: image.name for image in gate},
    }
    if data is not None and gate.split != _REPORT_SPLIT:
        purposes["report"] = _report_hashes(data)
    seen: dict[str, str] = {}
    for purpose, hashes in purposes.items():
        for sha256, name in hashes.items():
            if sha256 in seen:
                raise DataError(
                    f"image {name} of the {purpose} images is among the {seen[sha256]} images too (pixels "
                    f"{sha256[:12]}): move one of the two to another split"
                )
        seen |= dict.fromkeys(hashes, purpose)


def neighbour_correlation(pixels: NDArray[Any]) -> float:
    """Correlation of horizontally adjacent pixels: near 1 for a radiograph, near 0 for noise and for one grey.

    Parameters
    ----------
    pixels : numpy.ndarray
        (H, W) grey values.
    """
    values = pixels.astype(np.float64)
    left, right = values[:, :-1] - values[:, :-1].mean(), values[:, 1:] - values[:, 1:].mean()
    spread = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / spread if spread > 0.0 else 0.0


def _hash_images(images: GateImages, indices: Sequence[int]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for index in indices:
        image = images.read(index)
        if image.sha256 in found:
            raise DataError(
                f"calibration images {found[image.sha256]} and {image.name} are the same, expected each once: "
                "remove one from the split"
            )
        found[image.sha256] = image.name
        correlation = neighbour_correlation(image.pixels)
        if correlation < _LEAST_CORRELATION:
            raise DataError(
                f"calibration image {image.name} looks like noise or an empty image (neighbouring pixels correlate "
                f"by {correlation:.2f}, radiographs by 0.9 and more): ranges of random data fit no patient, remove it"
            )
    return tuple(found)


def _report_hashes(data: Path) -> dict[str, str]:
    try:
        images = folder_gate_images(data, _REPORT_SPLIT)
    except DataError:
        return {}  # a folder need not have a split for reports
    return {image.sha256: image.name for image in images}
