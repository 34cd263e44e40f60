"""The limits of each drift gate, and the rules that measure a value for them.

The 99.9 % and 99 % levels follow the rules of MLPerf Inference for 3D-UNet; a limit on the lower confidence bound
of a paired difference is how a non-inferiority study decides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from unetx_opt.errors import GateError
from unetx_opt.metrics.bootstrap import paired_lower_bound
from unetx_opt.metrics.drift import ImageDrift

__all__ = [
    "COMPARISONS",
    "GATES",
    "MINIMUM_IMAGES",
    "RULES",
    "GateLimits",
    "GateRule",
    "get_gate",
    "upper_percentile",
]

#: Fewest images that a gate decides on. The 95th percentile is the value of rank ceil(0.95 (n - 1)), counted from
#: 0, which is the maximum itself until n - 1 = 20: below that one image alone decides, and the bootstrap sees too
#: few values to be trusted with a tail.
MINIMUM_IMAGES: Final = 21


#: How a value is compared with its limit; false for NaN.
COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = MappingProxyType(
    {">=": operator.ge, ">": operator.gt, "<=": operator.le}
)


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The limits of one gate.

    Attributes
    ----------
    name, purpose : str
        What the command line calls it, and what it is the default for.
    mean_dice_kept : float
        Least ratio of the mean scores, engine to reference.
    dice_lower_bound : float
        The paired bootstrap's 95 % lower bound of the score difference must exceed it.
    worst_dice_difference : float
        Least score difference, engine minus reference, of any image.
    hausdorff_shift_px : float
        Largest 95th percentile over the images of the 95 % Hausdorff distance between the two masks.
    """

    name: str
    purpose: str
    mean_dice_kept: float
    dice_lower_bound: float
    worst_dice_difference: float
    hausdorff_shift_px: float


#: Gate name -> its limits.
GATES: Final[Mapping[str, GateLimits]] = MappingProxyType(
    {
        limits.name: limits
        for limits in (
            GateLimits("strict", "the default for fp16", 0.999, -0.001, -0.01, 1.0),
            GateLimits("standard", "the default for int8", 0.99, -0.005, -0.03, 3.0),
        )
    }
)


@dataclass(frozen=True, slots=True)
class GateRule:
    """One rule that every gate applies to each class.

    Attributes
    ----------
    name, description : str
        A stable key, and what a reader of a report is told.
    comparison : str
        How a value must compare with the limit: ">=", ">" or "<=".
    measure : callable
        Takes the drifts of one class; gives the value and the name of the image that is worst.
    limit : callable
        Takes the gate's limits; gives this rule's.
    """

    name: str
    description: str
    comparison: str
    measure: Callable[[Sequence[ImageDrift]], tuple[float, str | None]]
    limit: Callable[[GateLimits], float]


def get_gate(name: str) -> GateLimits:
    """Look a gate up.

    Raises
    ------
    GateError
        There is no gate of that name.
    """
    if name not in GATES:
        raise GateError(f"unknown gate {name!r}, expected one of {', '.join(GATES)}")
    return GATES[name]


def upper_percentile(values: Sequence[float], percent: int = 95) -> float:
    """Percentile that is one of the values: NumPy's method "higher", rank ``ceil(percent (n - 1) / 100)``.

    It never interpolates, so that an infinite value stays apart from the finite ones, and errs upwards.

    Parameters
    ----------
    values : sequence of float
        At least one; none is NaN.
    percent : int
        0 to 100, whole, so that the rank is exact.
    """
    return sorted(values)[-(-percent * (len(values) - 1) // 100)]


def _measure_mean_kept(drifts: Sequence[ImageDrift]) -> tuple[float, str | None]:
    reference = float(np.mean([drift.reference_score for drift in drifts]))
    if reference <= 0.0:
        raise GateError(
            f"the reference scores a mean Dice of 0 for class {drifts[0].class_name}, so nothing can be kept of it: "
            "check the checkpoint and the masks"
        )
    return float(np.mean([drift.engine_score for drift in drifts])) / reference, _worst_difference(drifts)[1]


def _measure_lower_bound(drifts: Sequence[ImageDrift]) -> tuple[float, str | None]:
    return paired_lower_bound([drift.score_difference for drift in drifts]), _worst_difference(drifts)[1]


def _worst_difference(drifts: Sequence[ImageDrift]) -> tuple[float, str | None]:
    worst = min(drifts, key=lambda drift: drift.score_difference)
    return worst.score_difference, worst.name if worst.score_difference < 0.0 else None


def _measure_shift(drifts: Sequence[ImageDrift]) -> tuple[float, str | None]:
    worst = max(drifts, key=lambda drift: drift.hausdorff_shift_px)
    value = upper_percentile([drift.hausdorff_shift_px for drift in drifts])
    return value, worst.name if worst.hausdorff_shift_px > 0.0 else None


def _count_empty(drifts: Sequence[ImageDrift]) -> tuple[float, str | None]:
    found = [drift.name for drift in drifts if drift.engine_empty != drift.reference_empty]
    return float(len(found)), found[0] if found else None


def _count_non_finite(drifts: Sequence[ImageDrift]) -> tuple[float, str | None]:
    found = [drift.name for drift in drifts if drift.non_finite_logits]
    return float(len(found)), found[0] if found else None


#: The rules of every gate, in the order in which a report lists them.
RULES: Final[tuple[GateRule, ...]] = (
    GateRule(
        "mean_dice_kept",
        "mean Dice, engine to reference",
        ">=",
        _measure_mean_kept,
        lambda limits: limits.mean_dice_kept,
    ),
    GateRule(
        "dice_lower_bound",
        "Dice difference, 95 % lower bound of the mean (paired bootstrap)",
        ">",
        _measure_lower_bound,
        lambda limits: limits.dice_lower_bound,
    ),
    GateRule(
        "worst_dice_difference",
        "Dice difference of the worst single image",
        ">=",
        _worst_difference,
        lambda limits: limits.worst_dice_difference,
    ),
    GateRule(
        "hausdorff_shift_px",
        "95 % Hausdorff shift in pixels, 95th percentile over the images",
        "<=",
        _measure_shift,
        lambda limits: limits.hausdorff_shift_px,
    ),
    GateRule(
        "empty_mask",
        "images where one of the two masks is empty and the other is not",
        "<=",
        _count_empty,
        lambda limits: 0.0,
    ),
    GateRule(
        "non_finite",
        "images with NaN or Inf in the logits",
        "<=",
        _count_non_finite,
        lambda limits: 0.0,
    ),
)
