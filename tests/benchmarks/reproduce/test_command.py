"""`unetx-opt reproduce` on untrained networks of width 4: every stage is real, and no figure is worth anything."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_bench.reproduce.record import Reproduction, VariantRecord
from unetx_opt.cli.main import main
from unetx_opt.imaging.files import read_image
from unetx_opt.optional import find

pytestmark = [
    pytest.mark.skipif(not find(name), reason=f"needs {name}")
    for name in ("torch", "onnx", "onnxruntime", "jinja2", "psutil", "numba")
]
FILES = {"page.html", "table.csv", "table.json", "table.md", "timing.json", "work"}


def arguments(data: Path, checkpoints: Path, output: Path, *extra: str) -> list[str]:
    tiny = ["--size", "32", "--target", "onnxruntime-cpu", "--precision", "fp32", "--seconds", "1"]
    given = ["--data", str(data), "--checkpoints", str(checkpoints)]
    return ["reproduce", "-o", str(output), *given, "--quick", *tiny, *extra]


@pytest.fixture(scope="module")
def finished(ellipses: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run over four of the six variants, one of which has no weights."""
    output = tmp_path_factory.mktemp("reproduce") / "out"
    names = "focal,dilated,crf"
    assert main(arguments(ellipses, checkpoints, output, "--variants", names)) == 0
    return output


@pytest.fixture(scope="module")
def rows(finished: Path) -> dict[str, VariantRecord]:
    result = Reproduction.model_validate_json((finished / "table.json").read_text(encoding="utf-8"))
    return {row.name: row for row in result.variants}


def test_a_run_leaves_whole_files_and_nothing_else(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    assert not list(finished.rglob(".*partial*"))


def test_every_variant_that_was_asked_for_is_a_row(rows: dict[str, VariantRecord]) -> None:
    assert list(rows) == ["unet", "focal", "dilated", "crf"]
    assert rows["dilated"].missing is not None
    assert "dilated.safetensors" in rows["dilated"].missing
    assert all(row.missing is None for name, row in rows.items() if name != "dilated")


def test_the_accuracy_is_that_of_the_test_split_by_hand(
    rows: dict[str, VariantRecord], finished: Path, ellipses: Path
) -> None:
    from unetx_opt.runtime import open_bundle

    names = [f"{index:02d}.png" for index in range(14, 20)]
    (bundle,) = (finished / "work" / "bundles").glob("data-*/crf-fp32")
    with open_bundle(bundle) as segmenter:
        shares = []
        for name in names:
            found = segmenter.segment(read_image(ellipses / "images" / name).pixels).labels
            truth = read_image(ellipses / "masks" / name).pixels > 127
            shares.append(float(np.mean(found == truth)))
    score = rows["crf"].scores["accuracy"]
    assert score.n == 6
    assert score.mean == pytest.approx(np.mean(shares), abs=1e-9)


def test_differences_are_those_of_the_means(rows: dict[str, VariantRecord]) -> None:
    for name in ("focal", "crf"):
        for found in rows[name].differences:
            expected = rows[name].scores[found.figure].mean - rows["unet"].scores[found.figure].mean
            assert found.minus == "unet"
            assert found.mean == pytest.approx(expected, abs=1e-9)
            assert found.low <= found.mean <= found.high


def test_a_loss_and_a_step_change_no_graph(rows: dict[str, VariantRecord]) -> None:
    graphs = {name: row.graph for name, row in rows.items() if row.graph is not None}
    hashes = {name: graph.structure_sha256 for name, graph in graphs.items()}
    assert hashes["unet"] == hashes["focal"] == hashes["crf"]
    assert graphs["focal"].flop_ratio == 1.0
    # 32 x 32 pixels, 3 x 3 kernels: the two convolutions of the first stage alone, from 1 to 4 and from 4 to 4.
    assert graphs["unet"].flop > 2 * 9 * 32 * 32 * (4 + 16)


def test_times_are_those_of_the_samples(rows: dict[str, VariantRecord], finished: Path) -> None:
    samples = json.loads((finished / "timing.json").read_text())["samples"]
    assert set(samples) == {"unet", "focal", "crf"}
    assert {name for name, lanes in samples.items() if "step" in lanes} == {"crf"}
    for name, lanes in samples.items():
        (found,) = rows[name].latencies
        assert found.ms.value == pytest.approx(np.median(lanes[found.engine]))
        assert found.rounds == len(lanes[found.engine])
    (whole,) = rows["crf"].latencies
    both = np.add(samples["crf"][whole.engine], samples["crf"]["step"])
    assert whole.ms_with_step is not None
    assert whole.ms_with_step.value == pytest.approx(np.median(both))
    assert rows["crf"].step is not None
    assert rows["crf"].step.ms.value == pytest.approx(np.median(samples["crf"]["step"]))


def test_the_claims_follow_from_the_figures(finished: Path) -> None:
    result = Reproduction.model_validate_json((finished / "table.json").read_text(encoding="utf-8"))
    answers = {claim.id: claim.verdict.value for claim in result.claims}
    assert answers["C3"] == "not reproduced"
    assert answers["C5"] == "not decidable"
    assert "one and the same graph" in next(claim.reason for claim in result.claims if claim.id == "C3")


def test_page_and_tables_show_the_same_run(finished: Path, rows: dict[str, VariantRecord]) -> None:
    figure = f"{rows['unet'].scores['accuracy'].mean:.4f}"
    assert figure in (finished / "page.html").read_text(encoding="utf-8")
    assert figure in (finished / "table.md").read_text(encoding="utf-8")
    with (finished / "table.csv").open(newline="") as file:
        assert [row["variant"] for row in csv.DictReader(file)] == list(rows)


def test_no_path_of_this_machine_is_told(finished: Path, ellipses: Path) -> None:
    for name in FILES - {"work"}:
        text = (finished / name).read_text(encoding="utf-8")
        assert str(ellipses.parent) not in text
        assert str(finished.parent) not in text


def test_a_finished_output_is_not_replaced_unasked(
    finished: Path, ellipses: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "table.json").read_bytes()
    assert main(arguments(ellipses, checkpoints, finished)) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (finished / "table.json").read_bytes() == before


def test_a_run_that_was_stopped_goes_on_with_what_it_had(
    finished: Path, ellipses: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished / "work", output / "work")
    (output / "work" / "latency.json").unlink()
    names = "focal,dilated,crf"
    assert main(arguments(ellipses, checkpoints, output, "--variants", names, "--json")) == 0
    captured = capsys.readouterr()
    assert "timing" in captured.err
    assert "building" not in captured.err
    assert "scoring" not in captured.err
    again = Reproduction.model_validate_json(captured.out)
    first = Reproduction.model_validate_json((finished / "table.json").read_text(encoding="utf-8"))
    assert [row.scores for row in again.variants] == [row.scores for row in first.variants]


def test_overwriting_begins_anew_once_all_is_found_and_leaves_what_others_wrote(
    finished: Path, ellipses: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    (bundles,) = (output / "work" / "bundles").glob("data-*")
    foreign = {
        output / "work" / "notes.json": '{"mine": 1}',
        output / "work" / "bundles" / "mine.txt": "mine",
        bundles / "mine-fp32" / "manifest.json": "{}",
        bundles / "focal-fp16" / "mine.txt": "mine",
        output / "work" / "checkpoints" / "trained" / "unet.safetensors": "weights",
    }
    for path, text in foreign.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(arguments(ellipses, empty, output, "--overwrite")) == 1
    assert main(arguments(tmp_path / "absent", checkpoints, output, "--overwrite")) == 1
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    assert main(arguments(ellipses, checkpoints, output, "--overwrite", "--variants", "unet")) == 0
    told = capsys.readouterr().err
    assert all(word in told for word in ("building unet", "scoring unet", "timing"))
    assert {path: path.read_text() for path in foreign} == foreign
    assert not (bundles / "crf-fp32").exists()
    assert not (output / "work" / "scores-crf-fp32.json").exists()
    assert (output / "table.json").read_bytes() != before[output / "table.json"]


def test_another_folder_of_the_same_name_shares_no_bundle(
    finished: Path, ellipses: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, other = tmp_path / "out", tmp_path / ellipses.name
    shutil.copytree(finished / "work", output / "work")
    shutil.copytree(ellipses, other)
    splits = (other / "splits.csv").read_text()
    (other / "splits.csv").write_text(splits.replace("13.png,p13,validation", "13.png,p13,train"))
    assert main(arguments(other, checkpoints, output, "--variants", "unet")) == 0
    assert "building unet fp32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--variants", "unet,other"], "other"),
        (["--size", "34"], "multiple of 4"),
        (["--seeds", "SEEDS"], "JSON"),
        (["--train", "--quick"], "--quick"),
    ],
    ids=["variant", "size", "seeds", "train"],
)
def test_what_cannot_be_done_is_one_line_and_leaves_no_table(
    ellipses: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], told: Any
) -> None:
    seeds = tmp_path / "seeds.json"
    seeds.write_text("[1]")
    options = [str(seeds) if word == "SEEDS" else word for word in extra]
    assert main(arguments(ellipses, checkpoints, tmp_path / "out", *options)) in (1, 2)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out" / "table.json").exists()


@pytest.mark.parametrize("name", ["taken", "taken/out"])
def test_an_output_that_is_a_file_is_refused_in_one_line_before_any_work(
    ellipses: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "taken").write_text("mine")
    assert main(arguments(ellipses, checkpoints, tmp_path / name)) == 1
    told = capsys.readouterr().err
    assert "taken is a file, expected a folder" in told
    assert len(told.strip().splitlines()) == 1
    assert (tmp_path / "taken").read_text() == "mine"
