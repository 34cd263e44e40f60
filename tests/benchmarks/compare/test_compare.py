"""What changed between two reports, against samples whose change is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_bench.compare import ContenderChange, ReportComparison, compare_reports
from unetx_bench.errors import MeasurementError
from unetx_bench.report import Report, serialize_report
from unetx_bench.statistics import Estimate
from unetx_opt.cli.main import main

ENGINE = "unet fp16 64 x 64 onnxruntime-cpu [engine]"


def by_name(found: ReportComparison) -> dict[str, ContenderChange]:
    return {row.contender: row for row in found.contenders}


def edited(report: Report, edit: Callable[[dict[str, Any]], None]) -> Report:
    data = json.loads(serialize_report(report))
    edit(data)
    return Report.model_validate(data)


def test_two_runs_of_the_same_engines_show_no_regression(made: ModuleType) -> None:
    found = compare_reports(made.make_report(seed=1), made.make_report(seed=2))
    assert found.regressions == ()
    assert {row.verdict for row in found.contenders} == {"same", "the common peer"}
    assert found.confidence == pytest.approx(0.98)


@pytest.mark.parametrize(("factor", "verdict"), [(1.2, "slower"), (0.8, "faster"), (1.0, "same")])
def test_a_planted_change_of_one_engine_is_found_in_that_one_alone(
    factor: float, verdict: str, made: ModuleType
) -> None:
    after = made.make_report(seed=2, factors={"unet-fp16 onnxruntime-cpu": factor})
    found = compare_reports(made.make_report(seed=1), after)
    row = by_name(found)[ENGINE]
    assert row.verdict == verdict
    assert row.change is not None
    assert row.change.low <= factor <= row.change.high
    others = {one.verdict for name, one in by_name(found).items() if "fp16" not in name}
    assert others == {"same", "the common peer"}
    assert bool(found.regressions) == (verdict == "slower")


def test_a_machine_that_became_twice_as_slow_is_no_regression(made: ModuleType) -> None:
    found = compare_reports(made.make_report(seed=1), made.make_report(seed=2, factors={"": 2.0}))
    row = by_name(found)[ENGINE]
    assert row.median_before_ms is not None
    assert row.median_after_ms is not None
    assert row.median_after_ms.value / row.median_before_ms.value == pytest.approx(2, rel=0.1)
    assert row.verdict == "same"
    assert found.regressions == ()


def test_a_slower_peer_is_said_and_is_no_regression_of_the_engines(made: ModuleType) -> None:
    after = made.make_report(seed=2, factors={"unet-fp16 torch-channels-last": 1.5})
    found = compare_reports(made.make_report(seed=1), after)
    assert by_name(found)["unet 64 x 64 torch-channels-last [engine]"].verdict == "slower"
    assert found.regressions == ()


def test_ratios_and_their_change_are_those_of_the_samples(made: ModuleType) -> None:
    reports = [made.make_report(seed=1), made.make_report(seed=2, factors={"unet-fp16 onnxruntime-cpu": 1.1})]
    expected = []
    for report in reports:
        samples = {row.contender: np.array(row.samples_ms) for row in report.latencies}
        expected.append(
            np.median(samples["unet-fp16 onnxruntime-cpu [host]"] / samples["unet-fp16 torch-eager [engine]"])
        )
    row = by_name(compare_reports(*reports))["unet fp16 64 x 64 onnxruntime-cpu [host]"]
    assert row.peer == "torch-eager"
    assert row.ratio_before is not None
    assert row.ratio_after is not None
    assert row.change is not None
    assert row.ratio_before.value == pytest.approx(expected[0], rel=1e-3)
    assert row.ratio_after.value == pytest.approx(expected[1], rel=1e-3)
    assert row.change.value == pytest.approx(expected[1] / expected[0], rel=1e-3)


positive = st.floats(0.01, 100)


@given(
    st.tuples(positive, positive, positive), st.tuples(positive, positive, positive), st.floats(0, 1), st.floats(0, 1)
)
def test_the_interval_of_a_change_holds_every_quotient_of_the_two(
    first: tuple[float, ...], second: tuple[float, ...], at_first: float, at_second: float
) -> None:
    from unetx_bench.compare import _divide

    before, after = (Estimate(sorted(three)[1], min(three), max(three)) for three in (first, second))
    change = _divide(after, before)
    assert change is not None
    quotient = (after.low + at_second * (after.high - after.low)) / (
        before.low + at_first * (before.high - before.low)
    )
    assert change.low * (1 - 1e-9) <= quotient <= change.high * (1 + 1e-9)


def test_a_change_of_just_the_bound_is_rarely_called_a_regression(made: ModuleType) -> None:
    called = 0
    for seed in range(60):
        before = made.make_report(seed=seed, rounds=40)
        after = made.make_report(seed=1000 + seed, rounds=40, factors={"unet-fp16 onnxruntime-cpu": 1.05})
        called += by_name(compare_reports(before, after, 0.05))[ENGINE].verdict == "slower"
    # At most 2 % are expected; 5 or more of 60 would come about in 7 of 1000 such series.
    assert called <= 4


def test_a_bundle_in_a_folder_of_another_name_is_the_same_model(made: ModuleType) -> None:
    after = Report.model_validate_json(
        serialize_report(made.make_report(seed=2)).decode("ascii").replace("unet-fp16", "renamed")
    )
    found = compare_reports(made.make_report(seed=1), after)
    assert by_name(found)[ENGINE].verdict == "same"
    assert found.only_before == found.only_after == found.regressions == ()


def test_an_engine_that_fails_the_gate_it_passed_is_a_regression(made: ModuleType) -> None:
    def fail(data: dict[str, Any]) -> None:
        data["candidates"][0]["drift"]["decision"]["passed"] = False

    before, after = made.make_report(seed=1), edited(made.make_report(seed=1), fail)
    assert compare_reports(before, after).regressions == (
        "unet fp16 64 x 64 onnxruntime-cpu: passed the gate strict, and now fails it",
    )
    assert compare_reports(after, before).regressions == ()


def test_an_engine_that_no_longer_runs_is_a_regression_and_a_missing_peer_is_none(made: ModuleType) -> None:
    def drop(name: str) -> Callable[[dict[str, Any]], None]:
        def edit(data: dict[str, Any]) -> None:
            data["candidates"] = [row for row in data["candidates"] if row["name"] != name]
            data["latencies"] = [row for row in data["latencies"] if row["candidate"] != name]

        return edit

    before = made.make_report(seed=1)
    found = compare_reports(before, edited(before, drop("unet-int8 openvino-cpu")))
    assert found.regressions == ("unet int8 64 x 64 openvino-cpu: no longer runs",)
    assert "unet int8 64 x 64 openvino-cpu [host]" in found.only_before
    found = compare_reports(before, edited(before, drop("unet-fp16 torch-channels-last")))
    assert found.regressions == ()
    # Without PyTorch as it is, the next common peer is the yardstick; without any, nothing is decided.
    without = edited(before, drop("unet-fp16 torch-eager"))
    assert by_name(compare_reports(before, without))[ENGINE].peer == "torch-channels-last"
    with pytest.raises(MeasurementError, match="--peer torch-eager"):
        compare_reports(before, edited(without, drop("unet-fp16 torch-channels-last")))


def test_changes_of_the_machine_and_the_method_are_listed_and_an_older_yardstick_is_warned_of(
    made: ModuleType,
) -> None:
    def change(data: dict[str, Any]) -> None:
        data["environment"]["packages"] = {"torch": "2.1", "openvino": "1"}
        data["environment"]["thread_variables"] = {"OMP_NUM_THREADS": "1"}
        data["method"]["threads"] = 1
        data["bundles"][0]["checkpoint_sha256"] = data["bundles"][1]["checkpoint_sha256"] = "d" * 64

    before = made.make_report(seed=1)
    found = compare_reports(before, edited(before, change))
    assert {(row.what, row.before, row.after) for row in found.environment} == {
        ("packages: torch", "2.0", "2.1"),
        ("packages: onnxruntime", "1.0", None),
        ("packages: openvino", None, "1"),
        ("OMP_NUM_THREADS", None, "1"),
        ("method: threads", "None", "1"),
    }
    assert "the common peer torch-eager may itself have changed: torch 2.0 -> 2.1" in found.notes
    assert "the bundles were made from different weights" in found.notes


def test_clocks_that_see_the_image_are_not_compared_with_another_image(made: ModuleType) -> None:
    def other_image(data: dict[str, Any]) -> None:
        data["image"]["sha256"] = "b" * 64

    before = made.make_report(seed=1)
    found = by_name(compare_reports(before, edited(before, other_image)))
    assert found[ENGINE].verdict == "same"
    assert found[ENGINE.replace("engine", "host")].remark == "the timed images differ"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("bundles", "input_px"), [128, 128], "different models or sizes"),
        (("bundles", "variant"), "focal", "different models or sizes"),
        (("bundles", "flop"), 5, "different models or sizes"),
        (("environment", "cpu"), "Another CPU", "different devices"),
        (("environment", "gpu"), "A GPU", "different devices"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    place: tuple[str, str],
    value: object,
    words: str,
    made: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def change(data: dict[str, Any]) -> None:
        part = data[place[0]]
        for row in part if isinstance(part, list) else [part]:
            row[place[1]] = value

    before = made.make_report(seed=1)
    paths = write(tmp_path, before, edited(before, change))
    assert main(["compare", *paths]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1


def write(folder: Path, *reports: Report) -> list[str]:
    paths = [folder / f"{index}.json" for index in range(len(reports))]
    for path, report in zip(paths, reports, strict=True):
        path.write_bytes(serialize_report(report))
    return [str(path) for path in paths]


@pytest.mark.parametrize(("bound", "code"), [("5%", 3), ("0.05", 3), ("50%", 0)])
def test_the_command_exits_3_on_a_regression_beyond_the_stated_bound(
    bound: str, code: int, made: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = made.make_report(seed=2, factors={"unet-int8 openvino-cpu": 1.3})
    paths = write(tmp_path, made.make_report(seed=1), slow)
    assert main(["compare", *paths, "--bound", bound]) == code
    first = capsys.readouterr().out.splitlines()[0]
    assert first == ("2 regressions:" if code else "no regression beyond 0.5 was found")
    assert main(["compare", *paths, "--bound", bound, "--json"]) == code
    data = json.loads(capsys.readouterr().out)
    assert len(data["regressions"]) == (2 if code else 0)  # by both clocks
    assert {row["contender"] for row in data["contenders"] if row["verdict"] == "slower"} >= (
        {"unet int8 64 x 64 openvino-cpu [engine]"} if code else set()
    )


def test_names_from_a_report_cannot_steer_the_terminal(
    made: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = serialize_report(made.make_report()).decode("ascii").replace("onnxruntime-cpu", "\\u001b[2J\\nonnx")
    report = Report.model_validate_json(text)
    paths = write(tmp_path, report, report)
    for command in ("compare", "history", "fleet"):
        assert main([command, *paths]) == 0
        printed = capsys.readouterr().out
        assert "?[2J?onnx" in printed
        assert "\x1b" not in printed
        assert "\nonnx" not in printed


@pytest.mark.parametrize("bound", ["0", "-5%", "100%", "five", "nan", ""])
def test_a_bound_that_is_no_fraction_is_bad_usage(
    bound: str, made: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *write(tmp_path, *[made.make_report()] * 2), "--bound", bound]) == 2
    assert "no fraction" in capsys.readouterr().err
