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
from unetx_opt.metrics.figures import CLASS_FIGURES, FIGURES, IMAGE_FIGURES
from unetx_opt.metrics.overlap import dice, iou, mean_iou, pixel_accuracy

__all__ = [
    "METRICS",
    "ClassScore",
    "ImageScores",
    "balanced_accuracy",
    "count_missing",
    "rank_failures",
    "score_mask",
    "summarize",
]

#: Figures of an image, in the order of reports: field of `ImageScores` -> what it is.
METRICS: Final[Mapping[str, str]] = MappingProxyType({key: FIGURES[key].title for key in IMAGE_FIGURES})


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Agreement about one class in one image.

    Attributes
    ----------
    in_found, in_truth : bool
        Whether each mask has the class at all.
    accuracy, balanced_accuracy : float
        0 to 1, of this class against everything else.
    iou, dice : float
        0 to 1; 1 where neither mask has the class.
    hd95_px, assd_px : float
        Boundary distances in pixels; 0 where neither mask has the class, infinite where one has it.
    hd95_mm, assd_mm : float or None
        The same in millimetres on the detector; None where the spacing is not known.
    """

    in_found: bool
    in_truth: bool
    accuracy: float
    balanced_accuracy: float
    iou: float
    dice: float
    hd95_px: float
    assd_px: float
    hd95_mm: float | None
    assd_mm: float | None


@dataclass(frozen=True, slots=True)
class ImageScores:
    """Agreement about one image.

    Attributes
    ----------
    name : str
        File name.
    spacing_mm : tuple of float or None
        Distance between rows and between columns, where it is known.
    accuracy : float
        Share of pixels with the right label.
    balanced_accuracy : float
        Mean over the classes in the data set's mask of the share of their pixels with the right label.
    miou : float
        Mean IoU over all classes, background included.
    dice, hd95_px, assd_px : float
        Means over the classes without the background; a distance is infinite where that of any class is.
    hd95_mm, assd_mm : float or None
        The same in millimetres on the detector; None where the spacing is not known.
    classes : mapping of str to ClassScore
        Class name -> its figures, without the background.
    """

    name: str
    spacing_mm: tuple[float, float] | None
    accuracy: float
    balanced_accuracy: float
    miou: float
    dice: float
    hd95_px: float
    assd_px: float
    hd95_mm: float | None
    assd_mm: float | None
    classes: Mapping[str, ClassScore]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; a distance that is infinite, or in a unit that is not known, is None."""
        figures = {key: _finite(getattr(self, key)) for key in IMAGE_FIGURES}
        classes = {
            name: {
                "in_found": score.in_found,
                "in_truth": score.in_truth,
                **{key: _finite(getattr(score, key)) for key in CLASS_FIGURES},
            }
            for name, score in self.classes.items()
        }
        spacing = None if self.spacing_mm is None else list(self.spacing_mm)
        return {"name": self.name, **figures, "spacing_mm": spacing, "classes": classes}


def score_mask(
    name: str,
    found: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    label_names: Sequence[str],
    spacing_mm: tuple[float, float] | None = None,
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
    spacing_mm : tuple of float, optional
        Distance between rows and between columns; None where it is not known.

    Raises
    ------
    DataError
        The shapes differ, a label has no name, or the spacing is not two positive numbers.
    """
    miou = mean_iou(found, truth, len(label_names))
    classes = {
        label: _score_class(found == index, truth == index, spacing_mm)
        for index, label in enumerate(label_names)
        if index
    }
    scores = tuple(classes.values())
    return ImageScores(
        name=name,
        spacing_mm=spacing_mm,
        accuracy=pixel_accuracy(found, truth),
        balanced_accuracy=balanced_accuracy(found, truth),
        miou=miou,
        dice=_mean([score.dice for score in scores]),
        hd95_px=_mean([score.hd95_px for score in scores]),
        assd_px=_mean([score.assd_px for score in scores]),
        hd95_mm=_mean_known([score.hd95_mm for score in scores]),
        assd_mm=_mean_known([score.assd_mm for score in scores]),
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
        ``{"metrics": {metric: row}, "classes": {name: {metric: row}}, "missing": ...}`` with rows ``{"mean", "std",
        "ci95", "n"}`` and the third as `count_missing` gives it. ``std`` is that of a sample. ``n`` counts the images
        behind the figures: those with an infinite distance, or a distance in a unit that is not known, have no part
        in a mean distance. ``std`` and ``ci95`` are None for fewer than two images, ``mean`` for none. Figures in
        millimetres are left out where no image has a spacing.

    Raises
    ------
    DataError
        There is no image.
    """
    if not scores:
        raise DataError("no image was evaluated: there is nothing to summarize")
    classes = {name: _rows([image.classes[name] for image in scores], CLASS_FIGURES) for name in scores[0].classes}
    return {"metrics": _rows(scores, IMAGE_FIGURES), "classes": classes, "missing": count_missing(scores)}


def count_missing(scores: Sequence[ImageScores]) -> dict[str, dict[str, int]]:
    """Count, for each class, the images in which a mask lacks it.

    Returns
    -------
    dict
        Class name -> ``{"truth_only", "found_only", "neither"}``: images in which the data set's mask alone has the
        class (it was missed), the found mask alone (it was made up), or neither. The first two have overlap 0 and no
        finite distance; the third counts as complete agreement.
    """
    counts = {}
    for name in scores[0].classes if scores else ():
        present = [(image.classes[name].in_truth, image.classes[name].in_found) for image in scores]
        counts[name] = {
            "truth_only": present.count((True, False)),
            "found_only": present.count((False, True)),
            "neither": present.count((False, False)),
        }
    return counts


def rank_failures(scores: Sequence[ImageScores]) -> tuple[ImageScores, ...]:
    """Sort worst first: by Dice, then by the larger distance, then by name."""
    return tuple(sorted(scores, key=lambda image: (image.dice, -image.hd95_px, image.name)))


def _score_class(
    found: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: tuple[float, float] | None
) -> ClassScore:
    in_px = surface_distances(found, truth)
    in_mm = None if spacing_mm is None else surface_distances(found, truth, spacing_mm)
    return ClassScore(
        in_found=bool(found.any()),
        in_truth=bool(truth.any()),
        accuracy=pixel_accuracy(found, truth),
        balanced_accuracy=balanced_accuracy(found.view(np.uint8), truth.view(np.uint8)),
        iou=iou(found, truth),
        dice=dice(found, truth),
        hd95_px=in_px.hausdorff(95.0),
        assd_px=in_px.average(),
        hd95_mm=None if in_mm is None else in_mm.hausdorff(95.0),
        assd_mm=None if in_mm is None else in_mm.average(),
    )


def _rows(scores: Sequence[ImageScores] | Sequence[ClassScore], keys: Sequence[str]) -> dict[str, Any]:
    columns = {key: [getattr(score, key) for score in scores] for key in keys}
    return {
        key: _row([value for value in values if value is not None and math.isfinite(value)])
        for key, values in columns.items()
        if any(value is not None for value in values)
    }


def _row(finite: Sequence[float]) -> dict[str, Any]:
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


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
