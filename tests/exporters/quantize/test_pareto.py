"""Drift against time: which plans are drawn, which of them are beaten, and the picture."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_exporters.gate import DriftMeasurement
from unetx_exporters.quantize.candidates import LayerGroup, Plan, get_scheme
from unetx_exporters.quantize.pareto import choose_plans, pareto_points, pareto_svg, pareto_to_json
from unetx_exporters.quantize.search import SearchResult, Step
from unetx_exporters.quantize.sensitivity import Loss, Sensitivity, Verdict
from unetx_opt.metrics.drift import ImageDrift

SCHEME = get_scheme("cpu")
GROUPS = tuple(LayerGroup(f"g{i}", (f"g{i}",), 10**9, 10**5, SCHEME.types) for i in range(6))


def measurement(figures: Mapping[str, tuple[float, float]]) -> DriftMeasurement:
    drifts = {
        name: (ImageDrift("image", "lungs", None, None, 1.0 - loss, 0.0, False, False),)
        for name, (loss, _) in figures.items()
    }
    return DriftMeasurement(drifts, {name: (took,) for name, (_, took) in figures.items()}, (), {})


FIGURES = st.lists(st.tuples(st.floats(0, 1), st.floats(0.5, 100)), min_size=1, max_size=7)


@given(FIGURES)
def test_a_point_is_best_exactly_where_no_other_is_as_fast_and_as_near_and_better_in_one(
    figures: list[tuple[float, float]],
) -> None:
    named = {f"p{i}": figure for i, figure in enumerate(figures)}
    plans = {name: Plan.narrowest(GROUPS) for name in named}
    points = {point.name: point for point in pareto_points(plans, measurement(named), GROUPS, SCHEME, Plan(()))}
    exact = {name: (points[name].disagreement, took) for name, (_, took) in named.items()}
    for name, (loss, took) in exact.items():
        beaten = any(
            other[0] <= loss and other[1] <= took and (other[0] < loss or other[1] < took) for other in exact.values()
        )
        assert points[name].best == (not beaten)
    assert any(point.best for point in points.values())


def result(steps: int) -> SearchResult:
    plan = Plan.narrowest(GROUPS)
    rows = tuple(Sensitivity(g.name, "int8", Loss(0, 0, 0), severity=(i / 10, 0)) for i, g in enumerate(GROUPS))
    taken = []
    for index in range(steps):
        plan = plan.changed(index, "float32")
        taken.append(Step(f"g{index} raised to float32", plan, 0.0, Verdict(False, "", 1)))
    return SearchResult(plan, True, True, rows, tuple(taken))


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_the_drawn_plans_span_the_whole_way_and_none_is_there_twice(steps: int) -> None:
    found = result(steps)
    plans = choose_plans(found, GROUPS)
    assert len(set(plans.values())) == len(plans) <= 8
    assert {found.plan, Plan.narrowest(GROUPS), Plan.widest(GROUPS)} <= set(plans.values())
    assert len(plans) >= 5
    raised = plans.get("the 1 most sensitive in their widest type")
    assert raised is None or raised.types[-1] == "float32"


def test_the_picture_is_whole_shows_every_plan_and_escapes_its_texts() -> None:
    plans = {"a <b> & c": Plan.narrowest(GROUPS), "wide": Plan.widest(GROUPS)}
    measured = measurement({"a <b> & c": (0.01, 3.0), "wide": (0.0, 9.0)})
    points = pareto_points(plans, measured, GROUPS, SCHEME, Plan.narrowest(GROUPS))
    root = ET.fromstring(pareto_svg(points, 'drift "against" <time>'))
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 3  # two plans, and the ring of the chosen one
    assert any("a <b> & c: 3 ms" in (element.text or "") for element in root.iter())
    assert [row["chosen"] for row in pareto_to_json(points)] == [True, False]


def test_plans_that_are_only_emulated_here_are_ranked_by_their_nominal_time_and_the_picture_says_so() -> None:
    scheme = get_scheme("tensorrt")
    groups = tuple(LayerGroup(f"g{i}", (f"g{i}",), 10**9, 10**5, scheme.types) for i in range(6))
    plans = {"narrow": Plan.narrowest(groups), "wide": Plan.widest(groups)}
    slow_emulation = measurement({"narrow": (0.01, 90.0), "wide": (0.0, 1.0)})
    points = pareto_points(plans, slow_emulation, groups, scheme, plans["narrow"])
    assert [point.name for point in points] == ["narrow", "wide"]
    assert all(point.best for point in points)
    assert "only emulated" in pareto_svg(points, "x")
    assert "only emulated" not in pareto_svg([dataclasses.replace(points[0], emulated=False)], "x")


def test_plans_without_any_drift_are_drawn_on_the_axis() -> None:
    plans = {"one": Plan.narrowest(GROUPS)}
    points = pareto_points(plans, measurement({"one": (0.0, 1.0)}), GROUPS, SCHEME, Plan.widest(GROUPS))
    assert "nan" not in pareto_svg(points, "x")
