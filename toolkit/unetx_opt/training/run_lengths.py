"""Masks as run lengths and contours as landmarks: the two texts in which CheXmask publishes an outline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unetx_opt.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Landmarks", "decode_run_lengths", "encode_run_lengths", "parse_landmarks"]

_MAX_SIDE_PX: Final = 16384
_MAX_PIXELS: Final = 1 << 26
_LANDMARK_COUNTS: Final = (44, 50, 26)


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Contours of the three organs; each is (N, 2) int64, x (column) and y (row), origin in the top left pixel."""

    right_lung: NDArray[np.int64]
    left_lung: NDArray[np.int64]
    heart: NDArray[np.int64]


def decode_run_lengths(text: str, height: int, width: int) -> NDArray[np.bool_]:
    """Decode a run-length mask.

    Parameters
    ----------
    text : str
        ``start length`` pairs separated by spaces; starts count from 1, row by row. Empty: an empty mask.
    height, width : int
        Size of the mask in pixels.

    Returns
    -------
    numpy.ndarray
        bool (height, width).

    Raises
    ------
    DataError
        The text is no list of pairs, a run is empty, overlaps the one before it or leaves the mask, or the size is
        beyond 16384 pixels a side or 2^26 pixels.
    """
    import numpy as np

    if not (1 <= height <= _MAX_SIDE_PX and 1 <= width <= _MAX_SIDE_PX and height * width <= _MAX_PIXELS):
        raise DataError(
            f"the mask is {height} x {width} pixels, expected 1 to {_MAX_SIDE_PX} a side and at most {_MAX_PIXELS}"
        )
    numbers = np.array(_parse_integers(text.split(), "run lengths"), dtype=np.int64)
    if numbers.size % 2:
        raise DataError(f"the run lengths have {numbers.size} numbers, expected pairs of start and length")
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    ends = starts + lengths
    if not numbers.size:
        return np.zeros((height, width), dtype=np.bool_)
    if starts[0] < 0 or (lengths < 1).any() or (starts[1:] < ends[:-1]).any():
        raise DataError("the runs are not in order, overlap, are empty, or begin before pixel 1: starts count from 1")
    if ends[-1] > height * width:
        raise DataError(
            f"a run ends at pixel {ends[-1]}, the mask of {height} x {width} has {height * width}: "
            "Height and Width must be those that the runs were made for"
        )
    # +1 where a run begins and -1 behind its end: the running sum is 1 inside; runs that touch cancel out.
    steps = np.zeros(height * width + 1, dtype=np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return np.cumsum(steps[:-1], dtype=np.int8).reshape(height, width).astype(np.bool_)


def encode_run_lengths(mask: NDArray[np.bool_]) -> str:
    """Encode a mask, (H, W), as `decode_run_lengths` reads it: the fewest runs, in order."""
    import numpy as np

    framed = np.concatenate([[0], np.asarray(mask, dtype=np.int8).ravel(), [0]])
    change = np.flatnonzero(np.diff(framed))
    starts, ends = change[0::2], change[1::2]
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(starts, ends, strict=True))


def parse_landmarks(text: str) -> Landmarks:
    """Read the 120 landmarks of a row.

    Parameters
    ----------
    text : str
        240 whole numbers x,y,x,y,...: 44 points of the right lung, 50 of the left lung, 26 of the heart.

    Raises
    ------
    DataError
        There are more or fewer numbers, or one is not whole.
    """
    import numpy as np

    numbers = _parse_integers(text.split(","), "landmarks") if text.strip() else []
    expected = 2 * sum(_LANDMARK_COUNTS)
    if len(numbers) != expected:
        raise DataError(f"the landmarks have {len(numbers)} numbers, expected {expected}")
    points = np.array(numbers, dtype=np.int64).reshape(-1, 2)
    right, left, heart = np.split(points, np.cumsum(_LANDMARK_COUNTS)[:-1])
    return Landmarks(right, left, heart)


def _parse_integers(texts: Sequence[str], what: str) -> list[int]:
    for text in texts:
        # isdecimal alone would let other scripts' digits pass, and int alone signs, underscores and huge numbers.
        if not (text.isascii() and text.isdecimal() and len(text) <= 12):
            raise DataError(f"the {what} hold {text[:20]!r}, expected whole numbers")
    return [int(text) for text in texts]
