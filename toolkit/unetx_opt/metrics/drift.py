"""What one engine makes of one image and class, compared with the reference's mask and with the ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from unetx_opt.errors import DataError
from unetx_opt.metrics.boundary import hd95_px
from unetx_opt.metrics.overlap import dice

__all__ = ["ComparedMasks", "ImageDrift", "drift_of"]


@dataclass(frozen=True, slots=True)
class ImageDrift:
    """How far an engine is from its reference on one image, for one class.

    Attributes
    ----------
    name, class_name : str
        The image and the class.
    dice_reference_vs_truth, dice_engine_vs_truth : float or None
        Dice coefficients against the ground truth, both None where there is none.
    dice_engine_vs_reference : float
        Dice coefficient of the two masks: their agreement.
    hausdorff_shift_px : float
        95 % Hausdorff distance between the two masks, infinite where exactly one of them is empty.
    reference_empty, engine_empty : bool
        Whether the mask has no pixel of this class.
    max_logit_difference : float
        Largest absolute difference of the logits, over all classes and the network's own grid; infinite where a
        logit is NaN or infinite.
    non_finite_logits : int
        How many of the engine's logits are NaN or infinite.
    """

    name: str
    class_name: str
    dice_reference_vs_truth: float | None
    dice_engine_vs_truth: float | None
    dice_engine_vs_reference: float
    hausdorff_shift_px: float
    reference_empty: bool
    engine_empty: bool
    max_logit_difference: float = 0.0
    non_finite_logits: int = 0

    def __post_init__(self) -> None:
        if (self.dice_reference_vs_truth is None) != (self.dice_engine_vs_truth is None):
            raise DataError(f"image {self.name}: a Dice coefficient against the truth is there for one mask only")
        scores = (self.reference_score, self.engine_score, self.dice_engine_vs_reference)
        if not all(0.0 <= score <= 1.0 for score in scores):  # false for NaN too
            raise DataError(f"image {self.name}: Dice coefficients are {scores}, expected 0 to 1")
        if not self.hausdorff_shift_px >= 0.0:
            raise DataError(f"image {self.name}: the boundary shift is {self.hausdorff_shift_px}, expected 0 or more")

    @property
    def has_truth(self) -> bool:
        """Whether the scores are against a ground truth."""
        return self.dice_reference_vs_truth is not None

    @property
    def reference_score(self) -> float:
        """Dice coefficient of the reference against the truth; 1 without a truth."""
        return 1.0 if self.dice_reference_vs_truth is None else self.dice_reference_vs_truth

    @property
    def engine_score(self) -> float:
        """Dice coefficient of the engine against the truth; against the reference without a truth."""
        return self.dice_engine_vs_reference if self.dice_engine_vs_truth is None else self.dice_engine_vs_truth

    @property
    def score_difference(self) -> float:
        """Engine minus reference: negative where the engine is worse."""
        return self.engine_score - self.reference_score

    @property
    def is_broken(self) -> bool:
        """Whether it fails every gate by itself: NaN or Inf, or one mask empty and the other not."""
        return self.non_finite_logits > 0 or self.engine_empty != self.reference_empty

    @property
    def severity(self) -> tuple[bool, float, float]:
        """Sorting key, larger is worse: broken first, then disagreement of the masks, then boundary shift."""
        return self.is_broken, 1.0 - self.dice_engine_vs_reference, self.hausdorff_shift_px


@dataclass(frozen=True, slots=True)
class ComparedMasks:
    """The masks of one class of one image, on one grid.

    Attributes
    ----------
    reference, engine : numpy.ndarray
        (H, W) integer or bool, what is not 0 is foreground.
    truth : numpy.ndarray or None
        (H, W) likewise, None where it is not known.
    """

    reference: NDArray[Any]
    engine: NDArray[Any]
    truth: NDArray[Any] | None = None


def drift_of(
    name: str,
    class_name: str,
    masks: ComparedMasks,
    max_logit_difference: float = 0.0,
    non_finite_logits: int = 0,
) -> ImageDrift:
    """Compare an engine's mask with the reference's, and both with the truth.

    Parameters
    ----------
    name, class_name : str
        The image and the class.
    masks : ComparedMasks
        Of this class only.
    max_logit_difference, non_finite_logits
        As in `ImageDrift`.

    Raises
    ------
    DataError
        The masks differ in shape or hold floating-point values.
    """
    truth = masks.truth
    return ImageDrift(
        name=name,
        class_name=class_name,
        dice_reference_vs_truth=None if truth is None else dice(masks.reference, truth),
        dice_engine_vs_truth=None if truth is None else dice(masks.engine, truth),
        dice_engine_vs_reference=dice(masks.engine, masks.reference),
        hausdorff_shift_px=hd95_px(masks.engine, masks.reference),
        reference_empty=not masks.reference.any(),
        engine_empty=not masks.engine.any(),
        max_logit_difference=max_logit_difference,
        non_finite_logits=non_finite_logits,
    )
