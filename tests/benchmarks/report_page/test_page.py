"""The page as a parser finds it: what it says, what it loads, and what it makes of hostile reports."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_bench.history import list_fleet, list_trends
from unetx_bench.report import Report, read_report, serialize_report
from unetx_bench.report_page.axis import fit_axis
from unetx_bench.report_page.many import render_fleet_page, render_history_page
from unetx_bench.report_page.page import render_report_page
from unetx_bench.report_page.pareto import ParetoPoint, pareto_front
from unetx_bench.report_page.pictures import PictureBudget, embed_cases
from unetx_bench.report_page.svg import shorten

pytest.importorskip("jinja2", reason="pages need jinja2: pip install 'unetx-opt[bench]'")
GOLDEN = Path(__file__).parent / "golden" / "report.json"
VOID = {"meta", "link", "img", "input", "br"}
HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(2)</script></style></title>{{7*7}}&amp;"


class Reader(HTMLParser):
    """Checks that elements nest, and collects them with their attributes and texts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def folder(tmp_path: Path, made: ModuleType) -> Path:
    made.write_pictures(tmp_path)
    return tmp_path


@pytest.fixture
def report(made: ModuleType) -> Report:
    found: Report = made.make_report()
    return found


def test_the_golden_report_is_read_without_loss_and_is_the_hand_made_one(report: Report) -> None:
    assert GOLDEN.stat().st_size < 100_000
    golden = read_report(GOLDEN)
    assert serialize_report(golden) == GOLDEN.read_bytes()
    # Intervals are left to the tests of statistics: a finer rule for them makes no other report.
    for found, made in zip(golden.latencies, report.latencies, strict=True):
        assert (found.contender, found.samples_ms) == (made.contender, made.samples_ms), "run make_golden.py"
    assert golden.candidates == report.candidates, "run make_golden.py"


def test_the_answer_comes_first_with_the_ratio_of_the_samples(report: Report, folder: Path) -> None:
    text = Reader(render_report_page(report, folder)).text
    samples = {row.contender: np.array(row.samples_ms) for row in report.latencies}
    peer = samples["unet-fp16 torch-eager [engine]"]
    first = text[: text.index("Engines and peers")]
    said = re.findall("([0-9.]+) \N{MULTIPLICATION SIGN} as fast as unet-fp16 torch-eager", first)
    engines = ("unet-fp16 onnxruntime-cpu", "unet-int8 openvino-cpu")
    assert len(said) == len(engines)
    for engine, factor in zip(engines, said, strict=True):
        assert float(factor) == pytest.approx(1 / np.median(samples[f"{engine} [engine]"] / peer), abs=0.006)
        assert f"{engine} is the fastest engine that passes the drift gate" in first


def test_an_engine_that_fails_the_gate_is_never_the_answer(report: Report, folder: Path) -> None:
    text = Reader(render_report_page(report, folder)).text
    assert "unet-int8 onnxruntime-cpu is the fastest" not in text
    assert "✗ 0.91" in text


def test_without_drift_the_page_names_the_missing_drift_and_not_a_failed_gate(report: Report, folder: Path) -> None:
    rows = [row.model_copy(update={"drift": None}) for row in report.candidates]
    data = report.drift_data.model_copy(update={"data": None, "count": 0, "note": "it was not asked for"})
    text = Reader(render_report_page(report.model_copy(update={"candidates": rows, "drift_data": data}), folder)).text
    assert "No engine is ranked, because drift was not measured." in text
    assert "passed the drift gate and" not in text


def test_the_page_loads_nothing_and_forbids_it(report: Report, folder: Path) -> None:
    page = render_report_page(report, folder)
    reader = Reader(page)
    for name in ("src", "href", "srcset", "action", "xlink:href", "data"):
        for tag, attributes in reader.elements:
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
    assert not re.search(r"@import|url\(|@font-face", page)
    policy = next(row["content"] for row in reader.all("meta") if row.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert not re.search(r"script-src[^;]*unsafe-inline", policy)


def poison(value: Any, kept: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {
            key if key in KEYS else key + HOSTILE: item if key in kept else poison(item, kept)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [poison(item, kept) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


KEYS = frozenset(re.findall(r'"(\w+)":', GOLDEN.read_text(encoding="ascii"))) - {
    "package",
    "torch",
    "caches",
}


def test_every_text_of_a_hostile_report_stays_text(report: Report, folder: Path) -> None:
    clean = Reader(render_report_page(report, folder))
    data = poison(json.loads(serialize_report(report)), frozenset({"kind", "span", "rule", "pictures", "device"}))
    data["ceilings"][0]["flop_per_s"] = report.ceilings[0].flop_per_s
    for row in data["candidates"]:
        if row["roofline"]:
            row["roofline"]["dtype"] = row["roofline"]["dtype"].removesuffix(HOSTILE)
    hostile = Report.model_validate(data)
    page = render_report_page(hostile, folder)
    reader = Reader(page)
    assert reader.text.count(HOSTILE) > 100
    assert len(reader.all("script")) == 1
    assert {tag for tag, _ in reader.elements} == {tag for tag, _ in clean.elements}
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert [row for row in reader.all("img") if not (row["src"] or "").startswith("data:image/png;base64,")] == []
    for other in (
        render_history_page(list_trends([(HOSTILE, hostile)]), [(HOSTILE, hostile)]),
        render_fleet_page(list_fleet([(HOSTILE, hostile)])),
    ):
        found = Reader(other)
        assert HOSTILE in found.text
        assert len(found.all("script")) == 1
        assert found.all("img") == []


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "pictures/text.png", "pictures/none.png", "link.png", "", "C:secret.png"]
)
def test_only_png_files_of_the_reports_own_folder_are_taken_in(
    name: str, report: Report, folder: Path, made: ModuleType
) -> None:
    inner = folder / "inner"
    inner.mkdir()
    made.write_pictures(inner)
    secret = made.png(np.full((3, 3), 7, np.uint8))
    (folder / "secret.png").write_bytes(secret)
    (inner / "link.png").symlink_to(folder / "secret.png")
    (inner / "pictures" / "text.png").write_bytes(b"secret text")
    data = json.loads(serialize_report(report))
    for row in data["candidates"]:
        row["drift"]["worst"][0]["pictures"] |= {"difference": name}
    page = render_report_page(Report.model_validate(data), inner)
    assert "data:image" not in page
    assert "There are no pictures" in page


def test_pictures_are_those_of_engines_and_the_sliders_are_named(report: Report, folder: Path) -> None:
    reader = Reader(render_report_page(report, folder))
    engines = sum(row.kind == "engine" for row in report.candidates)
    assert len(reader.all("img")) == 3 * engines
    assert all(row["alt"] for row in reader.all("img"))
    assert [row["type"] for row in reader.all("input")] == ["range"] * engines
    assert all("image-3" in (row["aria-label"] or "") for row in reader.all("input"))


def test_pictures_beyond_the_budget_are_left_out_and_counted(report: Report, folder: Path) -> None:
    one_case = sum((folder / "pictures" / f"a-{kind}.png").stat().st_size for kind in ("reference", "engine")) * 2
    found, left_out = embed_cases(report, folder, PictureBudget(one_case))
    assert (len(found), left_out) == (1, 2)
    assert sum(len(uri) for uri in found[0].uris.values()) <= one_case * 1.5 + 100
    assert embed_cases(report, folder, PictureBudget(0)) == ((), 3)


def test_charts_are_named_and_tables_have_scoped_headers(report: Report, folder: Path) -> None:
    reader = Reader(render_report_page(report, folder))
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = reader.all("svg")
    assert len(charts) == 2 * 4  # distribution, Pareto, images, roofline: wide and narrow
    for chart in charts:
        assert chart["role"] == "img"
        assert chart["aria-labelledby"] in ids
        assert chart["aria-describedby"] in ids
    assert {row.get("scope") for row in reader.all("th")} == {"col", "row"}
    assert [row["lang"] for row in reader.all("html")] == ["en"]


def test_a_report_with_hardly_anything_in_it_says_so(made: ModuleType, tmp_path: Path) -> None:
    data = made.make_json(0, 3, {}) | {"ceilings": [], "not_measured": {}, "ratios": []}
    for row in data["candidates"]:
        row |= {"drift": None, "roofline": None, "profile": None, "cold_start": None, "why_not": {}}
    for row in data["latencies"]:
        row |= {"median_ms": None, "p90_ms": None}
    data["drift_data"] |= {"data": None, "note": "it was not asked for", "image_sha256": []}
    data["run"] |= {"state_before": None, "state_after": None, "disturbed": False}
    text = Reader(render_report_page(Report.model_validate(data), tmp_path)).text
    assert text.count("No engine both passed the drift gate") == 2
    assert "Drift was not measured: it was not asked for" in text
    assert "There is no roofline: limits were not measured" in text
    assert "Everything that was asked for was measured" in text


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "paper"])
@pytest.mark.parametrize(
    ("front", "back"),
    [
        *((front, "page") for front in ("text", "quiet", "engine", "peer", "passed", "failed", "warn")),
        *((front, "panel") for front in ("text", "quiet")),
        ("text", "warn-panel"),
        *(("on", back) for back in ("engine", "peer", "passed", "failed")),
    ],
)
def test_texts_have_the_contrast_that_wcag_asks_for(theme: int, front: str, back: str) -> None:
    style = resources.files("unetx_bench.report_page").joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(
        re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme])
    )
    bright, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1)), max_size=30))
def test_the_front_is_what_no_other_point_beats(places: list[tuple[float, float]]) -> None:
    points = [ParetoPoint(index, "", time, drift, "passed") for index, (time, drift) in enumerate(places)]
    beaten = {
        one.number
        for one in points
        for other in points
        if (other.median_ms <= one.median_ms and other.drift <= one.drift)
        and (other.median_ms, other.drift) != (one.median_ms, one.drift)
    }
    expected = {(one.median_ms, one.drift) for one in points if one.number not in beaten}
    front = pareto_front(points)
    assert {(one.median_ms, one.drift) for one in front} == expected
    assert len(front) == len(expected)


@given(st.lists(st.floats(1e-6, 1e12), min_size=1, max_size=20), st.booleans(), st.integers(2, 12))
def test_an_axis_keeps_order_and_has_its_ticks_inside(values: list[float], logarithmic: bool, most: int) -> None:
    axis = fit_axis(values, 10, 500, logarithmic=logarithmic)
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(10 <= place <= 500 for place in places)
    ticks = axis.ticks(most)
    slack = 1e-9 * max(abs(axis.low), abs(axis.high))
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)
    assert len(ticks) <= most + 2
    assert list(ticks) == sorted(set(ticks))


@given(st.text(max_size=200), st.floats(50, 800))
def test_long_names_are_cut_in_the_middle_and_short_ones_never(name: str, width: float) -> None:
    cut = shorten(name, width)
    assert len(cut) <= max(8, math.ceil(width / 7))
    assert cut == name or ("…" in cut and name.startswith(cut[: cut.index("…")]))


def test_the_page_can_be_made_again_from_the_file_alone(report: Report, folder: Path) -> None:
    from click.testing import CliRunner

    from unetx_bench.report_page.__main__ import main

    (folder / "report.json").write_bytes(serialize_report(report))
    assert CliRunner().invoke(main, [str(folder / "report.json")]).exit_code == 0
    assert (folder / "report.html").read_text(encoding="utf-8") == render_report_page(report, folder)


def test_an_engine_on_the_gpu_is_held_against_pytorch_on_the_gpu(made: ModuleType, folder: Path) -> None:
    data = json.loads(
        json.dumps(made.make_json(0, 80, {"unet-fp16 torch-channels-last": 0.1})).replace(
            "torch-channels-last", "torch-cuda-eager"
        )
    )
    data["candidates"][0] |= {"target": "tensorrt"}
    gpu: dict[str, Any] = dict.fromkeys(
        ("memory_mhz", "power_limit_w", "utilization_percent", "energy_mj", "processes")
    )
    gpu |= {"name": "A GPU", "driver": "1", "pstate": "P2", "sm_mhz": 1800.0, "temperature_c": 60.0, "power_w": 70.0}
    gpu |= {"memory_used_bytes": 2**30, "throttle": ["power cap", "thermal"]}
    data["run"]["state_before"] |= {"gpu": gpu}
    data["environment"] |= {"gpu": "A GPU", "driver": "1", "compute_capability": "8.6"}
    data["ceilings"].append({**data["ceilings"][0], "device": "cuda", "threads": 0})
    text = Reader(render_report_page(Report.model_validate(data), folder)).text
    first = text[: text.index("Engines and peers")]
    assert re.search(r"0\.1\d . as fast as unet-fp16 torch-cuda-eager", first)
    assert re.search(r"7\.\d+ . as fast as unet-fp16 torch-eager", first), "the other bundle runs on the CPU"
    assert "throttle power cap, thermal" in text
    assert "memory of cuda allow" in text
    assert "memory of cpu allow" in text
