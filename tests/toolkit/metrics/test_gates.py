"""Gate limits, each rule by itself, and the property that nothing passes by getting worse."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.errors import DataError, GateError
from unetx_opt.metrics.gate_rules import COMPARISONS, RULES, upper_percentile
from unetx_opt.metrics.gates import (
    GATES,
    MINIMUM_IMAGES,
    ComparedMasks,
    ImageDrift,
    decide_gate,
    decision_to_json,
    drift_of,
    drift_to_json,
    explain_failure,
)


def same_as_reference(index: int, **changes) -> ImageDrift:
    """Make an image on which the engine is its reference, but for the changes."""
    unchanged = ImageDrift(f"image-{index}", "lungs", 0.95, 0.95, 1.0, 0.0, False, False)
    return dataclasses.replace(unchanged, **changes)


def images(count: int = 24, changed: int = 0, **changes) -> list[ImageDrift]:
    """Make `count` images, the first `changed` of them with the changes."""
    return [same_as_reference(index, **(changes if index < changed else {})) for index in range(count)]


def failed_rules(gate: str, drifts: list[ImageDrift]) -> set[str]:
    return {row.rule for row in decide_gate(gate, drifts).failures}


def test_the_limits_are_those_of_the_specification():
    limits = {
        name: (row.mean_dice_kept, row.dice_lower_bound, row.worst_dice_difference, row.hausdorff_shift_px)
        for name, row in GATES.items()
    }
    assert limits == {"strict": (0.999, -0.001, -0.01, 1.0), "standard": (0.99, -0.005, -0.03, 3.0)}
    assert all(row.name == name for name, row in GATES.items())
    with pytest.raises(TypeError):
        GATES["strict"] = GATES["standard"]  # type: ignore[index]


@pytest.mark.parametrize("gate", GATES)
def test_an_engine_that_equals_its_reference_passes(gate):
    decision = decide_gate(gate, images())
    assert decision.passed and not decision.failures
    assert [row.value for row in decision.rows] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert all(row.worst_image is None for row in decision.rows)
    assert (decision.mean_agreement, decision.worst_agreement) == (1.0, 1.0)


# Each row breaks one rule of the strict gate and keeps every other one.
ONE_RULE = {
    # A ratio of means can fail alone where the reference itself scores low.
    "mean_dice_kept": images(24, 24, dice_reference_vs_truth=0.5, dice_engine_vs_truth=0.4993),
    # Four images lose 0.0049: the mean loses 0.0008, and what the images spread pushes the bound below -0.001.
    "dice_lower_bound": images(24, 4, dice_engine_vs_truth=0.9451),
    "worst_dice_difference": images(40, 1, dice_engine_vs_truth=0.939),
    "hausdorff_shift_px": images(24, 2, hausdorff_shift_px=1.5),
    # The reference sees what is not there and the engine does not: its score rises.
    "empty_mask": images(
        24,
        1,
        dice_reference_vs_truth=0.0,
        dice_engine_vs_truth=1.0,
        dice_engine_vs_reference=0.0,
        hausdorff_shift_px=math.inf,
        engine_empty=True,
    ),
    "non_finite": images(24, 1, non_finite_logits=1),
}


@pytest.mark.parametrize("rule", ONE_RULE)
def test_each_rule_fails_a_gate_by_itself(rule):
    decision = decide_gate("strict", ONE_RULE[rule])
    assert [row.rule for row in decision.failures] == [rule]
    assert not decision.passed
    assert decision.failures[0].worst_image == "image-0"


def test_every_rule_is_shown_to_fail():
    assert set(ONE_RULE) == {rule.name for rule in RULES}


# Just on, and just beyond, each limit: (gate, count, changed images, changes that keep it, changes that break it).
STANDARD_LIMITS = {
    "mean_dice_kept": (
        24,
        {"dice_reference_vs_truth": 0.4, "dice_engine_vs_truth": 0.3961},
        {"dice_reference_vs_truth": 0.4, "dice_engine_vs_truth": 0.3959},
    ),
    "dice_lower_bound": (24, {"dice_engine_vs_truth": 0.9451}, {"dice_engine_vs_truth": 0.9449}),
    "worst_dice_difference": (1, {"dice_engine_vs_truth": 0.9201}, {"dice_engine_vs_truth": 0.9199}),
    "hausdorff_shift_px": (24, {"hausdorff_shift_px": 3.0}, {"hausdorff_shift_px": math.nextafter(3.0, 4.0)}),
}


@pytest.mark.parametrize("rule", STANDARD_LIMITS)
def test_the_standard_gate_decides_at_its_limit(rule):
    changed, kept, broken = STANDARD_LIMITS[rule]
    assert rule not in failed_rules("standard", images(24, changed, **kept))
    assert rule in failed_rules("standard", images(24, changed, **broken))


def test_limits_themselves_are_kept_and_the_lower_bound_is_strict():
    on_limit = images(24, 24, hausdorff_shift_px=1.0)
    assert "hausdorff_shift_px" not in failed_rules("strict", on_limit)
    comparisons = {rule.name: COMPARISONS[rule.comparison](0.5, 0.5) for rule in RULES}
    assert [name for name, kept in comparisons.items() if not kept] == ["dice_lower_bound"]
    assert not any(compare(math.nan, 0.5) for compare in COMPARISONS.values())


def test_one_outlier_in_21_images_does_not_decide_the_boundary_and_two_do():
    assert failed_rules("strict", images(21, 1, hausdorff_shift_px=50.0)) == set()
    assert failed_rules("strict", images(21, 2, hausdorff_shift_px=50.0)) == {"hausdorff_shift_px"}


def test_too_few_images_are_an_error_that_says_how_many_are_needed():
    assert upper_percentile(range(MINIMUM_IMAGES)) == MINIMUM_IMAGES - 2
    assert upper_percentile(range(MINIMUM_IMAGES - 1)) == MINIMUM_IMAGES - 2  # the maximum itself
    with pytest.raises(GateError, match="at least 21 images to decide on a 95th percentile, got 20: add 1 more"):
        decide_gate("strict", images(20))
    with pytest.raises(GateError, match="got 0") as caught:
        decide_gate("standard", [])
    assert caught.value.exit_code == 3


def test_a_model_that_finds_nothing_does_not_pass():
    nothing = images(24, 24, reference_empty=True, engine_empty=True)
    with pytest.raises(GateError, match="class lungs was found in 0 of 24 images, a gate needs it in at least 21"):
        decide_gate("strict", nothing)


@pytest.mark.parametrize(
    ("reference_empty", "engine_empty", "mismatches"),
    [(False, True, 1.0), (True, False, 1.0), (True, True, 0.0)],
    ids=["engine emptied", "engine filled", "both empty"],
)
def test_an_empty_mask_must_be_empty_on_both_sides(reference_empty, engine_empty, mismatches):
    one = images(24, 1, reference_empty=reference_empty, engine_empty=engine_empty)
    row = next(row for row in decide_gate("strict", one).rows if row.rule == "empty_mask")
    assert (row.value, row.passed) == (mismatches, mismatches == 0.0)


def test_images_without_the_class_do_not_count_towards_the_minimum():
    enough = images(24, 3, reference_empty=True, engine_empty=True)
    assert decide_gate("strict", enough).passed
    with pytest.raises(GateError, match="found in 20 of 24 images"):
        decide_gate("strict", images(24, 4, reference_empty=True, engine_empty=True))
    # What only the engine finds is there to be judged.
    assert not decide_gate("strict", images(24, 4, reference_empty=True, engine_empty=False)).passed


@given(st.lists(st.floats(0, 100) | st.just(math.inf), min_size=1, max_size=120), st.integers(0, 100))
def test_the_percentile_is_numpys_higher(values, percent):
    exact_rank = percent * (len(values) - 1) / 100
    if abs(exact_rank - round(exact_rank)) < 1e-9:
        expected = sorted(values)[round(exact_rank)]  # numpy's rank carries the rounding of percent / 100
    else:
        expected = np.percentile(values, percent, method="higher")
    assert upper_percentile(values, percent) == expected


def test_without_a_truth_the_reference_is_the_truth():
    no_truth = {"dice_reference_vs_truth": None, "dice_engine_vs_truth": None}
    decision = decide_gate("strict", images(24, 24, **no_truth, dice_engine_vs_reference=0.9995))
    assert decision.passed and not decision.has_truth
    assert decision.rows[0].value == pytest.approx(0.9995)
    worse = decide_gate("strict", images(24, 24, **no_truth, dice_engine_vs_reference=0.998))
    assert {row.rule for row in worse.failures} == {"mean_dice_kept", "dice_lower_bound"}


def test_agreement_is_reported_even_where_the_engine_scores_better():
    lucky = images(24, 24, dice_engine_vs_truth=0.99, dice_engine_vs_reference=0.9)
    lucky[5] = dataclasses.replace(lucky[5], dice_engine_vs_reference=0.8)
    decision = decide_gate("strict", lucky)
    assert decision.passed
    assert decision.mean_agreement == pytest.approx((23 * 0.9 + 0.8) / 24)
    assert (decision.worst_agreement, decision.worst_agreement_image) == (0.8, "image-5")


def test_each_class_is_decided_by_itself():
    hearts = [dataclasses.replace(drift, class_name="heart") for drift in images(24, 2, hausdorff_shift_px=9.0)]
    decision = decide_gate("strict", [*images(), *hearts])
    assert decision.class_names == ("lungs", "heart")
    assert decision.image_count == 24
    assert [(row.rule, row.class_name) for row in decision.failures] == [("hausdorff_shift_px", "heart")]


def drift_lists() -> st.SearchStrategy[list[ImageDrift]]:
    scores = st.floats(0.9, 1.0)
    drift = st.builds(
        dict,
        dice_reference_vs_truth=scores,
        dice_engine_vs_truth=scores,
        hausdorff_shift_px=st.floats(0.0, 4.0),
        engine_empty=st.sampled_from([False] * 30 + [True]),
    )
    return st.lists(drift, min_size=21, max_size=26).map(
        lambda rows: [same_as_reference(index, **row) for index, row in enumerate(rows)]
    )


@given(drift_lists(), st.data())
def test_making_one_image_worse_never_turns_a_fail_into_a_pass(drifts, data):
    index = data.draw(st.integers(0, len(drifts) - 1))
    before = drifts[index]
    worse = dataclasses.replace(
        before,
        dice_engine_vs_truth=before.dice_engine_vs_truth * data.draw(st.floats(0.0, 1.0)),
        dice_engine_vs_reference=before.dice_engine_vs_reference * data.draw(st.floats(0.0, 1.0)),
        hausdorff_shift_px=before.hausdorff_shift_px + data.draw(st.floats(0.0, 50.0)),
        engine_empty=before.engine_empty or data.draw(st.booleans()),
        non_finite_logits=data.draw(st.integers(0, 2)),
    )
    for gate in GATES:
        earlier = decide_gate(gate, drifts)
        later = decide_gate(gate, [*drifts[:index], worse, *drifts[index + 1 :]])
        assert earlier.passed or not later.passed
        for row, worse_row in zip(earlier.rows, later.rows, strict=True):
            assert row.passed or not worse_row.passed, row.rule


@given(drift_lists(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_changes_no_decision(drifts, random):
    shuffled = random.sample(drifts, len(drifts))
    before, after = decide_gate("standard", drifts), decide_gate("standard", shuffled)
    assert [row.passed for row in before.rows] == [row.passed for row in after.rows]
    assert [row.value for row in after.rows] == pytest.approx([row.value for row in before.rows])


@given(drift_lists())
def test_what_passes_strict_passes_standard(drifts):
    assert decide_gate("standard", drifts).passed or not decide_gate("strict", drifts).passed


@pytest.mark.parametrize(
    ("drifts", "message"),
    [
        ([*images(), same_as_reference(3)], "image image-3 is there twice for class lungs"),
        ([*images(), same_as_reference(3, class_name="heart")], "class heart and another differ in image image-0"),
        (
            images(24, 1, dice_reference_vs_truth=None, dice_engine_vs_truth=None),
            "23 of 24 results have a ground truth",
        ),
        (
            images(24, 24, dice_reference_vs_truth=0.0, dice_engine_vs_truth=0.0),
            "the reference scores a mean Dice of 0 for class lungs",
        ),
    ],
    ids=["repeated image", "other images per class", "truth for some", "useless reference"],
)
def test_results_that_decide_nothing_are_an_error(drifts, message):
    with pytest.raises(GateError, match=message):
        decide_gate("strict", drifts)


def test_an_unknown_gate_lists_the_known_ones():
    with pytest.raises(GateError, match="unknown gate 'lenient', expected one of strict, standard"):
        decide_gate("lenient", images())


def test_a_failure_says_which_rule_by_how_much_and_on_which_image():
    text = explain_failure(decide_gate("strict", ONE_RULE["worst_dice_difference"]))
    assert text == (
        "gate strict fails on 40 images: lungs: Dice difference of the worst single image is -0.011, "
        "expected >= -0.01, off by 0.001 (image image-0)"
    )


def test_a_failure_of_many_rules_can_be_cut_to_the_first_and_counts_the_others():
    decision = decide_gate("strict", images(24, 3, dice_engine_vs_truth=0.5, hausdorff_shift_px=9.0))
    assert len(decision.failures) == 4
    whole, cut = explain_failure(decision), explain_failure(decision, shown=1)
    assert whole.count("off by") == 4
    assert whole.startswith(cut.removesuffix("; and 3 more"))
    assert cut.endswith("; and 3 more") and cut.count("off by") == 1
    assert explain_failure(decision, shown=4) == whole


def test_decisions_and_drifts_are_plain_json_without_infinity():
    decision = decide_gate("strict", images(24, 3, hausdorff_shift_px=math.inf))
    text = json.dumps(decision_to_json(decision), allow_nan=False)
    row = json.loads(text)["rows"][3]
    assert row["rule"] == "hausdorff_shift_px" and row["value"] is None and row["passed"] is False
    drift = json.loads(json.dumps(drift_to_json(images(1, 1, hausdorff_shift_px=math.inf)[0]), allow_nan=False))
    assert drift["hausdorff_shift_px"] is None and drift["score_difference"] == 0.0


def test_masks_become_a_drift():
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 10:30] = 1
    engine = np.roll(truth, 2, axis=0)
    drift = drift_of("one", "lungs", ComparedMasks(truth, engine, truth), max_logit_difference=0.5)
    assert drift.dice_reference_vs_truth == 1.0
    assert drift.dice_engine_vs_truth == drift.dice_engine_vs_reference == pytest.approx(0.9)
    assert drift.score_difference == pytest.approx(-0.1)
    assert drift.hausdorff_shift_px == 2.0
    assert drift.max_logit_difference == 0.5 and not drift.is_broken


def test_an_emptied_mask_is_broken_and_the_most_severe():
    mask, empty = np.ones((5, 5), bool), np.zeros((5, 5), bool)
    emptied = drift_of("emptied", "lungs", ComparedMasks(mask, empty))
    assert emptied.is_broken and emptied.engine_empty and emptied.hausdorff_shift_px == math.inf
    assert emptied.severity > same_as_reference(0, dice_engine_vs_reference=0.1).severity


@pytest.mark.parametrize(
    "changes",
    [
        {"dice_engine_vs_truth": None},
        {"dice_engine_vs_truth": math.nan},
        {"dice_engine_vs_reference": 1.01},
        {"hausdorff_shift_px": math.nan},
        {"hausdorff_shift_px": -1.0},
    ],
    ids=["half a truth", "NaN score", "score above 1", "NaN shift", "negative shift"],
)
def test_impossible_figures_are_refused(changes):
    with pytest.raises(DataError, match="image image-0"):
        same_as_reference(0, **changes)
