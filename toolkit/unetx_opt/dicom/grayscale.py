"""Stored values to a picture: Modality LUT, then VOI LUT, then the photometric sense.

The order is the greyscale transformation of DICOM PS3.4 N.2. Where a step offers alternatives:

1. Modality (PS3.3 C.11.1): the Modality LUT Sequence, otherwise Rescale Slope and Intercept.
2. VOI (PS3.3 C.11.2): the first item of the VOI LUT Sequence, otherwise the first Window Center and Width by their
   VOI LUT Function. A window without a positive width is left out, and so is a VOI under which all pixels of an
   image look the same: the normalisation in front of the network sets the contrast anyway.
3. Presentation LUT Shape (PS3.3 C.11.6): INVERSE is inverted and IDENTITY is not; without one of them, MONOCHROME1
   is inverted. Then a larger value is always brighter. An image has one inversion, however often it is announced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["VOI_FUNCTIONS", "LookupTable", "is_inverted", "luminance", "read_table", "render_grayscale"]

_Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Grey values of every possible stored value, in ascending order of the latter, and what they can reach."""

    values: _Values
    lowest: float
    highest: float


def render_grayscale(
    stored: NDArray[Any], stored_range: tuple[int, int], dataset: Dataset, *, little_endian: bool = True
) -> NDArray[np.float32]:
    """Apply what the header says about grey values.

    Parameters
    ----------
    stored : numpy.ndarray
        (H, W) integers.
    stored_range : tuple of int
        Smallest and largest value that the stored bits can hold, at most 65536 apart.
    dataset : pydicom.dataset.Dataset
        The header.
    little_endian : bool
        Byte order of tables that the header holds as bytes.

    Returns
    -------
    numpy.ndarray
        (H, W) float32, larger is brighter: in units of the Modality LUT where there is no VOI, from 0 to the largest
        unsigned stored value under a window, in the table's units under a VOI LUT.

    Raises
    ------
    ImageError
        A table or the rescaling is malformed, or the VOI LUT Function is unknown.
    """
    low, high = stored_range
    # Each step depends on the stored value alone, so it is computed once per possible value, in double precision.
    inputs = _Scale(np.arange(low, high + 1, dtype=np.float64), float(low), float(high))
    rescaled = _apply_modality(inputs, dataset, little_endian)
    shown = _apply_voi(rescaled, float(high - low), dataset, little_endian)
    picture = _map_stored(stored, low, _photometric_table(shown, dataset))
    if shown is not rescaled and picture.min() == picture.max():
        return _map_stored(stored, low, _photometric_table(rescaled, dataset))
    return picture


def is_inverted(dataset: Dataset) -> bool:
    """Whether small values are bright: Presentation LUT Shape where it is valid, otherwise the photometric sense."""
    shape = str(dataset.get("PresentationLUTShape") or "")
    if shape in ("IDENTITY", "INVERSE"):
        return shape == "INVERSE"
    return str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1"


def luminance(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """Grey of a colour image: Y of YBR_FULL (PS3.3 C.7.6.3.1.2), with (H, W, 3) RGB in and (H, W) float32 out."""
    return np.asarray(rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def _map_stored(stored: NDArray[Any], low: int, table: NDArray[np.float32]) -> NDArray[np.float32]:
    indices = stored.astype(np.intp)
    if low:
        indices -= low
    # Lossy codecs may overshoot what the stored bits can hold.
    return np.asarray(np.take(table, indices, mode="clip"))


def _photometric_table(scale: _Scale, dataset: Dataset) -> NDArray[np.float32]:
    if is_inverted(dataset):
        # Mirrored within what the values can reach, not within what one image has.
        return (scale.lowest + scale.highest - scale.values).astype(np.float32)
    return scale.values.astype(np.float32)


def _apply_modality(scale: _Scale, dataset: Dataset, little_endian: bool) -> _Scale:
    table = read_table(dataset, "ModalityLUTSequence", little_endian)
    if table is not None:
        return _look_up(scale.values, table)
    slope = _read_numbers(dataset, "RescaleSlope") or [1.0]
    intercept = _read_numbers(dataset, "RescaleIntercept") or [0.0]
    if slope[0] == 0 or max(abs(slope[0]), abs(intercept[0])) > 1e9:
        raise ImageError(f"its Rescale Slope and Intercept are {slope[0]:g} and {intercept[0]:g}")
    ends = sorted(slope[0] * end + intercept[0] for end in (scale.lowest, scale.highest))
    return _Scale(slope[0] * scale.values + intercept[0], ends[0], ends[1])


def _apply_voi(scale: _Scale, top: float, dataset: Dataset, little_endian: bool) -> _Scale:
    table = read_table(dataset, "VOILUTSequence", little_endian)
    if table is not None:
        return _look_up(scale.values, table)
    center = _read_numbers(dataset, "WindowCenter")
    width = _read_numbers(dataset, "WindowWidth")
    if not center or not width or width[0] <= 0:
        return scale
    name = str(dataset.get("VOILUTFunction") or "LINEAR")
    if name not in VOI_FUNCTIONS:
        raise ImageError(f"its VOI LUT Function is unknown, expected one of {', '.join(VOI_FUNCTIONS)}")
    return _Scale(VOI_FUNCTIONS[name](scale.values, center[0], width[0]) * top, 0.0, top)


def _linear(values: _Values, center: float, width: float) -> _Values:
    if width <= 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _linear_exact(values: _Values, center: float, width: float) -> _Values:
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def _sigmoid(values: _Values, center: float, width: float) -> _Values:
    # The hyperbolic tangent does not overflow: 1 / (1 + exp(-4 t)) = (1 + tanh(2 t)) / 2.
    return np.asarray(0.5 + 0.5 * np.tanh(2.0 * (values - center) / width))


#: VOI LUT Function to f(values, center, width) in [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).
VOI_FUNCTIONS: Final[Mapping[str, Callable[[_Values, float, float], _Values]]] = MappingProxyType(
    {"LINEAR": _linear, "LINEAR_EXACT": _linear_exact, "SIGMOID": _sigmoid}
)


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A Modality or VOI LUT.

    Attributes
    ----------
    first : int
        Value that the first entry is for.
    bits : int
        Of an entry.
    entries : numpy.ndarray
        (N,) float64, whole numbers from 0 to 65535.
    """

    first: int
    bits: int
    entries: NDArray[np.float64]


def read_table(dataset: Dataset, keyword: str, little_endian: bool) -> LookupTable | None:
    """Read the first item of a LUT sequence; None where there is none.

    Raises
    ------
    ImageError
        It is malformed.
    """
    item = _first_item(dataset, keyword)
    if item is None:
        return None
    name = keyword.removesuffix("LUTSequence") + " LUT"
    descriptor = _read_numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        raise ImageError(f"its {name} has a malformed LUT Descriptor")
    # 65536 entries do not fit the field's 16 bits and are written as 0.
    count = int(descriptor[0]) or 65536
    entries = _read_entries(item, count, little_endian)
    if entries.size != count:
        raise ImageError(f"its {name} has {entries.size} entries, its descriptor says {count}")
    return LookupTable(int(descriptor[1]), int(descriptor[2]), entries)


def _look_up(values: _Values, table: LookupTable) -> _Scale:
    """Map values through a table: the first entry is for `first` and below, the last for all above."""
    indices = np.clip(np.rint(values) - table.first, 0, table.entries.size - 1).astype(np.intp)
    return _Scale(table.entries[indices], 0.0, float(2**table.bits - 1))


def _read_entries(item: Dataset, count: int, little_endian: bool) -> _Values:
    data = item.get("LUTData")
    if isinstance(data, bytes):
        # Bytes of type OW: two per entry, or one where the entries are packed.
        order = "<" if little_endian else ">"
        dtype = np.dtype(f"{order}u2") if len(data) >= 2 * count else np.dtype("u1")
        return np.frombuffer(data[: count * dtype.itemsize], dtype).astype(np.float64)
    # An explicit value representation SS makes large entries negative.
    return np.atleast_1d(np.asarray([] if data is None else data, dtype=np.int64)).astype(np.float64) % 65536


def _first_item(dataset: Dataset, keyword: str) -> Dataset | None:
    sequence = dataset.get(keyword)
    return sequence[0] if sequence else None


def _read_numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Finite numbers of an element; empty where it is absent, empty or malformed."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, bytes):
        return []
    items = [value] if isinstance(value, str | int | float) else list(value)
    try:
        numbers = [float(item) for item in items]
    except (TypeError, ValueError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []
