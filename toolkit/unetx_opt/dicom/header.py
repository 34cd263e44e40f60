"""What a radiograph's header may say: checked before any pixel is decoded."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from unetx_opt.dicom.decode import PixelLayout
from unetx_opt.dicom.suitability import SOP_CLASSES, read_code, unsuitable
from unetx_opt.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["SOP_CLASSES", "check_header", "read_aspect", "read_code", "read_spacing", "read_uid"]

_MIN_SIDE_PX, _MAX_SIDE_PX = 16, 16384
_MAX_PX: Final = 1 << 26
_MAX_FRAMES: Final = 1 << 16
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_MAX_PIXEL_ASPECT: Final = 16.0
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_SPACINGS: Final = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def check_header(dataset: Dataset, *, force: bool = False) -> PixelLayout:
    """Decide from the header alone whether this is a chest radiograph that can be read.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        The whole header.
    force : bool
        Take what `unsuitable` finds; sizes and layouts that cannot be decoded are refused all the same.

    Returns
    -------
    PixelLayout
        What the decoder may rely on.

    Raises
    ------
    ImageError
        It is not; the message says why.
    """
    if not force:
        for reason in unsuitable(dataset):
            raise ImageError(reason)
    read_uid(dataset, "SOPClassUID")
    if "PixelData" not in dataset:
        raise ImageError("it has no Pixel Data")
    return _read_layout(dataset)


def _read_layout(dataset: Dataset) -> PixelLayout:
    rows, columns = _read_integer(dataset, "Rows"), _read_integer(dataset, "Columns")
    if min(rows, columns) < _MIN_SIDE_PX or max(rows, columns) > _MAX_SIDE_PX or rows * columns > _MAX_PX:
        raise ImageError(
            f"it is {rows} x {columns} pixels (height x width), expected sides of {_MIN_SIDE_PX} to "
            f"{_MAX_SIDE_PX} and at most {_MAX_PX} pixels"
        )
    allocated, stored = _read_integer(dataset, "BitsAllocated"), _read_integer(dataset, "BitsStored")
    if allocated not in (8, 16) or not 2 <= stored <= allocated:
        raise ImageError(f"it has {stored} of {allocated} bits per pixel, expected 2 to 16 of 8 or 16")
    high_bit = _read_integer(dataset, "HighBit", default=stored - 1)
    if high_bit != stored - 1:
        raise ImageError(f"its High Bit is {high_bit}, expected {stored - 1} with {stored} bits stored")
    layout = PixelLayout(
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=_read_integer(dataset, "PixelRepresentation", default=0) == 1,
        samples=_read_integer(dataset, "SamplesPerPixel", default=1),
        frames=_read_integer(dataset, "NumberOfFrames", default=1),
    )
    _check_forced(layout, str(dataset.get("PhotometricInterpretation")))
    return layout


def _check_forced(layout: PixelLayout, photometric: str) -> None:
    """Refuse what not even force can take: only images that `unsuitable` names get here with anything else."""
    if layout.samples == 1:
        if photometric not in _GREY:
            raise ImageError("its Photometric Interpretation is no grey one that is read: convert it to MONOCHROME2")
    elif layout.samples != 3 or photometric not in _COLOUR or layout.bits_stored != 8 or layout.signed:
        raise ImageError("its colour pixels are of no kind that is read (8-bit RGB or YBR): convert it to grey")
    if not 1 <= layout.frames <= _MAX_FRAMES:
        raise ImageError(f"it has {layout.frames} frames, expected 1 to {_MAX_FRAMES}")


def _read_integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None and default is not None:
        return default
    if not isinstance(value, int):
        raise ImageError(f"its {keyword} is absent or malformed, expected one integer")
    return int(value)


def read_uid(dataset: Dataset, keyword: str) -> str:
    """Read an element that must be a UID: it ends up in file names and in references."""
    value = str(dataset.get(keyword, ""))
    if len(value) > 64 or not _UID.fullmatch(value):
        raise ImageError(f"its {keyword} is absent or malformed, expected a UID")
    return value


def read_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Read row and column spacing in mm from the first element that holds a valid one."""
    pairs = (_read_pair(dataset, keyword) for keyword in _SPACINGS)
    return next((pair for pair in pairs if pair is not None), None)


def read_aspect(dataset: Dataset) -> float | None:
    """Read height over width of a pixel from Pixel Aspect Ratio, which stands in for an unknown spacing."""
    pair = _read_pair(dataset, "PixelAspectRatio")
    return None if pair is None else pair[0] / pair[1]


def _read_pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """Two positive numbers of a believable ratio, vertical first; None otherwise."""
    try:
        vertical, horizontal = (float(value) for value in dataset.get(keyword) or ())
    except (TypeError, ValueError):
        return None
    if not (0.0 < vertical < math.inf and 0.0 < horizontal < math.inf):
        return None
    believable = 1.0 / _MAX_PIXEL_ASPECT <= vertical / horizontal <= _MAX_PIXEL_ASPECT
    return (vertical, horizontal) if believable else None
