"""The figures of an evaluation: what each is called, how it is printed, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["CLASS_FIGURES", "FIGURES", "IMAGE_FIGURES", "Figure"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Attributes
    ----------
    title : str
        What tables call it, with its unit.
    digits : int
        Decimals that a person reads.
    higher_is_better : bool
        False for distances.
    """

    title: str
    digits: int
    higher_is_better: bool


#: Key in JSON, field of `ImageScores` or of `ClassScore` -> the figure, in the order of reports.
FIGURES: Final[Mapping[str, Figure]] = MappingProxyType(
    {
        "accuracy": Figure("pixel accuracy", 4, True),
        "balanced_accuracy": Figure("class-balanced accuracy", 4, True),
        "miou": Figure("mean IoU with background", 4, True),
        "iou": Figure("IoU", 4, True),
        "dice": Figure("Dice", 4, True),
        "hd95_px": Figure("Hausdorff 95 % (px)", 2, False),
        "assd_px": Figure("surface distance (px)", 2, False),
        "hd95_mm": Figure("Hausdorff 95 % (mm)", 2, False),
        "assd_mm": Figure("surface distance (mm)", 2, False),
    }
)
#: Those of an image, and those of one class of an image.
IMAGE_FIGURES: Final = tuple(key for key in FIGURES if key != "iou")
CLASS_FIGURES: Final = tuple(key for key in FIGURES if key != "miou")
