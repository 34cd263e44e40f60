"""`unetx-opt bench` on a small bundle of real engines, and the report that it leaves."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from unetx_bench.benchmark import run_benchmark
from unetx_bench.bundles import TimedImage, check_logits, engine_names, open_engines, span_contenders
from unetx_bench.candidates import TimedCall
from unetx_bench.cli import bench
from unetx_bench.coldstart import measure_cold_start
from unetx_bench.errors import MeasurementError
from unetx_bench.findings import answer
from unetx_bench.measurement import Contender, MeasureOptions
from unetx_bench.peers import PEERS, PeerModel, open_peer
from unetx_bench.report import Ratio, Report, read_report
from unetx_bench.report_page.page import render_report_page
from unetx_bench.request import BenchRequest
from unetx_bench.schema import SCHEMA_PATH, schema_bytes
from unetx_bench.statistics import Comparison, Estimate, quantile_interval
from unetx_opt.specs import EngineRecord

#: A fixed number of rounds: what the tests see does not depend on how busy the machine is.
ROUNDS = MeasureOptions(
    minimum_rounds=24,
    maximum_rounds=24,
    minimum_seconds=0.0,
    maximum_seconds=200.0,
    warmup_seconds=0.0,
    half_width=1e-9,
)


@pytest.fixture(scope="module")
def report_folder(small_bundle: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bench") / "report"
    request = BenchRequest(
        bundles=(small_bundle,),
        output=output,
        measure=ROUNDS,
        checkpoints=(small_checkpoint,),
        peers=("torch-eager", "torch-cuda-graph-fp16"),
        batches=(1, 2),
        images=22,
        threads=1,
        attempts=1,
    )
    run_benchmark(request)
    return output


@pytest.fixture(scope="module")
def report(report_folder: Path) -> Report:
    return read_report(report_folder / "report.json")


def test_too_few_images_for_a_gate_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"a gate needs 21: pass --images 21 or more, or 0"):
        BenchRequest(bundles=(tmp_path,), output=tmp_path, images=12)
    assert BenchRequest(bundles=(tmp_path,), output=tmp_path, images=0).images == 0


def test_every_engine_is_timed_by_three_clocks_and_every_batch_and_every_peer(report: Report) -> None:
    engines, peers = ("small onnxruntime-cpu", "small openvino-cpu"), ("small torch-eager",)
    expected = {(name, span, 1) for name in engines for span in ("engine", "host", "file")}
    expected |= {(name, "engine", batch) for name in (*engines, *peers) for batch in (1, 2)}
    assert {(row.candidate, row.span, row.batch) for row in report.latencies} == expected


def test_each_clock_spans_what_it_says(small_bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    from unetx_opt.imaging.phantom import chest_phantom

    pixels, _ = chest_phantom(3, size_px=96)
    image = TimedImage("phantom", tmp_path / "image.png", tmp_path / "mask.png")
    Image.fromarray(pixels).save(image.path)
    with open_engines(small_bundle, threads=1) as opened:
        made = span_contenders(opened.engines[0], image, ("engine", "host", "file"))
        logits = made["engine"].call()
        assert isinstance(logits, np.ndarray)
        assert logits.shape == (1, 1, 64, 64)
        found: Any = made["host"].call()
        assert found.labels.shape == (96, 96)
        assert not image.mask_path.exists()
        made["file"].call()
        with Image.open(image.mask_path) as mask:
            assert np.array_equal(np.asarray(mask) > 0, found.labels > 0)
        with pytest.raises(MeasurementError, match="unknown clock span 'coffee'"):
            span_contenders(opened.engines[0], image, ("coffee",))


def test_the_answer_names_the_fastest_engine_that_passes_and_its_factor_over_pytorch(report: Report) -> None:
    medians = {"small onnxruntime-cpu": 4.0, "small openvino-cpu": 2.0, "small torch-eager": 8.0}
    names = {name: f"{name} [engine]" for name in medians}
    latencies = [
        row.model_copy(update={"median_ms": Estimate(medians[row.candidate], 1.0, 9.0)})
        for row in report.latencies
        if row.contender in names.values()
    ]
    calls = [TimedCall(Contender(title, int), name, "small", "engine", 1) for name, title in names.items()]
    ratio = Comparison("faster", Estimate(0.25, 0.2, 0.5), 0.99, 0.01, 0.1)
    rows = [Ratio(numerator=names["small openvino-cpu"], denominator=names["small torch-eager"], comparison=ratio)]
    said = answer(calls, latencies, rows, report.candidates, ())
    assert "the fastest engine that passes the drift gate is small openvino-cpu, median 2 ms (1 to 9)" in said[0]
    assert "4.00 times as fast as small torch-eager (2.00 to 5.00 at 99% confidence)" in said[0]
    turned = [Ratio(numerator=rows[0].denominator, denominator=rows[0].numerator, comparison=ratio)]
    assert "0.25 times as fast" in answer(calls, latencies, turned, report.candidates, ())[0]


def test_an_engine_that_fails_the_gate_is_never_the_answer(report: Report) -> None:
    failed = []
    for row in report.candidates:
        assert row.drift is not None
        decision = {**row.drift.decision, "passed": row.name != "small openvino-cpu"}
        failed.append(row.model_copy(update={"drift": row.drift.model_copy(update={"decision": decision})}))
    latencies = [row.model_copy(update={"median_ms": Estimate(1.0, 1.0, 1.0)}) for row in report.latencies]
    names = ("small onnxruntime-cpu", "small openvino-cpu")
    calls = [TimedCall(Contender(f"{name} [engine]", int), name, "small", "engine", 1) for name in names]
    (said,) = answer(calls, latencies, (), failed, ())
    assert "small onnxruntime-cpu" in said


def test_summaries_follow_from_the_samples_that_are_kept(report: Report) -> None:
    assert report.run.rounds == 24
    for row in report.latencies:
        assert len(row.samples_ms) == report.run.rounds
        assert row.median_ms == quantile_interval(np.asarray(row.samples_ms), 0.5, report.method.confidence)
        assert (row.p90_ms, row.p99_ms) == (None, None)


def test_what_does_not_run_here_is_listed_with_its_reason(report: Report) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "CUDA device" in report.not_measured["small torch-cuda-graph-fp16"]


def test_drift_of_every_image_stands_beside_the_latency_and_its_pictures_exist(
    report: Report, report_folder: Path
) -> None:
    assert (report.drift_data.data, report.drift_data.count) == ("phantom", 22)
    for row in report.candidates:
        assert row.drift is not None
        assert row.drift.decision["passed"]
        assert len(row.drift.images) == 22
        for case in row.drift.worst:
            assert set(case.pictures) == {"reference", "engine", "difference", "both"}
            assert all((report_folder / name).is_file() for name in case.pictures.values())


def test_every_engine_has_limits_a_profile_and_a_first_run_or_a_reason(report: Report) -> None:
    for row in report.candidates:
        if row.kind == "peer":
            continue
        assert row.roofline is not None
        (median_ms,) = (x.median_ms for x in report.latencies if x.contender == f"{row.name} [engine]")
        expected = None if median_ms is None else pytest.approx(row.roofline.limit_ms / median_ms.value)
        assert row.fraction_of_limit == expected
        assert row.profile is not None
        assert row.profile.layers
        assert row.cold_start is not None
        assert row.cold_start.host_peak_bytes is None or row.cold_start.host_peak_bytes > 10 * 2**20
        for counter in ("rapl", "nvml"):
            assert f"energy {counter}" in row.why_not or any(figure.counter == counter for figure in row.energy)


def test_the_tables_hold_what_the_report_holds(report: Report, report_folder: Path) -> None:
    with (report_folder / "latency.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
    with (report_folder / "samples.csv").open(encoding="utf-8", newline="") as file:
        columns = list(csv.DictReader(file))
    summary = (report_folder / "summary.md").read_text(encoding="utf-8")
    for row in report.latencies:
        median = rows[row.contender]["median_ms"]
        assert (median == "") if row.median_ms is None else float(median) == pytest.approx(row.median_ms.value)
        assert [float(line[row.contender]) for line in columns] == pytest.approx(list(row.samples_ms), abs=1e-6)
        assert f"| {row.contender} |" in summary
    assert report.answer[0] in summary


def test_the_published_schema_is_that_of_the_code() -> None:
    assert SCHEMA_PATH.read_bytes() == schema_bytes()


def test_a_report_of_another_form_is_refused_with_the_place(report_folder: Path, tmp_path: Path) -> None:
    data = json.loads((report_folder / "report.json").read_text(encoding="ascii"))
    data["run"]["rounds"] = "many"
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(MeasurementError, match=r"run\.rounds"):
        read_report(path)


def test_an_existing_output_is_refused_before_anything_is_measured(small_bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(bench, [str(small_bundle), "-o", str(tmp_path)])
    assert "already exists" in str(result.exception)


def test_an_unknown_peer_is_bad_usage(small_bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(bench, [str(small_bundle), "--peer", "abacus", "-o", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "torch-eager" in result.output


def test_without_its_weights_a_bundle_is_still_timed(small_bundle: Path, tmp_path: Path) -> None:
    arguments = [
        *(str(small_bundle), "--peer", "torch-eager", "--span", "engine", "--no-details", "--seconds", "0.5"),
        *("--attempts", "1", "--threads", "1", "-o", str(tmp_path / "out")),
    ]
    result = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "pass it with --checkpoint" in result.output
    found = read_report(tmp_path / "out" / "report.json")
    assert {row.candidate for row in found.latencies} == {"small onnxruntime-cpu", "small openvino-cpu"}
    assert all("was not found" in row.why_not["drift"] for row in found.candidates)


@pytest.mark.parametrize("name", [name for name in PEERS if "cuda" not in name and name != "torch-compile"])
def test_peers_compute_what_the_model_computes(name: str, small_checkpoint: Path, tmp_path: Path) -> None:
    torch, onnx = pytest.importorskip("torch"), pytest.importorskip("onnx")
    reason = PEERS[name].why_not()
    if reason is not None:
        pytest.skip(reason)
    from unetx_exporters.onnx.trace import trace_onnx
    from unetx_opt.models.checkpoint import load_model, read_checkpoint

    model = load_model(read_checkpoint(small_checkpoint))
    graph = tmp_path / "graph.onnx"
    onnx.save(trace_onnx(model, 64, 64).model, graph)
    image = np.random.default_rng(0).random((1, 1, 64, 64), np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(image)).numpy()
    # bfloat16 has 8 bits of mantissa; OpenVINO's default arithmetic may be bfloat16 too.
    tolerance = 0.05 * np.abs(expected).max() if name in ("torch-autocast-bf16", "openvino-default") else 1e-4
    with open_peer(name, PeerModel(model, graph, image, threads=1)) as infer:
        found = infer(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_engines_of_one_target_are_named_by_what_tells_them_apart() -> None:
    records = [
        EngineRecord("openvino-cpu", ("m.xml", "m.bin"), {"inference_precision": hint, "x": "y"})
        for hint in ("bf16", "f32")
    ]
    records += [
        EngineRecord("tensorrt-rtx", (f"{name}.plan",), compute_capabilities=(name,)) for name in ("7.5", "8.6")
    ]
    records.append(EngineRecord("onnxruntime-cpu", ("m.onnx",)))
    assert engine_names(records) == (
        *("openvino-cpu bf16", "openvino-cpu f32", "tensorrt-rtx sm75", "tensorrt-rtx sm86"),
        "onnxruntime-cpu",
    )


def test_a_first_run_in_a_process_of_its_own_says_why_it_failed(small_bundle: Path) -> None:
    with pytest.raises(MeasurementError, match="has no engine 'abacus'"):
        measure_cold_start(small_bundle, "abacus")


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (np.zeros((1, 1, 4, 4), np.float32), None),
        (np.full((1, 1, 2, 2), np.nan, np.float32), "4 of 4 logits are NaN"),
        ("text", "it gave str"),
    ],
    ids=["good", "nan", "text"],
)
def test_logits_are_checked_before_they_are_timed(result: Any, problem: str | None) -> None:
    found = check_logits(result)
    assert found is None if problem is None else problem in str(found)


def test_engines_are_closed_with_the_context(small_bundle: Path) -> None:
    with open_engines(small_bundle) as opened:
        session = opened.engines[0].session
    with pytest.raises(Exception, match="closed"):
        session.infer(np.zeros((1, 1, 64, 64), np.float32))


def test_the_page_beside_the_report_is_made_from_it_and_its_pictures(report: Report, report_folder: Path) -> None:
    page = (report_folder / "report.html").read_text(encoding="utf-8")
    assert page == render_report_page(report, report_folder)
    assert all(row.contender in page for row in report.latencies)
