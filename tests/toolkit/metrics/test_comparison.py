"""Evaluations read back, compared figure by figure, and refused where they do not belong together."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_opt.errors import DataError
from unetx_opt.metrics.comparison import compare_evaluations, describe_method, parse_evaluation, read_evaluation
from unetx_opt.metrics.paired import PairedOptions, adjust_holm, paired_difference
from unetx_opt.metrics.summary import score_mask, summarize

ORGANS = ("background", "left lung", "heart")
COUNT = 12
QUICK = PairedOptions(resamples=1000, flips=999)


def evaluation(noise: float, seed: int, spacing: tuple[float, float] | None = None) -> dict[str, Any]:
    """A document as the command prints it, of masks in which a share of the pixels is wrong."""
    truths, random = np.random.default_rng(1), np.random.default_rng(seed)
    scores = []
    for index in range(COUNT):
        truth = np.zeros((24, 24), dtype=np.uint8)
        truth[4:12, 3 + index % 3 : 12] = 1
        truth[14:20, 10:20] = 2
        truth = np.where(truths.random(truth.shape) < 0.02, 0, truth).astype(np.uint8)
        wrong = random.random(truth.shape) < noise
        found = np.where(wrong, random.integers(0, 3, truth.shape), truth).astype(np.uint8)
        scores.append(score_mask(f"{index}.png", found, truth, ORGANS, spacing))
    document = {
        "data": "set",
        "split": "test",
        "n": COUNT,
        "data_sha256": "ab",
        **summarize(scores),
        "model": {"variant": "unet"},
        "per_image": [image.to_json() for image in scores],
    }
    read: dict[str, Any] = json.loads(json.dumps(document))
    return read


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return evaluation(0.02, 3)


@pytest.fixture(scope="module")
def poor() -> dict[str, Any]:
    return evaluation(0.10, 4)


def test_every_figure_of_images_and_classes_is_the_paired_difference_of_its_rows(
    good: dict[str, Any], poor: dict[str, Any]
) -> None:
    compared = compare_evaluations(parse_evaluation(good, "a"), {"b": parse_evaluation(poor, "b")})["b"]
    assert (compared["n"], compared["model"]) == (COUNT, {"variant": "unet"})
    assert list(compared["metrics"]) == list(good["metrics"])
    tables = {None: compared["metrics"], **compared["classes"]}
    assert list(tables) == [None, "left lung", "heart"]
    for label, rows in tables.items():
        for figure, row in rows.items():
            first, second = (
                {image["name"]: (image if label is None else image["classes"][label])[figure] for image in side}
                for side in (good["per_image"], poor["per_image"])
            )
            expected = paired_difference(first, second)
            assert row["mean"] == pytest.approx(np.mean(list(first.values())) - np.mean(list(second.values())))
            assert row["ci95"] == [expected.lower, expected.upper]
            assert row["p"] == row["p_holm"] == expected.p_value
            assert (row["n"], row["left_out"]) == (COUNT, 0)
            assert row["candidate"] == pytest.approx(np.mean(list(first.values())))
            assert row["reference"] == pytest.approx(np.mean(list(second.values())))
    assert compared["metrics"]["dice"]["mean"] > 0
    assert compared["metrics"]["assd_px"]["mean"] < 0
    assert compared["metrics"]["dice"]["p"] == 2 / 2**COUNT


def test_the_wilcoxon_p_value_is_that_of_scipy(good: dict[str, Any], poor: dict[str, Any]) -> None:
    stats = pytest.importorskip("scipy.stats")
    row = compare_evaluations(parse_evaluation(good, "a"), {"b": parse_evaluation(poor, "b")}, QUICK)["b"]["metrics"]
    sides = ([image["miou"] for image in side["per_image"]] for side in (good, poor))
    assert row["miou"]["wilcoxon_p"] == pytest.approx(stats.wilcoxon(*sides).pvalue, rel=1e-9)


def test_several_files_are_one_family_of_holm(good: dict[str, Any], poor: dict[str, Any]) -> None:
    others = {"poor": poor, "near": evaluation(0.025, 9), "same": good}
    compared = compare_evaluations(
        parse_evaluation(good, "a"), {key: parse_evaluation(other, key) for key, other in others.items()}
    )
    for figure in good["metrics"]:
        adjusted = adjust_holm({key: compared[key]["metrics"][figure]["p"] for key in others})
        assert {key: compared[key]["metrics"][figure]["p_holm"] for key in others} == adjusted
    assert compared["poor"]["metrics"]["dice"]["p_holm"] == 3 * compared["poor"]["metrics"]["dice"]["p"]
    same = compared["same"]["metrics"]["dice"]
    assert (same["mean"], same["ci95"], same["p"], same["wilcoxon_p"]) == (0.0, [0.0, 0.0], 1.0, 1.0)


def test_images_without_a_distance_are_left_out_and_counted(good: dict[str, Any], poor: dict[str, Any]) -> None:
    holed = copy.deepcopy(poor)
    holed["per_image"][0]["hd95_px"] = None
    holed["per_image"][3]["hd95_px"] = None
    row = compare_evaluations(parse_evaluation(good, "a"), {"b": parse_evaluation(holed, "b")}, QUICK)["b"]
    assert (row["metrics"]["hd95_px"]["n"], row["metrics"]["hd95_px"]["left_out"]) == (COUNT - 2, 2)
    kept = [i for i in range(COUNT) if i not in (0, 3)]
    expected = np.mean([good["per_image"][i]["hd95_px"] - poor["per_image"][i]["hd95_px"] for i in kept])
    assert row["metrics"]["hd95_px"]["mean"] == pytest.approx(expected)
    for image in holed["per_image"][1:]:
        image["hd95_px"] = None
    one = compare_evaluations(parse_evaluation(good, "a"), {"b": parse_evaluation(holed, "b")}, QUICK)["b"]
    nothing = one["metrics"]["hd95_px"]
    assert (nothing["n"], nothing["left_out"], nothing["mean"], nothing["p"]) == (0, COUNT, None, None)
    assert nothing["p_holm"] is None


def test_a_single_image_has_a_difference_and_no_interval(good: dict[str, Any], poor: dict[str, Any]) -> None:
    alone = [{**document, "per_image": document["per_image"][:1]} for document in (good, poor)]
    first, second = (parse_evaluation(document, "x") for document in alone)
    row = compare_evaluations(first, {"b": second})["b"]["metrics"]["dice"]
    assert row["mean"] == pytest.approx(good["per_image"][0]["dice"] - poor["per_image"][0]["dice"])
    assert (row["ci95"], row["p"], row["p_holm"], row["wilcoxon_p"]) == (None, None, None, None)


def test_millimetres_are_compared_where_both_have_them(good: dict[str, Any]) -> None:
    in_mm = parse_evaluation(evaluation(0.02, 3, (0.2, 0.5)), "mm")
    both = compare_evaluations(in_mm, {"b": parse_evaluation(evaluation(0.1, 4, (0.2, 0.5)), "b")}, QUICK)["b"]
    assert both["metrics"]["hd95_mm"]["n"] == COUNT
    one = compare_evaluations(in_mm, {"b": parse_evaluation(good, "b")}, QUICK)["b"]
    assert one["metrics"]["hd95_mm"]["left_out"] == COUNT
    assert (
        "hd95_mm"
        not in compare_evaluations(parse_evaluation(good, "a"), {"b": parse_evaluation(good, "b")})["b"]["metrics"]
    )


def test_a_document_of_an_older_version_is_compared_in_what_it_has(good: dict[str, Any]) -> None:
    older = copy.deepcopy(good)
    older.pop("data_sha256")
    for image in older["per_image"]:
        for figures in (image, *image["classes"].values()):
            for key in ("hd95_mm", "assd_mm"):
                figures.pop(key)
        for figures in image["classes"].values():
            figures.pop("accuracy")
    compared = compare_evaluations(parse_evaluation(good, "a"), {"b": parse_evaluation(older, "b")}, QUICK)["b"]
    assert compared["metrics"]["dice"]["mean"] == 0.0
    assert "accuracy" not in compared["classes"]["heart"]


def change_digest(document: dict[str, Any]) -> None:
    document["data_sha256"] = "cd"


def drop_images(document: dict[str, Any]) -> None:
    del document["per_image"][2:4]


def rename_image(document: dict[str, Any]) -> None:
    document["per_image"][2]["name"] = "new.png"


def drop_class(document: dict[str, Any]) -> None:
    for image in document["per_image"]:
        image["classes"].pop("heart")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_images, r"b lacks 2\.png, 3\.png: compare evaluations of the same images"),
        (rename_image, r"b lacks 2\.png"),
        (drop_class, "b has the classes left lung, a left lung, heart"),
        (change_digest, "b was made from images or masks of the same names and other content"),
    ],
)
def test_evaluations_of_other_data_are_refused(good: dict[str, Any], change: Any, message: str) -> None:
    other = copy.deepcopy(good)
    change(other)
    with pytest.raises(DataError, match=message):
        compare_evaluations(parse_evaluation(good, "a"), {"b": parse_evaluation(other, "b")}, QUICK)


def test_an_extra_image_is_named_as_lacking_here(good: dict[str, Any]) -> None:
    fewer = copy.deepcopy(good)
    drop_images(fewer)
    with pytest.raises(DataError, match=r"a lacks 2\.png, 3\.png"):
        compare_evaluations(parse_evaluation(fewer, "a"), {"b": parse_evaluation(good, "b")}, QUICK)


def damage(document: dict[str, Any], kind: str) -> object:
    document = copy.deepcopy(document)
    rows = document["per_image"]
    if kind == "a list":
        return [document]
    if kind == "no rows":
        document["per_image"] = []
    elif kind == "twice":
        rows[1]["name"] = rows[0]["name"]
    elif kind == "no name":
        rows[1].pop("name")
    elif kind == "text":
        rows[1]["dice"] = "0.9"
    elif kind == "truth value":
        rows[1]["classes"]["heart"]["dice"] = True
    elif kind == "infinite":
        rows[1]["dice"] = math.inf
    elif kind == "ragged":
        rows[1].pop("dice")
    return document


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a list", "has no per_image rows"),
        ("no rows", "has no per_image rows"),
        ("twice", "'0.png' is no image name, or is listed twice"),
        ("no name", "None is no image name"),
        ("text", "1.png has dice = '0.9', expected a finite number"),
        ("truth value", "1.png has dice = True"),
        ("infinite", "1.png has dice = inf"),
        ("ragged", "some images have no dice"),
    ],
)
def test_what_is_no_evaluation_is_named(good: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_evaluation(damage(good, kind), "file")


@pytest.mark.parametrize("text", ["", "{", "[1, NaN]", '{"per_image": Infinity}', "[" * 100_000, "\udcff"])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"x\.json is no JSON"):
        read_evaluation(path)
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        read_evaluation(tmp_path / "nowhere.json")


def test_the_method_is_said_in_words() -> None:
    method = describe_method(PairedOptions(resamples=2000, flips=4999, seed=7))
    assert "2000 resamples, seed 7" in method["ci95"]
    assert "4999 random flips" in method["p"]
