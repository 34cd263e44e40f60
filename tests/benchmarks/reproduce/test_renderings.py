"""The page, the tables and the JSON document, as a reader or a program finds them."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from unetx_bench.reproduce import record as record_module
from unetx_bench.reproduce.interval_plot import interval_svg, shared_scale
from unetx_bench.reproduce.page import render_page
from unetx_bench.reproduce.record import Interval, Reproduction, SeedFigures, VariantRecord, table_schema
from unetx_bench.reproduce.spreadsheet import render_csv
from unetx_bench.reproduce.tables import render_markdown
from unetx_bench.reproduce.wording import format_interval

pytest.importorskip("jinja2", reason="the page needs jinja2: pip install 'unetx-opt[bench]'")
VOID = {"meta", "br", "circle", "line", "path"}


class _Reader(HTMLParser):
    """Checks that elements nest, and collects texts and attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))


def read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def missing(name: str, reason: str) -> VariantRecord:
    return VariantRecord(name=name, summary="summary", missing=reason)


def test_the_page_needs_nothing_else(made: Any) -> None:
    reader = read(render_page(made.result()))
    assert not reader.tags & {"script", "img", "link", "iframe", "object", "embed"}
    assert not {name for name, _ in reader.attributes} & {"src", "srcset", "onclick", "onload"}
    links = [value or "" for name, value in reader.attributes if name == "href"]
    assert links
    assert all(link.startswith("#") for link in links)
    assert "url(" not in render_page(made.result())


def test_the_page_names_device_data_claims_and_every_variant(made: Any) -> None:
    result = made.result()
    texts = read(render_page(result)).texts
    told = " ".join(texts)
    for text in (result.device, result.data.note, "lungs, split test, 60 of 67 images", *result.settings.cut):
        assert text in told
    for row in result.variants:
        assert row.name in texts
    for claim in result.claims:
        assert claim.claim in told
        assert claim.rule in told
        assert claim.remark in told


def test_every_rendering_quotes_printed_figures_and_measured_ones(made: Any) -> None:
    rows = (made.variant("unet"), made.variant("focal", differences=(made.difference("unet", 0.00123),)))
    result = made.result(rows)
    for text in (render_page(result), render_markdown(result)):
        assert "+0.00123" in text
        assert "+0.00023 to +0.00223" in text
        assert "0.9800" in text
        assert "11.0" in text
    assert "0.00123" in render_csv(result)


@pytest.mark.parametrize("render", [render_page, render_markdown])
def test_data_other_than_nih_is_never_called_nih(made: Any, render: Any) -> None:
    """The name occurs where the article's own data are meant, and where it is denied."""
    text = render(made.result())
    for line in text.replace("</p>", "\n").splitlines():
        if "NIH" in line:
            assert "not NIH" in line or "no accuracy" in line or "printed" in line


@pytest.mark.parametrize("render", [render_page, render_markdown, render_csv])
def test_a_missing_variant_is_a_row_that_says_why(made: Any, render: Any) -> None:
    rows = (made.variant("unet"), missing("crf", "no reference checkpoint ships"))
    assert "no reference checkpoint ships" in render(made.result(rows))


@pytest.mark.parametrize("render", [render_page, render_markdown, render_csv])
def test_figures_that_do_not_exist_are_left_out(made: Any, render: Any) -> None:
    alone = made.variant("unet", latencies=(), weights=None, printed=None)
    assert "unet" in render(made.result((alone,)))
    bare = Interval(value=40.0, low=None, high=None)
    latency = made.latency(40.0, None).model_copy(update={"ms": bare})
    score = made.score(0.9).model_copy(update={"low": None, "high": None, "std": None, "n": 1})
    scores = dict.fromkeys(("accuracy", "balanced_accuracy", "miou", "dice"), score)
    sparse = made.variant("unet", latencies=(latency,), scores=scores)
    text = render(made.result((sparse,)))
    assert "None" not in text.replace("Nones", "")


def test_texts_from_outside_are_escaped(made: Any) -> None:
    hostile = "<script>alert(1)</script>"
    result = made.result((made.variant("unet"), missing("crf", hostile)), device=hostile, disturbances=(hostile,))
    assert "<script" not in render_page(result)
    assert "&lt;script" in render_page(result)
    piped = made.result((made.variant("unet"), missing("crf", "a | b")))
    assert "a \\| b" in render_markdown(piped)


def test_seeds_and_steps_and_precisions_have_their_tables(made: Any) -> None:
    seeds = SeedFigures(figures={"accuracy": {"0": 0.9711, "1": 0.9722, "2": 0.9733}})
    scores = {figure: made.score(0.91) for figure in ("accuracy", "balanced_accuracy", "miou", "dice")}
    unet = made.variant("unet", seeds=seeds, scores_by_precision={"fp32": scores, "fp16": scores})
    step = made.StepLatency(name="dense_crf", ms=made.interval(8.25), rounds=100)
    crf = made.variant("crf", step=step, latencies=(made.latency(40.0, made.interval(1.0), step_ms=8.25),))
    page = render_page(made.result((unet, crf)))
    for text in ("0.9722 ± 0.0011", "seed 1: 0.9722", "dense_crf", "48.25", "8.25", "Accuracy at each precision"):
        assert text in page
    assert "0.9722 +/- 0.0011 (3)" in render_markdown(made.result((unet, crf)))


def test_every_line_of_a_markdown_table_has_as_many_cells_as_its_head(made: Any) -> None:
    cells = 0
    for line in render_markdown(made.result()).splitlines():
        count = line.replace("\\|", "").count("|")
        assert count in (0, cells) or cells == 0
        cells = count


def test_the_spreadsheet_has_a_line_for_each_variant_and_engine(made: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(made.result()))))
    assert [row["variant"] for row in rows] == ["unet", "focal", "attention", "dilated", "crf", "combined"]
    by_name = {row["variant"]: row for row in rows}
    assert float(by_name["attention"]["ratio"]) == 0.9
    assert by_name["unet"]["ratio"] == ""
    assert float(by_name["crf"]["ms_with_step"]) == 48.0
    assert by_name["crf"]["structure_sha256"] == "a" * 64


def test_the_published_schema_is_that_of_the_document() -> None:
    published = Path(record_module.__file__).with_name(record_module.SCHEMA_NAME).read_text(encoding="utf-8")
    assert json.loads(published) == table_schema(), "run make_golden.py beside this test"


def test_the_document_comes_back_as_it_was_written(made: Any) -> None:
    result = made.result()
    assert Reproduction.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 2.0, None), (1.0, None, 2.0), (1.0, 2.0, 1.0)])
def test_half_and_upside_down_intervals_are_refused(value: float, low: float | None, high: float | None) -> None:
    with pytest.raises(ValueError, match="interval"):
        Interval(value=value, low=low, high=high)


def test_a_drawing_shows_everything_between_its_ends() -> None:
    intervals = [Interval(value=0.9, low=0.8, high=1.0), Interval(value=1.2, low=None, high=None)]
    scale = shared_scale(intervals, [1.0, 0.95])
    places = [scale.place(value) for value in (0.8, 0.9, 0.95, 1.0, 1.2)]
    assert places == sorted(places)
    assert places[0] > scale.place(-5.0)
    assert places[-1] < scale.place(5.0)
    assert 'class="printed"' in interval_svg(intervals[0], scale, 1.0, 0.95)
    assert 'class="bar"' not in interval_svg(intervals[1], scale, 1.0, None)


def test_equal_values_alone_can_be_drawn() -> None:
    point = Interval(value=0.0, low=0.0, high=0.0)
    scale = shared_scale([point], [0.0])
    assert scale.low < scale.place(0.0) < 220
    assert interval_svg(point, scale, 0.0, None).startswith("<svg")


def test_an_interval_is_written_in_the_digits_of_its_unit() -> None:
    interval = Interval(value=0.00123, low=-0.001, high=0.0034)
    assert format_interval(interval, "accuracy") == "+0.00123 (-0.00100 to +0.00340)"
    assert format_interval(Interval(value=0.807, low=0.807, high=0.807), "ratio") == "0.807"
    assert format_interval(Interval(value=41.234, low=None, high=None), "ms") == "41.23 ms"


def test_an_estimate_without_an_interval_says_why_in_every_text(made: Any) -> None:
    lonely = Interval(value=40.0, low=None, high=None, why="successive rounds are alike")
    timed = made.latency(40.0, None).model_copy(update={"ms": lonely})
    single = made.score(0.98).model_copy(update={"low": None, "high": None, "std": None, "n": 1})
    result = made.result(
        (
            made.variant(
                "unet",
                latencies=(timed,),
                scores=dict.fromkeys(("accuracy", "balanced_accuracy", "miou", "dice"), single),
            ),
        )
    )
    for text in (render_markdown(result), render_page(result)):
        assert "no interval: successive rounds are alike" in text
        assert "no interval of one image" in text
