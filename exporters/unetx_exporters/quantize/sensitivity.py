"""How much each group of layers suffers from a narrow type: alone in it, and alone out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from unetx_exporters.quantize.candidates import LayerGroup, Plan

__all__ = ["Judge", "Loss", "Sensitivity", "Verdict", "measure_alone", "measure_relief", "rank_groups"]


@dataclass(frozen=True, slots=True)
class Loss:
    """What a plan costs in accuracy on the few images that rank plans.

    Attributes
    ----------
    broken : float
        Share of the images with NaN or Inf, or with one mask empty and the other not.
    disagreement : float
        Mean of 1 minus the Dice coefficient against the FP32 reference's mask, over images and classes.
    logits : float
        Mean over images of the largest difference of a logit; infinite where one is not finite.
    """

    broken: float
    disagreement: float
    logits: float

    @property
    def severity(self) -> tuple[float, float]:
        """Sorting key, larger is worse: the task's loss, then that of the logits."""
        return self.broken + self.disagreement, self.logits


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says about a plan.

    Attributes
    ----------
    passed : bool
        On every image of the gate.
    explanation : str
        Which rules failed, by how much, on which image; empty where it passed.
    images : int
        Images that were looked at: a plan that one image refutes is not run on the others.
    """

    passed: bool
    explanation: str
    images: int


class Judge(Protocol):
    """What a search asks about a plan."""

    def proxy(self, plan: Plan) -> Loss:
        """Measure a plan on a few images, to rank it."""

    def gate(self, plan: Plan, *, complete: bool = False) -> Verdict:
        """Decide the gate for a plan; `complete` looks at every image even of one that fails."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One group.

    Attributes
    ----------
    group : str
        Its name.
    dtype : str
        The narrow type.
    alone : Loss
        This group in the narrow type, all others in the widest.
    relief : Loss or None
        This group in the widest type, all others in the narrow one; None where it was not measured.
    severity : tuple of float
        Larger is more sensitive: the loss alone, or what its absence takes off the loss of all, whichever is
        larger. The first tells layers apart that fail for different reasons, the second those that fail together.
    """

    group: str
    dtype: str
    alone: Loss
    relief: Loss | None = None
    severity: tuple[float, float] = (0.0, 0.0)


def measure_alone(
    groups: Sequence[LayerGroup],
    judge: Judge,
    report: Callable[[int, int], None],
) -> tuple[Sensitivity, ...]:
    """Measure every group alone in the narrowest type.

    Parameters
    ----------
    groups : sequence of LayerGroup
        In the order of the graph.
    judge : Judge
        Runs plans.
    report : callable
        Progress: done, total.
    """
    widest = Plan.widest(groups)
    found = []
    for index, group in enumerate(groups):
        report(index, len(groups))
        loss = judge.proxy(widest.changed(index, group.types[0]))
        found.append(Sensitivity(group.name, group.types[0], loss, severity=loss.severity))
    return tuple(found)


def measure_relief(
    groups: Sequence[LayerGroup],
    judge: Judge,
    alone: Sequence[Sensitivity],
    report: Callable[[int, int], None],
) -> tuple[Sensitivity, ...]:
    """Measure what the plan with every group in the narrowest type gains where one group is in the widest.

    Returns
    -------
    tuple of Sensitivity
        Those of `alone`, completed.
    """
    narrowest = Plan.narrowest(groups)
    everything = judge.proxy(narrowest).severity
    found = []
    for index, row in enumerate(alone):
        report(index, len(groups))
        relief = judge.proxy(narrowest.changed(index, groups[index].types[-1]))
        gain = (everything[0] - relief.severity[0], everything[1] - relief.severity[1])
        # An infinite loss less an infinite loss says nothing.
        severity = max(row.severity, gain) if gain[0] == gain[0] else row.severity
        found.append(Sensitivity(row.group, row.dtype, row.alone, relief, severity))
    return tuple(found)


def rank_groups(rows: Sequence[Sensitivity]) -> tuple[int, ...]:
    """Indices of the groups, the most sensitive first; groups of equal severity in the order of the graph."""
    return tuple(sorted(range(len(rows)), key=lambda index: (tuple(-part for part in rows[index].severity), index)))
