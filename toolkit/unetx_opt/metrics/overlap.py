"""How much two masks share: Dice coefficient, intersection over union, pixel accuracy.

Masks are integer or bool arrays of one shape; probabilities are refused, because a threshold nobody chose would
be hidden in them. With ``class_index=None`` every pixel that is not 0 is foreground, so 0/1, 0/255 and bool masks
mean the same; with a class index, the pixels that have exactly that label are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import DataError

__all__ = ["class_mask", "dice", "iou", "mean_iou", "pixel_accuracy"]


def dice(first: NDArray[Any], second: NDArray[Any], class_index: int | None = None) -> float:
    """Dice coefficient ``2 |A & B| / (|A| + |B|)`` (Dice 1945).

    Parameters
    ----------
    first, second : numpy.ndarray
        (H, W) integer or bool masks; the order does not matter.
    class_index : int, optional
        The label to compare; None compares what is not 0.

    Returns
    -------
    float
        0 to 1. Two empty masks agree completely: 1.0. One empty mask: 0.0.

    Raises
    ------
    DataError
        The shapes differ, or a mask holds floating-point values.
    """
    shared, first_size, second_size = _count(first, second, class_index)
    total = first_size + second_size
    return 2.0 * shared / total if total else 1.0


def iou(first: NDArray[Any], second: NDArray[Any], class_index: int | None = None) -> float:
    """Intersection over union ``|A & B| / |A | B|`` (Jaccard 1912).

    Parameters, value range, the empty cases and errors are those of `dice`; ``iou = dice / (2 - dice)``.
    """
    shared, first_size, second_size = _count(first, second, class_index)
    union = first_size + second_size - shared
    return shared / union if union else 1.0


def pixel_accuracy(first: NDArray[Any], second: NDArray[Any], class_index: int | None = None) -> float:
    """Share of the pixels on which two masks agree.

    Parameters
    ----------
    first, second : numpy.ndarray
        (H, W) integer or bool masks.
    class_index : int, optional
        Agreement about this label against all others. None: agreement about the label itself, so that here, other
        than in `dice`, masks of 0/1 and of 0/255 differ.

    Returns
    -------
    float
        0 to 1. Background counts as much as foreground.

    Raises
    ------
    DataError
        The shapes differ, a mask is empty of pixels, or holds floating-point values.
    """
    _check_pair(first, second)
    if first.size == 0:
        raise DataError(f"masks have shape {first.shape}, expected at least one pixel")
    if class_index is None:
        return float(np.count_nonzero(first == second) / first.size)
    agreed = class_mask(first, class_index) == class_mask(second, class_index)
    return float(np.count_nonzero(agreed) / first.size)


def mean_iou(first: NDArray[Any], second: NDArray[Any], class_count: int) -> float:
    """Mean of `iou` over the classes ``0 .. class_count - 1``, background included.

    Parameters
    ----------
    first, second : numpy.ndarray
        (H, W) integer or bool label masks.
    class_count : int
        At least 2; a binary mask has 2 classes.

    Returns
    -------
    float
        0 to 1. A class that is in neither mask counts as 1.0, as in `iou`.

    Raises
    ------
    DataError
        As `dice`, or a label is not one of the classes.
    """
    _check_pair(first, second)
    for labels in (first, second):
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < class_count:
            raise DataError(
                f"a mask has labels {int(labels.min())} to {int(labels.max())}, expected 0 to {class_count - 1}"
            )
    return float(np.mean([iou(first, second, class_index) for class_index in range(class_count)]))


def class_mask(labels: NDArray[Any], class_index: int | None = None) -> NDArray[np.bool_]:
    """Select one class of a label mask.

    Parameters
    ----------
    labels : numpy.ndarray
        Integer or bool labels.
    class_index : int, optional
        The label to select; None selects what is not 0.

    Returns
    -------
    numpy.ndarray
        bool, same shape.

    Raises
    ------
    DataError
        The labels are floating-point values.
    """
    if labels.dtype.kind not in "biu":
        raise DataError(
            f"mask has dtype {labels.dtype}, expected integer or bool labels: apply a threshold or argmax first"
        )
    selected: NDArray[np.bool_] = labels != 0 if class_index is None else labels == class_index
    return selected


def _count(first: NDArray[Any], second: NDArray[Any], class_index: int | None) -> tuple[int, int, int]:
    """Sizes of the intersection and of both masks, in pixels."""
    _check_pair(first, second)
    one, other = class_mask(first, class_index), class_mask(second, class_index)
    return int(np.count_nonzero(one & other)), int(np.count_nonzero(one)), int(np.count_nonzero(other))


def _check_pair(first: NDArray[Any], second: NDArray[Any]) -> None:
    if first.shape != second.shape:
        raise DataError(f"masks have shapes {first.shape} and {second.shape}, expected the same grid")
    class_mask(first[:0]), class_mask(second[:0])
