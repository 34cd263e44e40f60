"""From intervals to answers: the rules, and what no interval may bring about."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unetx_bench.reproduce.record import Interval, Verdict
from unetx_bench.reproduce.verdicts import Effect, combine, decide_absence, decide_effect, decide_seeds, widen

YES, NO, OPEN = Verdict.REPRODUCED, Verdict.NOT_REPRODUCED, Verdict.NOT_DECIDABLE
RANK = {NO: 0, OPEN: 1, YES: 2}
numbers = st.floats(-1, 1, allow_nan=False, width=32).map(float)
verdicts = st.sampled_from(list(Verdict))


@st.composite
def effects(draw: st.DrawFn) -> Effect:
    low, value, high = sorted(draw(st.tuples(numbers, numbers, numbers)))
    return Effect(
        Interval(value=value, low=low, high=high),
        draw(numbers),
        draw(st.none() | numbers),
        raises=draw(st.booleans()),
    )


def moved(effect: Effect, by: float) -> Effect:
    old = effect.estimate
    assert old.low is not None
    assert old.high is not None
    new = Interval(value=old.value + by, low=old.low + by, high=old.high + by)
    return Effect(new, effect.null, effect.printed, raises=effect.raises)


@pytest.mark.parametrize(
    ("low", "high", "printed", "expected"),
    [
        (0.001, 0.002, 0.03, YES),
        (0.001, 0.05, 0.03, YES),
        (-0.001, 0.002, 0.03, NO),
        (-0.001, 0.03, 0.03, OPEN),
        (-0.001, 0.05, 0.03, OPEN),
        (-0.05, -0.001, 0.03, NO),
        (0.0, 0.0, 0.03, NO),
        (-0.001, 0.002, None, OPEN),
        (-0.002, 0.0, None, NO),
        (0.0, 0.002, None, OPEN),
        (-0.001, 0.002, -0.03, OPEN),
    ],
)
def test_a_claimed_rise_is_decided_by_its_interval(
    low: float, high: float, printed: float | None, expected: Verdict
) -> None:
    effect = Effect(Interval(value=(low + high) / 2, low=low, high=high), 0.0, printed, raises=True)
    assert decide_effect(effect) is expected


@given(effects())
def test_nothing_is_reproduced_whose_interval_contains_no_effect(effect: Effect) -> None:
    estimate = effect.estimate
    assert estimate.low is not None
    assert estimate.high is not None
    if estimate.low <= effect.null <= estimate.high:
        assert decide_effect(effect) is not YES
    elif decide_effect(effect) is YES:
        assert (estimate.value > effect.null) is effect.raises


@given(effects(), st.floats(0, 2))
def test_more_of_the_claimed_effect_never_makes_the_answer_worse(effect: Effect, by: float) -> None:
    further = moved(effect, by if effect.raises else -by)
    assert RANK[decide_effect(further)] >= RANK[decide_effect(effect)]


@given(effects())
def test_a_fall_is_decided_as_the_rise_of_its_negative(effect: Effect) -> None:
    old = effect.estimate
    assert old.low is not None
    assert old.high is not None
    mirrored = Interval(value=-old.value, low=-old.high, high=-old.low)
    printed = None if effect.printed is None else -effect.printed
    other = Effect(mirrored, -effect.null, printed, raises=not effect.raises)
    assert decide_effect(other) is decide_effect(effect)
    assert decide_absence(other) is decide_absence(effect)


@given(effects())
def test_an_absence_is_never_shown_while_the_printed_effect_is_possible(effect: Effect) -> None:
    estimate = effect.estimate
    assume(effect.printed is not None)
    assert effect.printed is not None
    assert estimate.low is not None
    assert estimate.high is not None
    if estimate.low <= effect.printed <= estimate.high:
        assert decide_absence(effect) is not YES


@given(effects(), st.floats(0, 2))
def test_more_of_an_effect_never_makes_its_absence_likelier(effect: Effect, by: float) -> None:
    further = moved(effect, by if effect.raises else -by)
    assert RANK[decide_absence(further)] <= RANK[decide_absence(effect)] or decide_absence(effect) is OPEN
    if decide_absence(effect) is NO:
        assert decide_absence(further) is NO


def test_without_bounds_nothing_is_decided() -> None:
    effect = Effect(Interval(value=0.5, low=None, high=None), 0.0, 0.1, raises=True)
    assert decide_effect(effect) is OPEN
    assert decide_absence(effect) is OPEN


@given(st.lists(verdicts, min_size=1), st.randoms())
def test_a_claim_of_parts_is_reproduced_where_all_are_and_not_where_one_is_not(
    parts: list[Verdict], random: object
) -> None:
    answer = combine(parts)
    assert (answer is YES) == (set(parts) == {YES})
    assert (answer is NO) == (NO in parts)
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert combine(parts) is answer


def test_a_claim_without_parts_is_not_decidable() -> None:
    assert combine([]) is OPEN


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([3, 4, 5], [0, 1, 2], YES),
        ([0, 1, 2], [3, 4, 5], NO),
        ([0, 1, 2], [2, 3, 4], NO),
        ([1, 2, 3], [0, 1, 2], OPEN),
        ([3, 4], [0, 1, 2], OPEN),
        ([], [], OPEN),
    ],
)
def test_seeds_decide_only_where_three_of_each_lie_apart(
    first: list[float], second: list[float], expected: Verdict
) -> None:
    assert decide_seeds(first, second) is expected


@given(effects(), st.floats(0.5, 1), st.floats(1, 2))
def test_noise_opens_answers_and_never_turns_one_into_its_opposite(effect: Effect, low: float, high: float) -> None:
    old = effect.estimate
    assert old.low is not None
    assert old.high is not None
    ratio = Interval(value=old.value + 2, low=old.low + 2, high=old.high + 2)
    printed = None if effect.printed is None else effect.printed + 2
    plain = Effect(ratio, effect.null + 2, printed, raises=effect.raises)
    noisy = Effect(widen(ratio, low, high), effect.null + 2, printed, raises=effect.raises)
    assert RANK[decide_effect(noisy)] <= RANK[decide_effect(plain)] or decide_effect(noisy) is OPEN
    if decide_effect(plain) is NO:
        assert decide_effect(noisy) is not YES


def test_what_has_no_bounds_cannot_be_widened() -> None:
    ratio = Interval(value=0.9, low=None, high=None)
    assert widen(ratio, 0.9, 1.1) is ratio
