"""Drift gates: is an engine still the model that it was made from, image by image and class by class?

An engine is compared with the FP32 reference of the same checkpoint. Where the images have a ground truth, an
image's score is its Dice coefficient against that truth, for the reference and for the engine; where they have
none, the reference scores 1 and the engine its Dice coefficient against the reference. The boundary shift and the
agreement always compare the engine with the reference, because an engine that strays can score well by luck.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unetx_opt.errors import GateError
from unetx_opt.metrics.drift import ComparedMasks, ImageDrift, drift_of
from unetx_opt.metrics.gate_rules import (
    COMPARISONS,
    GATES,
    MINIMUM_IMAGES,
    RULES,
    GateLimits,
    GateRule,
    get_gate,
)

__all__ = [
    "GATES",
    "MINIMUM_IMAGES",
    "ComparedMasks",
    "GateDecision",
    "GateLimits",
    "GateRow",
    "ImageDrift",
    "decide_gate",
    "decision_to_json",
    "drift_of",
    "drift_to_json",
    "explain_failure",
    "get_gate",
]


@dataclass(frozen=True, slots=True)
class GateRow:
    """What one rule found for one class.

    Attributes
    ----------
    rule, description, class_name : str
        Which rule, in words, and for which class.
    value : float
        What was found; infinite where a boundary has nothing to be compared with.
    comparison : str
        ">=", ">" or "<=", read as "value comparison limit".
    limit : float
        The gate's limit.
    passed : bool
        Whether the value keeps the limit.
    worst_image : str or None
        The image that is furthest on the wrong side, None where no image is.
    """

    rule: str
    description: str
    class_name: str
    value: float
    comparison: str
    limit: float
    passed: bool
    worst_image: str | None


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether one engine passes one gate, and everything that decided it.

    Attributes
    ----------
    name : str
        The gate.
    passed : bool
        Every row passed.
    rows : tuple of GateRow
        One for each rule and class.
    image_count : int
        Number of images.
    class_names : tuple of str
        In the order of the rows.
    has_truth : bool
        Whether scores were taken against a ground truth, or against the reference's masks.
    mean_agreement, worst_agreement : float
        Mean and least Dice coefficient of the engine's mask against the reference's, over images and classes.
        Reported beside the decision, not part of it.
    worst_agreement_image : str
        The image of `worst_agreement`.
    """

    name: str
    passed: bool
    rows: tuple[GateRow, ...]
    image_count: int
    class_names: tuple[str, ...]
    has_truth: bool
    mean_agreement: float
    worst_agreement: float
    worst_agreement_image: str

    @property
    def failures(self) -> tuple[GateRow, ...]:
        """The rows that did not pass."""
        return tuple(row for row in self.rows if not row.passed)


def decide_gate(name: str, drifts: Sequence[ImageDrift]) -> GateDecision:
    """Decide one gate for one engine.

    Parameters
    ----------
    name : str
        A key of `GATES`.
    drifts : sequence of ImageDrift
        One for each image and class: the same images for every class, each image once.

    Returns
    -------
    GateDecision
        Passed or not; a gate that fails is a decision, no exception. Making one score, boundary or mask worse
        never turns a fail into a pass.

    Raises
    ------
    GateError
        The gate is unknown, fewer than `MINIMUM_IMAGES` images show a class, images repeat or differ between
        classes, only some have a truth, or the reference itself scores 0.
    """
    limits = get_gate(name)
    by_class = _group_by_class(drifts)
    rows = [
        _decide_rule(rule, limits, class_name, of_class)
        for class_name, of_class in by_class.items()
        for rule in RULES
    ]
    worst = min(drifts, key=lambda drift: drift.dice_engine_vs_reference)
    return GateDecision(
        name=name,
        passed=all(row.passed for row in rows),
        rows=tuple(rows),
        image_count=len(next(iter(by_class.values()))),
        class_names=tuple(by_class),
        has_truth=drifts[0].has_truth,
        mean_agreement=float(np.mean([drift.dice_engine_vs_reference for drift in drifts])),
        worst_agreement=worst.dice_engine_vs_reference,
        worst_agreement_image=worst.name,
    )


def explain_failure(decision: GateDecision, shown: int | None = None) -> str:
    """Say in one line which rules failed, by how much, and on which image.

    Parameters
    ----------
    decision : GateDecision
        One that did not pass.
    shown : int, optional
        How many rules are listed, in the order of the gate; the others are counted. Without it, all.
    """
    parts = []
    for row in decision.failures[:shown]:
        where = f" (image {row.worst_image})" if row.worst_image else ""
        parts.append(
            f"{row.class_name}: {row.description} is {row.value:.6g}, "
            f"expected {row.comparison} {row.limit:g}, off by {abs(row.value - row.limit):.3g}{where}"
        )
    more = len(decision.failures) - len(parts)
    if more:
        parts.append(f"and {more} more")
    return f"gate {decision.name} fails on {decision.image_count} images: " + "; ".join(parts)


def decision_to_json(decision: GateDecision) -> dict[str, Any]:
    """Turn a decision into plain JSON types; an infinite value becomes null, which JSON has no number for."""
    return {key: _finite_json(item) for key, item in dataclasses.asdict(decision).items()}


def drift_to_json(drift: ImageDrift) -> dict[str, Any]:
    """Turn the drift of one image into plain JSON types; infinite values become null."""
    plain = {key: _finite_json(item) for key, item in dataclasses.asdict(drift).items()}
    return {**plain, "score_difference": drift.score_difference}


def _finite_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _decide_rule(rule: GateRule, limits: GateLimits, class_name: str, drifts: Sequence[ImageDrift]) -> GateRow:
    value, worst_image = rule.measure(drifts)
    limit = rule.limit(limits)
    return GateRow(
        rule=rule.name,
        description=rule.description,
        class_name=class_name,
        value=value,
        comparison=rule.comparison,
        limit=limit,
        passed=COMPARISONS[rule.comparison](value, limit),
        worst_image=worst_image,
    )


def _group_by_class(drifts: Sequence[ImageDrift]) -> dict[str, list[ImageDrift]]:
    by_class: dict[str, list[ImageDrift]] = {}
    for drift in drifts:
        by_class.setdefault(drift.class_name, []).append(drift)
    found = max(map(len, by_class.values()), default=0)
    if found < MINIMUM_IMAGES:
        raise GateError(
            f"a gate needs at least {MINIMUM_IMAGES} images to decide on a 95th percentile, got {found}: "
            f"add {MINIMUM_IMAGES - found} more to the validation split, or gate on the phantoms"
        )
    expected = {drift.name for drift in next(iter(by_class.values()))}
    for class_name, group in by_class.items():
        _check_class(class_name, group, expected)
    with_truth = sum(drift.has_truth for drift in drifts)
    if with_truth not in (0, len(drifts)):
        raise GateError(
            f"{with_truth} of {len(drifts)} results have a ground truth: give one to every image, or to none"
        )
    return by_class


def _check_class(class_name: str, drifts: Sequence[ImageDrift], expected: set[str]) -> None:
    counted = Counter(drift.name for drift in drifts)
    repeated = next((name for name, count in counted.items() if count > 1), None)
    if repeated is not None:
        raise GateError(f"image {repeated} is there twice for class {class_name}: give each image once")
    if set(counted) != expected:
        odd = min(set(counted) ^ expected)
        raise GateError(f"class {class_name} and another differ in image {odd}: give every class the same images")
    # Two empty masks agree completely and say nothing: a model that finds nothing must not pass by it.
    shown = sum(not (drift.reference_empty and drift.engine_empty) for drift in drifts)
    if shown < MINIMUM_IMAGES:
        raise GateError(
            f"class {class_name} was found in {shown} of {len(drifts)} images, a gate needs it in at least "
            f"{MINIMUM_IMAGES}: give images that show it, or check the checkpoint"
        )
