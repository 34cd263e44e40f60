"""How well masks agree with a data set: figures of each image, and their mean, spread and interval over images.

Every figure is computed per image and then averaged over images, so that each patient's radiograph counts the same
whatever its size.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import DataError
from unetx_opt.metrics.bootstrap import mean_interval
from unetx_opt.metrics.boundary import surface_distances
from unetx_opt.metrics.overlap import dice, iou, mean_iou, pixel_accuracy

__all__ = ["CLASS_METRICS", "METRICS", "ClassScore", "ImageScores", "balanced_accuracy", "score_mask", "summarize"]

#: Figures of an image, in the order of reports: field of `ImageScores` -> what it is.
METRICS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "accuracy": "pixel accuracy",
        "balanced_accuracy": "class-balanced accuracy",
        "miou": "mean IoU with background",
        "dice": "Dice",
        "hd95_px": "Hausdorff 95 % (px)",
        "assd_px": "surface distance (px)",
    }
)
#: Figures of one class of an image: fields of `ClassScore`.
CLASS_METRICS: Final = ("iou", "dice", "hd95_px", "assd_px")


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Agreement about one class in one image.

    Attributes
    ----------
    iou, dice : float
        0 to 1; 1 where neither mask has the class.
    hd95_px, assd_px : float
        Boundary distances in pixels; 0 where neither mask has the class, infinite where one has it.
    """

    iou: float
    dice: float
    hd95_px: float
    assd_px: float


@dataclass(frozen=True, slots=True)
class ImageScores:
    """Agreement about one image.

    Attributes
    ----------
    name : str
        File name.
    accuracy : float
        Share of pixels with the right label.
    balanced_accuracy : float
        Mean over the classes in the data set's mask of the share of their pixels with the right label.
    miou : float
        Mean IoU over all classes, background included.
    dice, hd95_px, assd_px : float
        Means over the classes without the background; a distance is infinite where that of any class is.
    classes : mapping of str to ClassScore
        Class name -> its figures, without the background.
    """

    name: str
    accuracy: float
    balanced_accuracy: float
    miou: float
    dice: float
    hd95_px: float
    assd_px: float
    classes: Mapping[str, ClassScore]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; a distance that is infinite is None."""
        figures = {metric: _finite(getattr(self, metric)) for metric in METRICS}
        classes = {
            name: {metric: _finite(getattr(score, metric)) for metric in CLASS_METRICS}
            for name, score in self.classes.items()
        }
        return {"name": self.name, **figures, "classes": classes}


def score_mask(
    name: str, found: NDArray[np.uint8], truth: NDArray[np.uint8], label_names: Sequence[str]
) -> ImageScores:
    """Compare one mask with the data set's.

    Parameters
    ----------
    name : str
        File name of the image.
    found, truth : numpy.ndarray
        (H, W) labels, indices into `label_names`.
    label_names : sequence of str
        At least two, the background first.

    Raises
    ------
    DataError
        The shapes differ, or a label has no name.
    """
    miou = mean_iou(found, truth, len(label_names))
    classes = {label: _score_class(found, truth, index) for index, label in enumerate(label_names) if index}
    scores = tuple(classes.values())
    return ImageScores(
        name=name,
        accuracy=pixel_accuracy(found, truth),
        balanced_accuracy=balanced_accuracy(found, truth),
        miou=miou,
        dice=_mean([score.dice for score in scores]),
        hd95_px=_mean([score.hd95_px for score in scores]),
        assd_px=_mean([score.assd_px for score in scores]),
        classes=MappingProxyType(classes),
    )


def balanced_accuracy(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean recall of the classes that occur in `truth` (Brodersen et al. 2010; scikit-learn's definition).

    Parameters
    ----------
    found, truth : numpy.ndarray
        (H, W) labels; unlike in the other figures the order matters.

    Returns
    -------
    float
        0 to 1. A class that only `found` has lowers the recall of the others and has none of its own.
    """
    recalls = []
    for label in np.flatnonzero(np.bincount(truth.ravel())).tolist():
        inside = truth == label
        recalls.append(float(np.count_nonzero(found[inside] == label) / np.count_nonzero(inside)))
    return _mean(recalls)


def summarize(scores: Sequence[ImageScores]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % bootstrap interval of every figure over images.

    Parameters
    ----------
    scores : sequence of ImageScores
        One per image, of the same classes.

    Returns
    -------
    dict
        ``{"metrics": {metric: row}, "classes": {name: {metric: row}}}`` with rows ``{"mean", "std", "ci95", "n"}``.
        ``std`` is that of a sample. ``n`` counts the images behind the figures: those with an infinite distance have
        no part in a mean distance, so that an ``n`` below the number of images says how many had a class in one mask
        alone. ``std`` and ``ci95`` are None for fewer than two images, ``mean`` for none.

    Raises
    ------
    DataError
        There is no image.
    """
    if not scores:
        raise DataError("no image was evaluated: there is nothing to summarize")
    metrics = {metric: _row([float(getattr(image, metric)) for image in scores]) for metric in METRICS}
    classes = {
        name: {
            metric: _row([float(getattr(image.classes[name], metric)) for image in scores])
            for metric in CLASS_METRICS
        }
        for name in scores[0].classes
    }
    return {"metrics": metrics, "classes": classes}


def _score_class(found: NDArray[np.uint8], truth: NDArray[np.uint8], index: int) -> ClassScore:
    distances = surface_distances(found == index, truth == index)
    return ClassScore(
        iou=iou(found, truth, index),
        dice=dice(found, truth, index),
        hd95_px=distances.hausdorff(95.0),
        assd_px=distances.average(),
    )


def _row(values: Sequence[float]) -> dict[str, Any]:
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return {"mean": finite[0] if finite else None, "std": None, "ci95": None, "n": len(finite)}
    interval = mean_interval(finite)
    return {
        "mean": _mean(finite),
        "std": statistics.stdev(finite),
        "ci95": [interval.lower, interval.upper],
        "n": len(finite),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
