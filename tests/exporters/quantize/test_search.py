"""The search over layer types, on a made-up network whose best plan can be found by trying every one."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_exporters.quantize.candidates import SCHEMES, LayerGroup, Plan, get_scheme, list_groups, plan_cost
from unetx_exporters.quantize.search import SearchOptions, SearchProblem, SearchResult, search_plan
from unetx_exporters.quantize.sensitivity import Loss, Verdict
from unetx_exporters.quantize.state import SearchState, search_folder
from unetx_opt.errors import SpecError


def make_groups(operations: tuple[int, ...], scheme: str = "cpu") -> tuple[LayerGroup, ...]:
    types = get_scheme(scheme).types
    return tuple(LayerGroup(f"g{i}", (f"g{i}",), ops * 10**9, 10**5, types) for i, ops in enumerate(operations))


class AdditiveJudge:
    """Each group loses something in each type; the gate allows a sum. Stands in for a network and its images."""

    def __init__(self, losses: list[dict[str, float]], limit: float) -> None:
        self.losses, self.limit, self.asked = losses, limit, []

    def total(self, plan: Plan) -> float:
        return sum(loss[dtype] for loss, dtype in zip(self.losses, plan.types, strict=True))

    def proxy(self, plan: Plan) -> Loss:
        total = self.total(plan)
        return Loss(float(math.isinf(total)), min(total, 1.0), total)

    def gate(self, plan: Plan, *, complete: bool = False) -> Verdict:
        self.asked.append(plan)
        passed = self.total(plan) <= self.limit
        return Verdict(passed, "" if passed else f"loses {self.total(plan):g}", 1)


def search(judge: AdditiveJudge, groups: tuple[LayerGroup, ...], scheme: str, **options: object) -> SearchResult:
    problem = SearchProblem(groups, get_scheme(scheme), judge, minimum_share=options.pop("share", 0.0))  # type: ignore[arg-type]
    return search_plan(problem, SearchOptions(**options))  # type: ignore[arg-type]


LOSSES = st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.05, 0.2, math.inf])


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, tuple[LayerGroup, ...], list[dict[str, float]], float]:
    scheme = draw(st.sampled_from(sorted(SCHEMES)))
    count = draw(st.integers(1, 5))
    groups = make_groups(tuple(draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))), scheme)
    losses = []
    for _ in range(count):
        narrow = draw(LOSSES)
        losses.append({"int8": narrow, "float16": draw(LOSSES.filter(lambda x: x <= narrow)), "float32": 0.0})  # noqa: B023
    return scheme, groups, losses, draw(st.sampled_from([0.0, 0.011, 0.03, 0.1]))


@given(networks())
def test_a_found_plan_passes_and_no_single_layer_can_be_lowered_any_more(
    network: tuple[str, tuple[LayerGroup, ...], list[dict[str, float]], float],
) -> None:
    name, groups, losses, limit = network
    judge, scheme = AdditiveJudge(losses, limit), get_scheme(name)
    result = search(judge, groups, name)
    assert result.passed
    assert result.finished
    assert judge.total(result.plan) <= limit
    for index, dtype in itertools.product(range(len(groups)), scheme.types):
        other = result.plan.changed(index, dtype)
        if plan_cost(other, groups, scheme) < plan_cost(result.plan, groups, scheme):
            assert judge.total(other) > limit


@given(networks())
def test_the_cost_is_near_that_of_the_best_of_all_plans(
    network: tuple[str, tuple[LayerGroup, ...], list[dict[str, float]], float],
) -> None:
    name, groups, losses, limit = network
    judge, scheme = AdditiveJudge(losses, limit), get_scheme(name)
    result = search(judge, groups, name)
    plans = [Plan(types) for types in itertools.product(scheme.types, repeat=len(groups))]
    best = min(plan_cost(plan, groups, scheme) for plan in plans if judge.total(plan) <= limit)
    widest = plan_cost(Plan.widest(groups), groups, scheme)
    narrowest = plan_cost(Plan.narrowest(groups), groups, scheme)
    assert best <= plan_cost(result.plan, groups, scheme) * (1 + 1e-12)
    # A local optimum: a bound on how much of the possible saving it may give away.
    assert plan_cost(result.plan, groups, scheme) - best <= 0.5 * (widest - narrowest) + 1e-15


def test_only_the_sensitive_layer_is_raised() -> None:
    losses = [{"int8": loss, "float32": 0.0} for loss in (0.001, 0.002, 0.5, 0.001)]
    result = search(AdditiveJudge(losses, 0.01), make_groups((1, 1, 1, 1)), "cpu")
    assert result.plan.types == ("int8", "int8", "float32", "int8")
    assert [row.group for row in sorted(result.sensitivities, key=lambda row: row.severity)][-1] == "g2"


def test_a_layer_that_float16_does_not_help_goes_to_float32_at_once() -> None:
    losses = [{"int8": math.inf, "float16": math.inf, "float32": 0.0}, {"int8": 0.0, "float16": 0.0, "float32": 0.0}]
    judge = AdditiveJudge(losses, 0.01)
    result = search(judge, make_groups((1, 5), "tensorrt"), "tensorrt")
    assert result.plan.types == ("float32", "int8")
    assert Plan(("float16", "int8")) not in judge.asked[:2]


def test_a_layer_is_lowered_again_once_others_have_made_room() -> None:
    # Alone the first layer looks worst; together with the second, any one of the two is enough.
    losses = [{"int8": 0.06, "float32": 0.0}, {"int8": 0.05, "float32": 0.0}, {"int8": 0.04, "float32": 0.0}]
    result = search(AdditiveJudge(losses, 0.06), make_groups((1, 1, 9)), "cpu")
    assert result.plan.types == ("float32", "float32", "int8")


def test_an_exchange_finds_a_cheaper_layer_to_raise() -> None:
    # The most sensitive layer is dear; raising the cheap one is enough as well.
    losses = [{"int8": 0.06, "float32": 0.0}, {"int8": 0.05, "float32": 0.0}]
    result = search(AdditiveJudge(losses, 0.06), make_groups((9, 1)), "cpu")
    assert result.plan.types == ("int8", "float32")
    assert any("in place of" in step.action for step in result.steps)


def test_too_little_left_in_int8_is_no_result() -> None:
    losses = [{"int8": 0.5, "float32": 0.0}, {"int8": 0.0, "float32": 0.0}]
    result = search(AdditiveJudge(losses, 0.1), make_groups((9, 1)), "cpu", share=0.5)
    assert not result.passed
    assert result.finished


def test_a_spent_budget_ends_the_search_and_says_so() -> None:
    losses = [{"int8": 0.5, "float32": 0.0}] * 4
    answers = iter([False, False, True])
    result = search(AdditiveJudge(losses, 0.1), make_groups((1, 1, 1, 1)), "cpu", expired=lambda: next(answers))
    assert not result.passed
    assert not result.finished
    assert len(result.steps) == 3


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_takes_the_same_steps(seed: int) -> None:
    losses = [{"int8": 0.01 * (i + 1), "float32": 0.0} for i in range(6)]
    first, second = (
        search(AdditiveJudge(losses, 0.05), make_groups((3, 1, 4, 1, 5, 9)), "cpu", seed=seed) for _ in range(2)
    )
    assert first == second


def test_a_search_that_was_interrupted_measures_nothing_twice(tmp_path: Path) -> None:
    path, calls = tmp_path / "x.search" / "cpu.json", []

    def measure(key: str) -> dict[str, float]:
        calls.append(key)
        return {"value": math.inf if key == "b" else 1.5}

    state = SearchState(path, "fingerprint")
    assert [state.recall(key, lambda key=key: measure(key))["value"] for key in "aba"] == [1.5, math.inf, 1.5]
    resumed = SearchState(path, "fingerprint")
    assert resumed.resumed == 2
    assert [resumed.recall(key, lambda key=key: measure(key))["value"] for key in "abc"] == [1.5, math.inf, 1.5]
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"schema_version": 1, "fingerprint": "other", "found": {"a": {"value": 1}}}',
        b'{"schema_version": 9, "fingerprint": "mine", "found": {"a": {"value": 1}}}',
        b'{"schema_version": 1, "fingerprint": "mine", "found": {"a": {"float": "x"}}}',
        b"[" * 100_000,
    ],
    ids=["empty", "list", "cut off", "other inputs", "other schema", "no number", "nested"],
)
def test_a_state_of_other_inputs_or_a_broken_one_is_not_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    state = SearchState(path, "mine")
    assert state.recall("a", lambda: {"value": 2})["value"] == 2
    assert json.loads(path.read_bytes())["found"] == {"a": {"value": 2}}


def test_the_folder_of_a_search_stands_beside_the_output(tmp_path: Path) -> None:
    folder = search_folder(tmp_path / "unet.unetx")
    assert folder == tmp_path / "unet.unetx.search"
    SearchState(folder / "cpu.json", "x").recall("a", lambda: {"value": 1})
    SearchState.discard(folder)
    SearchState.discard(folder)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scheme_lists_those_there_are() -> None:
    with pytest.raises(SpecError, match="choose from cpu, tensorrt"):
        get_scheme("npu")


def test_groups_are_the_layers_that_read_the_same_tensor(tiny_unet: object) -> None:
    model = tiny_unet()  # type: ignore[operator]
    groups = list_groups(model, get_scheme("cpu"))
    assert [group.layers for group in groups] == [("down",), ("bottom",), ("up",), ("merge",), ("head",)]
    down = groups[0]
    assert down.operations == 2 * 9 * 4 * 32 * 32
    assert down.elements == 32 * 32 * (1 + 4)
    nodes = list(model.graph.node)
    place = next(index for index, node in enumerate(nodes) if node.name == "bottom")
    twin = type(nodes[place])()
    twin.CopyFrom(nodes[place])
    twin.name, twin.output[0] = "twin", "twin.out"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: place + 1], twin, *nodes[place + 1 :]])
    assert [group.layers for group in list_groups(model, get_scheme("cpu"))][1] == ("bottom", "twin")


def test_layers_without_integer_arithmetic_begin_in_the_next_type_and_overflow_takes_its_followers_along(
    tiny_unet: object,
) -> None:
    groups = list_groups(tiny_unet(), get_scheme("tensorrt"))  # type: ignore[operator]
    up = next(index for index, group in enumerate(groups) if group.name == "up")
    assert groups[up].types == ("float16", "float32")
    plan = Plan.narrowest(groups)
    assert plan.types[up] == "float16"
    assert plan.layer_types(groups).keys() == {layer for group in groups for layer in group.layers}
    wide = plan.changed(0, "float32").layer_types(groups)
    assert {name for name, dtype in wide.items() if dtype == "float32"} == {"down", "down.relu", "pool", "join"}
