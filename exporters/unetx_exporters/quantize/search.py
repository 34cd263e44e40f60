"""The search for the cheapest types that keep the gate: raise the most sensitive layers, then push back down."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from unetx_exporters.quantize.candidates import LayerGroup, Plan, Scheme, plan_cost
from unetx_exporters.quantize.sensitivity import (
    Judge,
    Sensitivity,
    Verdict,
    measure_alone,
    measure_relief,
    rank_groups,
)
from unetx_exporters.quantize.share import LEAST_SHARE

__all__ = ["SearchOptions", "SearchProblem", "SearchResult", "Step", "search_plan"]

#: A type that takes less than this part off a group's loss does not help it: the next one is tried at once.
_HELPS: Final = 0.5


def _never() -> bool:
    return False


def _no_report(stage: str, done: int, total: int) -> None:
    del stage, done, total


@dataclass(frozen=True, slots=True)
class SearchProblem:
    """What is searched.

    Attributes
    ----------
    groups : tuple of LayerGroup
        In the order of the graph.
    scheme : Scheme
        Types and their cost.
    judge : Judge
        Runs plans on images.
    minimum_share : float
        Least share of the operations in int8: below it the result is no int8 engine.
    """

    groups: tuple[LayerGroup, ...]
    scheme: Scheme
    judge: Judge
    minimum_share: float = LEAST_SHARE

    def cost(self, plan: Plan) -> float:
        """Nominal seconds of a plan."""
        return plan_cost(plan, self.groups, self.scheme)


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How long, and in which order.

    Attributes
    ----------
    expired : callable
        Whether the budget is spent; asked before each step. The same steps are taken in the same order whatever
        the budget: it only decides after how many of them the search stops.
    seed : int
        Of the order of the exchanges.
    exchanges : int
        Most exchanges of one group for another that are tried.
    report : callable
        Progress: stage, done, total.
    """

    expired: Callable[[], bool] = _never
    seed: int = 0
    exchanges: int = 24
    report: Callable[[str, int, int], None] = _no_report


@dataclass(frozen=True, slots=True)
class Step:
    """One plan that the gate was asked about.

    Attributes
    ----------
    action : str
        What led to it, for the evidence.
    plan : Plan
        Types of the groups.
    cost : float
        Nominal seconds.
    verdict : Verdict
        Of the gate.
    """

    action: str
    plan: Plan
    cost: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    plan : Plan
        The cheapest one that passed, or where none did the widest one that was tried.
    passed : bool
        Whether it keeps the gate.
    finished : bool
        Whether the search ended by itself, not because the budget was spent.
    sensitivities : tuple of Sensitivity
        In the order of the groups.
    steps : tuple of Step
        In the order in which they were taken.
    """

    plan: Plan
    passed: bool
    finished: bool
    sensitivities: tuple[Sensitivity, ...]
    steps: tuple[Step, ...]


@dataclass(slots=True)
class _Course:
    """A search on its way."""

    problem: SearchProblem
    options: SearchOptions
    steps: list[Step] = field(default_factory=list)

    def ask(self, action: str, plan: Plan) -> bool:
        self.options.report("search", len(self.steps), 0)
        verdict = self.problem.judge.gate(plan)
        self.steps.append(Step(action, plan, self.problem.cost(plan), verdict))
        return verdict.passed

    def fits(self, plan: Plan) -> bool:
        return plan.int8_share(self.problem.groups) >= self.problem.minimum_share


def search_plan(problem: SearchProblem, options: SearchOptions = SearchOptions()) -> SearchResult:
    """Find the cheapest types that keep the gate.

    Every group begins in the narrowest type. Where that fails, the most sensitive groups are raised, one after the
    other, until the gate passes. From there every raised group is tried in a cheaper type again, the one that
    saves most first, and then exchanged for another one. What the gate says decides each step.

    Parameters
    ----------
    problem : SearchProblem
        Groups, types, and what runs a plan.
    options : SearchOptions
        Budget, seed, progress.

    Returns
    -------
    SearchResult
        One that does not pass is a result, no exception. Equal inputs and seeds give equal results unless the
        budget ends the search.
    """
    course = _Course(problem, options)
    rows = measure_alone(
        problem.groups, problem.judge, lambda done, total: options.report("sensitivity", done, total)
    )
    plan = Plan.narrowest(problem.groups)
    finished = True
    if not course.ask("every layer in its narrowest type", plan):
        rows = measure_relief(
            problem.groups, problem.judge, rows, lambda done, total: options.report("relief", done, total)
        )
        plan, passed, finished = _raise(course, plan, rows)
        if not passed:
            return SearchResult(plan, False, finished, rows, tuple(course.steps))
        plan, finished = _push_down(course, plan)
    return SearchResult(plan, True, finished, rows, tuple(course.steps))


def _raise(course: _Course, plan: Plan, rows: Sequence[Sensitivity]) -> tuple[Plan, bool, bool]:
    """Raise groups until the gate passes; give the plan, whether it passed, and whether nothing more can be done."""
    problem = course.problem
    for index, dtype in _raises(problem, rows):
        if course.options.expired():
            return plan, False, False
        wider = plan.changed(index, dtype)
        if not course.fits(wider):
            continue  # a smaller group may still be raised
        plan = wider
        if course.ask(f"{problem.groups[index].name} raised to {dtype}", plan):
            return plan, True, True
    return plan, False, True


def _raises(problem: SearchProblem, rows: Sequence[Sensitivity]) -> Iterator[tuple[int, str]]:
    """Every raise: each group to the first type that helps it, in a second round to the widest."""
    order = rank_groups(rows)
    first = {}
    for index in order:
        if len(problem.groups[index].types) > 1:
            first[index] = _first_helpful(problem, index, rows[index])
            yield index, first[index]
    for index, dtype in first.items():
        widest = problem.groups[index].types[-1]
        if dtype != widest:
            yield index, widest


def _first_helpful(problem: SearchProblem, index: int, row: Sensitivity) -> str:
    types = problem.groups[index].types
    widest = Plan.widest(problem.groups)
    for dtype in types[1:-1]:
        loss = problem.judge.proxy(widest.changed(index, dtype))
        if loss.severity[0] <= _HELPS * row.alone.severity[0] and loss.logits <= row.alone.logits:
            return dtype
    return types[-1]


def _push_down(course: _Course, plan: Plan) -> tuple[Plan, bool]:
    """Make a plan that passes cheaper while it passes; give it, and whether the search ended by itself."""
    refuted: set[tuple[int, str]] = set()
    while moves := [move for move in _lower_moves(course.problem, plan) if move not in refuted]:
        if course.options.expired():
            return plan, False
        index, dtype = moves[0]
        candidate = plan.changed(index, dtype)
        if course.ask(f"{course.problem.groups[index].name} lowered to {dtype}", candidate):
            plan = candidate
        else:  # with still more narrow layers it would fail as well
            refuted.add((index, dtype))
    return _exchange(course, plan)


def _lower_moves(problem: SearchProblem, plan: Plan) -> list[tuple[int, str]]:
    """Every group with every cheaper type, what saves most first."""
    found = []
    for index, current in enumerate(plan.types):
        for dtype in problem.groups[index].types:
            cost = problem.cost(plan.changed(index, dtype))
            if dtype != current and cost < problem.cost(plan):
                found.append((cost, index, dtype))
    return [(index, dtype) for _, index, dtype in sorted(found)]


def _exchange(course: _Course, plan: Plan) -> tuple[Plan, bool]:
    """Lower one group and raise a cheaper one in its place, in an order that the seed decides."""
    problem, options = course.problem, course.options
    narrowest = Plan.narrowest(problem.groups).types
    raised = [index for index, dtype in enumerate(plan.types) if dtype != narrowest[index]]
    narrow = [index for index, dtype in enumerate(plan.types) if dtype == narrowest[index]]
    pairs = list(itertools.product(raised, narrow))
    random.Random(options.seed).shuffle(pairs)  # noqa: S311 - an order, no secret
    tried = 0
    for down, up in pairs:
        if plan.types[down] == narrowest[down] or plan.types[up] != narrowest[up]:
            continue  # an exchange that was taken has changed one of them
        candidate = plan.changed(up, plan.types[down]).changed(down, narrowest[down])
        if problem.cost(candidate) >= problem.cost(plan) or not course.fits(candidate):
            continue
        if options.expired():
            return plan, False
        if tried == options.exchanges:
            break
        tried += 1
        names = problem.groups[down].name, problem.groups[up].name
        if course.ask(f"{names[1]} raised in place of {names[0]}", candidate):
            plan = candidate
    return plan, True
