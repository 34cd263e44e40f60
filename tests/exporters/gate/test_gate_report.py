"""The page and the JSON of a gate: they say what was decided, load nothing and escape everything."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from unetx_exporters.gate import DriftMeasurement, MeasuredImage
from unetx_exporters.gate_cases import DETAIL_PX, OVERVIEW_PX, cut_case, keep_worst
from unetx_exporters.gate_figures import case_png, drift_scale, is_outside, scatter_svg, signed
from unetx_exporters.gate_images import GateImages
from unetx_exporters.gate_report import collect_evidence, render_gate_html, report_to_json, write_gate_report
from unetx_opt.errors import GateError
from unetx_opt.metrics.gates import GATES, ComparedMasks, ImageDrift, decide_gate, drift_of

MINUS = "\N{MINUS SIGN}"
HOSTILE = "<script>alert('x')</script>&\"\u202e"


def disc(centre, radius, shape=(200, 160)):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def measured_case(name, shift, shape=(200, 160)):
    reference = disc((100, 80), 40, shape)
    masks = ComparedMasks(reference, np.roll(reference, shift, axis=0), reference)
    pixels = (np.arange(shape[0])[:, None] + np.zeros(shape[1])).astype(np.uint16)
    drift = drift_of(name, "lungs", masks)
    return drift, cut_case(drift, pixels, masks)


def report(shifts=(0, 0), name="image", target="engine", note=""):
    """Make a report of two engines on 24 images; each engine is moved by its shift on every image."""
    measured = {
        f"{target} {index}": [measured_case(f"{name}-{i}", shift) for i in range(24)]
        for index, shift in enumerate(shifts)
    }
    measurement = DriftMeasurement(
        drifts={key: tuple(drift for drift, _ in found) for key, found in measured.items()},
        call_ms={key: tuple(float(10 + i) for i in range(24)) for key in measured},
        images=tuple(MeasuredImage(f"{name}-{i}", f"{i:064x}", 200, 160) for i in range(24)),
        worst_cases={key: tuple(case for _, case in found if case)[:4] for key, found in measured.items()},
    )
    decisions = {key: decide_gate("strict", drifts) for key, drifts in measurement.drifts.items()}
    images = GateImages("chests", "validation", f"Data folder chests. {note}", 24, lambda index: None)
    return collect_evidence(
        measurement, decisions, images, f"PyTorch FP32 {note}", {f"{target} 0": f"ran as a graph {note}"}
    )


class Page(html.parser.HTMLParser):
    """Collects what a browser would build."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "path"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_answer_comes_first():
    page = render_gate_html(report((0, 0)))
    assert "<h1>PASS: all 2 engines, gate strict</h1>" in page
    assert page.index("<h1>") < page.index("<table>") < page.index("<svg")
    failing = render_gate_html(report((0, 5)))
    assert "<h1>FAIL: 1 of 2 engines, gate strict</h1>" in failing
    assert "✗ FAIL" in failing and "✓ PASS" in failing
    alone = render_gate_html(report((5,)))
    assert "<h1>FAIL: engine 0, gate strict</h1>" in alone


def test_every_rule_stands_with_its_limit_and_the_value_of_each_engine():
    found = report((0, 2))
    page = "".join(Page(render_gate_html(found)).text)
    for row in found.targets[1].decision.rows:
        assert row.description in page
    for text in ("≥ 99.9 %", f"> {MINUS}0.001", f"≥ {MINUS}0.01", "≤ 1 px", "≤ 0", "2 px ✗ FAIL", "100 % ✓"):
        assert text in page
    assert "Data folder chests." in page and "PyTorch FP32" in page and "ran as a graph" in page


def test_the_page_is_whole_and_loads_nothing():
    text = render_gate_html(report((0, 3)))
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    for _, key, value in page.attributes:
        if key in {"src", "href", "srcset", "action", "data"}:
            assert value.startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_readers_who_see_no_pictures_and_no_colours_get_the_same_answer():
    page = Page(render_gate_html(report((0, 3))))
    assert ("html", "lang", "en") in page.attributes
    pictures = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt")]
    assert len(pictures) == page.tags.count("img") == 4
    assert all("boundary shift 3 px" in text for text in pictures)
    plots = [value for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-label")]
    assert len(plots) == page.tags.count("svg") == 2
    assert page.tags.count("caption") == page.tags.count("table") == 2
    assert page.tags.count("h1") == 1


def test_every_text_from_outside_is_escaped():
    found = report((0, 4), name=HOSTILE, target=HOSTILE, note=HOSTILE)
    text = render_gate_html(found)
    page = Page(text)
    assert "script" not in page.tags and page.open == []
    assert "<script>" not in text
    assert "".join(page.text).count("<script>alert('x')</script>&\"") > 10
    json.dumps(report_to_json(found), allow_nan=False)


def test_equal_masks_are_said_to_be_equal():
    page = "".join(Page(render_gate_html(report((0,)))).text)
    assert "Every mask is equal to the reference's, pixel by pixel." in page
    assert "Worst images of what failed" not in page


def test_pictures_of_what_passed_are_not_hidden_by_what_failed():
    found = report((0, 5))
    passed, failed = found.targets
    shown = dataclasses.replace(passed, cases=failed.cases[:2])
    page = render_gate_html(dataclasses.replace(found, targets=(shown, failed)))
    assert page.count("<img") == 6
    assert page.index("Worst images of what passed") < page.index("Worst images of what failed")


def test_the_record_holds_every_image_hash_rule_and_drift(tmp_path):
    found = report((0, 3))
    page, record = write_gate_report(tmp_path / "evidence", found)
    assert (page.name, record.name) == ("gate.html", "gate.json")
    data = json.loads(record.read_text())
    assert data["gate"] == "strict" and data["passed"] is False and data["data"] == "chests"
    assert [image["sha256"] for image in data["images"]] == [f"{i:064x}" for i in range(24)]
    first, second = data["targets"]
    assert (first["passed"], second["passed"]) == (True, False)
    assert first["median_call_ms"] == 21.5 and len(first["drifts"]) == 24
    assert second["drifts"][0]["hausdorff_shift_px"] == 3.0
    assert {row["rule"]: row["passed"] for row in second["decision"]["rows"]}["hausdorff_shift_px"] is False
    assert page.read_bytes().decode("utf-8") == render_gate_html(found)


def test_infinite_shifts_are_null_in_the_record_and_a_sign_on_the_page():
    found = report((0,))
    target = found.targets[0]
    gone = dataclasses.replace(
        target.drifts[0],
        engine_empty=True,
        hausdorff_shift_px=math.inf,
        dice_engine_vs_reference=0.0,
        dice_engine_vs_truth=0.0,
    )
    drifts = (gone, *target.drifts[1:])
    changed = dataclasses.replace(target, drifts=drifts, decision=decide_gate("strict", drifts))
    found = dataclasses.replace(found, targets=(changed,))
    assert "∞ px" in render_gate_html(found)
    assert report_to_json(found)["targets"][0]["drifts"][0]["hausdorff_shift_px"] is None


def test_a_report_needs_targets_of_one_gate():
    found = report((0,))
    with pytest.raises(GateError, match="no targets"):
        dataclasses.replace(found, targets=())
    with pytest.raises(GateError, match="decided by the gate strict, expected standard"):
        dataclasses.replace(found, gate="standard")


def test_the_plot_has_a_point_for_each_image_and_marks_what_is_beyond():
    good = ImageDrift("good", "lungs", 0.9, 0.9, 1.0, 0.5, False, False)
    drifts = [
        good,
        dataclasses.replace(good, name="bad", dice_engine_vs_truth=0.5),
        dataclasses.replace(good, name="far", hausdorff_shift_px=50.0),
        dataclasses.replace(good, name="gone", hausdorff_shift_px=math.inf, engine_empty=True),
    ]
    scale = drift_scale(drifts, GATES["strict"])
    svg = scatter_svg("engine", drifts, scale)
    assert svg.count("<circle") == 1 and svg.count('class="beyond"') == 2 and svg.count('<path class="point"') == 1
    assert svg.count("<title>") == 4
    assert [is_outside(drift, scale) for drift in drifts] == [False, True, True, True]
    numbers = [float(value) for value in re.findall(r'\bc[xy]="([-\d.]+)"', svg)]
    assert all(0 <= value <= 460 for value in numbers)


def test_the_axes_show_the_limits_however_small_the_drift_is():
    scale = drift_scale([ImageDrift("same", "lungs", 0.9, 0.9, 1.0, 0.0, False, False)], GATES["standard"])
    assert scale.shift_px > 3.0 and scale.lower < -0.03 and scale.upper > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (-0.01, f"{MINUS}0.01"),
        (-0.0001234567, f"{MINUS}0.000123"),
        (2e-8, f"2e{MINUS}08"),
        (-math.inf, f"{MINUS}∞"),
        (1.0, "1"),
    ],
)
def test_differences_are_written_to_be_compared(value, text):
    assert signed(value) == text


def test_a_case_shows_the_image_and_the_largest_difference():
    _, case = measured_case("one", 6)
    assert case.detail.grey.shape == (DETAIL_PX, DETAIL_PX)
    assert max(case.overview.grey.shape) == OVERVIEW_PX
    assert case.detail.difference.any()
    with Image.open(io.BytesIO(case_png(case))) as picture:
        assert picture.format == "PNG" and picture.size == (2 * OVERVIEW_PX + 8, OVERVIEW_PX)
        colors = {color for _, color in picture.getcolors(1 << 20)}
    assert {(86, 180, 233), (230, 159, 0), (255, 255, 255)} <= colors


@pytest.mark.parametrize("shape", [(20, 300), (300, 20), (30, 30), (900, 700)], ids=str)
def test_images_of_any_shape_become_a_case(shape):
    reference = np.zeros(shape, bool)
    reference[5:15, 5:15] = True
    engine = np.zeros(shape, bool)
    engine[-1, -1] = True
    masks = ComparedMasks(reference, engine)
    case = cut_case(drift_of("odd", "lungs", masks), np.zeros(shape, np.float32), masks)
    assert case.differing_px == 101
    assert case_png(case)


def test_a_single_differing_pixel_is_still_seen_in_the_overview():
    reference = disc((700, 600), 400, (1400, 1200))
    engine = reference.copy()
    engine[700, 600] = False
    masks = ComparedMasks(reference, engine)
    case = cut_case(drift_of("one pixel", "lungs", masks), np.zeros((1400, 1200)), masks)
    assert case.overview.difference.sum() >= 1
    assert case.detail.difference.sum() == 1


def test_only_the_most_severe_images_are_kept_and_equal_ones_never():
    kept = ()
    reference = disc((100, 80), 40)
    for index, shift in enumerate([1, 0, 4, 2, 0, 3]):
        masks = ComparedMasks(reference, np.roll(reference, shift, axis=1))
        drift = drift_of(f"image-{index}", "lungs", masks)
        kept = keep_worst(kept, drift, np.zeros(reference.shape), masks, count=3)
    assert [case.drift.name for case in kept] == ["image-2", "image-5", "image-3"]
    assert keep_worst((), drift, np.zeros(reference.shape), masks, count=0) == ()


def test_an_alternative_that_fails_and_is_left_out_does_not_fail_the_bundle():
    whole = report(shifts=(0, 9))
    assert not whole.passed
    targets = (whole.targets[0], dataclasses.replace(whole.targets[1], kept=False))
    kept = dataclasses.replace(whole, targets=targets)
    assert kept.passed
    page = render_gate_html(kept)
    assert "<h1>PASS: engine 0, gate strict</h1>" in page
    assert "Tried and left out of the bundle: engine 1." in page
    assert [target["kept"] for target in report_to_json(kept)["targets"]] == [True, False]


def test_a_page_without_pictures_says_so_and_holds_none():
    page = render_gate_html(dataclasses.replace(report(shifts=(0, 1)), pictures=False))
    assert "Pictures were left out" in page
    assert "data:image" not in page.partition("<body>")[2]


def test_a_bundle_that_keeps_no_engine_does_not_pass():
    whole = report()
    assert not dataclasses.replace(
        whole, targets=tuple(dataclasses.replace(target, kept=False) for target in whole.targets)
    ).passed
