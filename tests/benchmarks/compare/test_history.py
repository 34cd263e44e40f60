"""One machine over many reports, and many machines beside one another."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unetx_bench.errors import MeasurementError
from unetx_bench.history import list_fleet, list_trends, read_reports
from unetx_bench.report import Report, serialize_report
from unetx_opt.cli.main import main

pytest.importorskip("jinja2", reason="pages need jinja2: pip install 'unetx-opt[bench]'")
KEY = "unet fp16 64 x 64 onnxruntime-cpu [engine]"


def month(made: ModuleType, number: int, **settings: Any) -> Report:
    report: Report = made.make_report(seed=number, created=f"2026-{number:02}-01T00:00:00Z", **settings)
    return report


def test_a_trend_follows_the_engine_and_not_the_machine(made: ModuleType) -> None:
    planted = [1.0, 1.0, 1.0, 1.25, 1.25]
    reports = [
        (f"r{index}", month(made, index + 1, factors={"unet-fp16 onnxruntime-cpu": factor, "": 1 + index / 2}))
        for index, factor in enumerate(planted)
    ]
    random.Random(0).shuffle(reports)
    trend = next(one for one in list_trends(reports) if str(one.key) == KEY)
    assert trend.peer == "torch-eager"
    assert [row.source for row in trend.rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert [row.ratio.value for row in trend.rows] == pytest.approx(
        [factor * 40 / 90 for factor in planted], rel=0.02
    )
    medians = [row.median_ms.value for row in trend.rows if row.median_ms is not None]
    assert medians == sorted(medians), "the machine became slower from run to run"
    assert trend.change is not None
    assert trend.change.low <= 1.25 <= trend.change.high
    assert trend.change.low > 1.2


def test_a_single_run_has_no_change(made: ModuleType) -> None:
    assert {trend.change for trend in list_trends([("one", made.make_report())])} == {None}


def test_runs_with_another_image_count_for_the_engine_alone(made: ModuleType) -> None:
    data = json.loads(serialize_report(month(made, 1)))
    data["image"]["sha256"] = "b" * 64
    reports = [("old", Report.model_validate(data)), ("new", month(made, 2)), ("newest", month(made, 3))]
    counts = {str(trend.key): len(trend.rows) for trend in list_trends(reports)}
    assert counts[KEY] == 3
    assert counts[KEY.replace("engine", "host")] == 2


def test_a_history_of_two_machines_is_refused(made: ModuleType) -> None:
    with pytest.raises(MeasurementError, match="unetx-opt fleet"):
        list_trends([("a", made.make_report()), ("b", made.make_report(cpu="Another"))])


def test_a_history_without_any_peer_is_refused(made: ModuleType) -> None:
    with pytest.raises(MeasurementError, match="--peer torch-eager"):
        list_trends([("short", made.make_report(rounds=3))])


def test_a_fleet_shows_the_latest_report_of_each_workstation_the_fastest_first(made: ModuleType) -> None:
    rows = list_fleet(
        [
            ("slow", month(made, 3, cpu="Slow CPU", factors={"": 3.0})),
            ("fast", month(made, 2, cpu="Fast CPU", factors={"": 0.5})),
            ("fast", month(made, 1, cpu="Fast CPU", factors={"": 9.0})),
        ]
    )
    assert [(row.model, row.workstation, row.created[:7]) for row in rows] == [
        ("unet fp16 64 x 64", "fast", "2026-02"),
        ("unet fp16 64 x 64", "slow", "2026-03"),
        ("unet int8 64 x 64", "fast", "2026-02"),
        ("unet int8 64 x 64", "slow", "2026-03"),
    ]
    speeds = [row.standing.speedup.value for row in rows if row.standing and row.standing.speedup]
    # Within each run: the workstation's own speed is not in it.
    assert speeds == pytest.approx([90 / 40, 90 / 40, 90 / 12, 90 / 12], rel=0.02)


def test_reports_get_the_shortest_names_that_tell_them_apart(made: ModuleType, tmp_path: Path) -> None:
    for name in ("x/one", "y/one", "y/two"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_bytes(serialize_report(made.make_report()))
    paths = [tmp_path / "x" / "one", tmp_path / "y" / "one" / "report.json", tmp_path / "y" / "two"]
    assert [name for name, _ in read_reports(paths)] == ["x/one", "y/one", "y/two"]
    assert [name for name, _ in read_reports(paths[1:])] == ["one", "two"]
    assert len(read_reports([paths[0], paths[0]])) == 1


@pytest.mark.parametrize("command", ["history", "fleet"])
def test_the_commands_print_lines_or_json_and_write_a_page(
    command: str, made: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for number in (1, 2):
        path = tmp_path / f"run{number}.json"
        path.write_bytes(serialize_report(month(made, number)))
        paths.append(str(path))
    page = tmp_path / "page.html"
    assert main([command, *paths, "-o", str(page)]) == 0
    assert KEY.removesuffix(" onnxruntime-cpu [engine]") in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "run1" in text
    assert "run2" in text
    assert main([command, *paths, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) >= 4


def test_a_file_that_is_no_report_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"schema_version": 2}', encoding="utf-8")
    assert main(["fleet", str(path)]) == 1
    assert capsys.readouterr().err.startswith("error: other.json is no report of schema version 1")
