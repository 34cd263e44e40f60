"""How well a model segments a data set: Dice, intersection over union and accuracy per image, and their summary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.imaging.refinement import Refiner, decide_labels
from unetx_opt.metrics.overlap import dice, iou, pixel_accuracy
from unetx_opt.optional import require
from unetx_opt.training.labelled import LabelledImages
from unetx_opt.training.options import training_contract

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unetx_opt.models.unet import UNet

__all__ = ["ImageScore", "score_model", "segment_image", "summarize_scores"]


@dataclass(frozen=True, slots=True)
class ImageScore:
    """Agreement of one image's mask with the data set's, on the grid of the source image.

    Attributes
    ----------
    name : str
        File name.
    dice, iou : float
        Mean over the classes without the background, 0 to 1.
    accuracy : float
        Share of pixels that agree, 0 to 1.
    """

    name: str
    dice: float
    iou: float
    accuracy: float


def segment_image(
    model: UNet, image: NDArray[Any], size_px: int, refiner: Refiner | None = None
) -> NDArray[np.uint8]:
    """Segment one image with the PyTorch model, in float32 on the CPU.

    Parameters
    ----------
    model : UNet
        In evaluation mode.
    image : ndarray
        (H, W) grey values.
    size_px : int
        Height and width of the network's input.
    refiner : Refiner, optional
        Step after the network.

    Returns
    -------
    ndarray
        uint8 (H, W) labels on the grid of the image.
    """
    torch = require("torch", purpose="scoring a model")
    prepared_chw, geometry = prepare_image(image, training_contract(size_px))
    with torch.inference_mode():
        logits_chw = model(torch.tensor(prepared_chw)[None])[0].float().numpy()
    return decide_labels(logits_chw, prepared_chw, geometry, refiner)


def score_model(
    model: UNet, dataset: LabelledImages, size_px: int, refiner: Refiner | None = None
) -> tuple[ImageScore, ...]:
    """Score every image of a data set.

    Parameters
    ----------
    model : UNet
        In evaluation mode, on the CPU.
    dataset : LabelledImages
        Images and masks.
    size_px : int
        Height and width of the network's input.
    refiner : Refiner, optional
        Step after the network.

    Returns
    -------
    tuple of ImageScore
        In the order of the data set.
    """
    classes = range(1, len(dataset.label_names))
    scores = []
    for index, name in enumerate(dataset.names):
        found, mask = segment_image(model, dataset.image(index), size_px, refiner), dataset.mask(index)
        class_dice, class_iou = (
            math.fsum(measure(found, mask, class_index) for class_index in classes) / len(classes)
            for measure in (dice, iou)
        )
        scores.append(ImageScore(name, class_dice, class_iou, pixel_accuracy(found, mask)))
    return tuple(scores)


def summarize_scores(scores: Iterable[ImageScore]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample) and minimum of each score over images.

    Returns
    -------
    dict
        ``{"n": .., "dice": {"mean": .., "std": .., "min": ..}, "iou": .., "accuracy": ..}``; std is None for one
        image.
    """
    rows = tuple(scores)
    summary: dict[str, Any] = {"n": len(rows)}
    for metric in ("dice", "iou", "accuracy"):
        values = [float(getattr(row, metric)) for row in rows]
        summary[metric] = {
            "mean": math.fsum(values) / len(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "min": min(values),
        }
    return summary
