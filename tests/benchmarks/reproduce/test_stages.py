"""What the stages are given and keep: test images, weights, kept results, times, differences."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import subprocess
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from unetx_bench.environment import capture_environment
from unetx_bench.measurement import MeasureOptions
from unetx_bench.ratios import ratio_interval
from unetx_bench.reproduce import latency as latency_module
from unetx_bench.reproduce.accuracy import FIGURES, compare_variants, summarize_scores
from unetx_bench.reproduce.images import ImageChoice, open_images
from unetx_bench.reproduce.latency import TimedRun, TimeSetting, estimate_engines, estimate_step, time_variants
from unetx_bench.reproduce.plan import ReproduceOptions
from unetx_bench.reproduce.stages import Workplace
from unetx_bench.reproduce.weights import find_weights, read_seeds
from unetx_opt.errors import CheckpointError, DataError

ENGINE = "onnxruntime-cpu fp32 (float32)"


def test_the_test_split_is_read_and_called_by_its_name(ellipses: Path) -> None:
    images = open_images(ImageChoice(ellipses, None, 4, 64), 2)
    assert images.names == tuple(f"{index:02d}.png" for index in range(14, 20))
    assert (images.record.kind, images.record.split) == ("folder", "test")
    assert "not NIH" in images.record.note
    pixels, truth = images.read(0)
    assert pixels.shape == truth.shape == (48, 40)
    assert set(np.unique(truth)) == {0, 1}


def test_fewer_images_are_the_same_few_every_time(ellipses: Path) -> None:
    few = open_images(ImageChoice(ellipses, 3, 4, 64), 2)
    assert (few.record.images, few.record.available) == (3, 6)
    assert set(few.names) <= set(open_images(ImageChoice(ellipses, 5, 4, 64), 2).names)
    assert few.record == open_images(ImageChoice(ellipses, 3, 4, 64), 2).record
    assert few.record.images_sha256 != open_images(ImageChoice(ellipses, 4, 4, 64), 2).record.images_sha256
    whole = open_images(ImageChoice(ellipses, None, 4, 64), 2)
    for index, name in enumerate(few.names):
        assert np.array_equal(few.read(index)[1], whole.read(whole.names.index(name))[1])


def test_phantoms_are_called_phantoms() -> None:
    images = open_images(ImageChoice(None, None, 3, 64), 2)
    assert (images.record.kind, images.record.split, len(images.names)) == ("phantom", None, 3)
    assert "not patients" in images.record.note
    with pytest.raises(DataError, match="--data"):
        open_images(ImageChoice(None, None, 3, 64), 4)


def test_masks_with_other_labels_than_the_networks_are_refused(ellipses: Path) -> None:
    with pytest.raises(DataError, match="2 labels and those of the networks 4"):
        open_images(ImageChoice(ellipses, None, 3, 64), 4)


def plan(**given: Any) -> Any:
    options = ReproduceOptions(Path("out"), **given)
    return types.SimpleNamespace(options=options, variants=("unet", "focal", "dilated", "crf"))


def test_weights_come_from_the_folder_and_a_missing_file_is_named(checkpoints: Path) -> None:
    found, missing = find_weights(plan(checkpoints=checkpoints), print)
    assert list(found) == ["unet", "focal", "crf"]
    assert (found["crf"].label_count, found["crf"].divisor) == (2, 4)
    assert list(missing) == ["dilated"]
    assert "dilated.safetensors" in missing["dilated"]


def test_weights_of_another_variant_are_not_taken(checkpoints: Path, tmp_path: Path) -> None:
    for name, source in (("unet", "unet"), ("focal", "unet")):
        (tmp_path / f"{name}.safetensors").write_bytes((checkpoints / f"{source}.safetensors").read_bytes())
    missing = find_weights(plan(checkpoints=tmp_path), print)[1]
    assert "holds variant unet, asked for focal" in missing["focal"]


def test_without_a_baseline_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="baseline"):
        find_weights(plan(checkpoints=tmp_path), print)


def test_what_has_no_weights_is_trained_on_the_data(ellipses: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ReproduceOptions(output, data=ellipses, train=True, epochs=1, width=2, size_px=32)
    asked = types.SimpleNamespace(options=options, variants=("unet",))
    told: list[str] = []
    found, missing = find_weights(asked, told.append)
    assert missing == {}
    assert told == ["training unet"]
    assert (found["unet"].record.trained_on, found["unet"].record.trained_size_px) == (ellipses.name, 32)
    again = find_weights(asked, told.append)[0]
    assert again["unet"].record == found["unet"].record
    assert told == ["training unet"]


def test_a_step_alone_is_fitted_to_the_weights_of_the_baseline_with_a_mock_in_place_of_the_command(
    ellipses: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def write(command: list[str], **given: Any) -> Any:
        calls.append(command)
        name = command[command.index("--variant") + 1]
        source = checkpoints / f"{name}.safetensors"
        if not source.is_file():
            return types.SimpleNamespace(returncode=1)
        Path(command[command.index("--output") + 1]).write_bytes(source.read_bytes())
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", write)
    options = ReproduceOptions(tmp_path / "out", data=ellipses, train=True, epochs=3, partial=True)
    names = ("unet", "focal", "crf")
    found = find_weights(types.SimpleNamespace(options=options, variants=names), print)[0]
    assert list(found) == list(names)
    assert ["--weights" in command for command in calls] == [False, False, True]
    assert ["--resume" in command for command in calls] == [True, True, False]
    assert str(found["unet"].path) in calls[2]
    assert all("--partial" in command for command in calls)


def test_another_folder_of_the_same_name_shares_no_weights_with_a_mock_in_place_of_the_command(
    ellipses: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(command: list[str], **given: Any) -> Any:
        Path(command[command.index("--output") + 1]).write_bytes((checkpoints / "unet.safetensors").read_bytes())
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", write)
    other = tmp_path / ellipses.name
    shutil.copytree(ellipses, other)
    splits = (other / "splits.csv").read_text()

    def weights_of(data: Path) -> Path:
        options = ReproduceOptions(tmp_path / "out", data=data, train=True)
        found = find_weights(types.SimpleNamespace(options=options, variants=("unet",)), print)[0]
        return found["unet"].path

    first = weights_of(ellipses)
    assert weights_of(other) == first  # a copy is the same data
    (other / "splits.csv").write_text(splits.replace("14.png,p14,test", "14.png,p14,train"))
    resplit = weights_of(other)
    (other / "splits.csv").write_text(splits)
    (other / "masks" / "00.png").write_bytes((other / "masks" / "01.png").read_bytes())
    assert len({first, resplit, weights_of(other)}) == 3


def test_a_training_that_fails_is_a_row_and_that_of_the_baseline_the_end_with_a_mock_in_place_of_the_command(
    ellipses: Path, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def write(command: list[str], **given: Any) -> Any:
        name = command[command.index("--variant") + 1]
        trained.append(name)
        if name not in able:
            return types.SimpleNamespace(returncode=3)
        source = checkpoints / f"{name}.safetensors"
        Path(command[command.index("--output") + 1]).write_bytes(source.read_bytes())
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", write)
    options = ReproduceOptions(tmp_path / "out", data=ellipses, train=True, epochs=3)
    asked = types.SimpleNamespace(options=options, variants=("unet", "dilated", "focal"))
    able: tuple[str, ...] = ()
    with pytest.raises(CheckpointError, match=r"baseline.*training unet ended with exit code 3"):
        find_weights(asked, print)
    assert trained == ["unet"]  # no hours are spent on what there is nothing to compare with
    able = ("unet", "focal")
    found, missing = find_weights(asked, print)
    assert list(found) == ["unet", "focal"]
    assert list(missing) == ["dilated"]
    assert "training dilated ended with exit code 3" in missing["dilated"]


def test_seeds_are_read_by_figure(tmp_path: Path) -> None:
    path = tmp_path / "seeds.json"
    path.write_text(
        json.dumps({"note": "x", "unet": {"0": {"accuracy": 0.98, "dice": 0.96}, "1": {"accuracy": 0.97}}})
    )
    seeds = read_seeds(path)
    assert list(seeds) == ["unet"]
    assert seeds["unet"].figures == {"accuracy": {"0": 0.98, "1": 0.97}, "dice": {"0": 0.96}}
    assert read_seeds(None) == {}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[1]",
            "{",
            '{"unet": 1}',
            '{"unet": {"0": {"accuracy": "high"}}}',
            '{"unet": {"0": {"accuracy": true}}}',
        ),
        *(f'{{"unet": {{"0": {{"accuracy": {value}}}}}}}' for value in ("NaN", "Infinity", "1e999", "1" + "0" * 400)),
        '{"unet": {"0": {"' + "x" * 999 + '": 0.9}}}',
    ],
)
def test_seeds_that_are_no_figures_are_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "seeds.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"seeds\.json") as caught:
        read_seeds(path)
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)


def test_a_result_is_made_once_for_each_key(tmp_path: Path) -> None:
    place, made = Workplace(tmp_path / "work"), []

    def make() -> Any:
        made.append(1)
        return {"value": (1.5, 2)}

    assert place.recall("stage", {"a": (1, 2)}, make) == {"value": [1.5, 2]}
    assert place.recall("stage", {"a": (1, 2)}, make) == {"value": [1.5, 2]}
    assert len(made) == 1
    place.recall("stage", {"a": (1, 3)}, make)
    assert len(made) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": {}}', '{"key": {"a": 1}}'])
def test_a_damaged_result_is_made_anew(tmp_path: Path, damage: str) -> None:
    place = Workplace(tmp_path)
    (tmp_path / "stage.json").write_text(damage)
    assert place.recall("stage", {"a": 1}, lambda: 7) == 7
    assert json.loads((tmp_path / "stage.json").read_text()) == {"key": {"a": 1}, "value": 7}


def test_times_are_taken_anew_on_another_machine_or_image_with_a_mock_in_place_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psutil", reason="the machine is described by psutil: pip install 'unetx-opt[bench]'")
    counted: list[int] = []

    def measure(*given: Any) -> dict[str, Any]:
        counted.append(1)
        return {
            "samples_ms": {"unet": {ENGINE: [1.0]}},
            "facts": {},
            "left_out": {},
            "disturbances": [],
            "stopped": "",
        }

    monkeypatch.setattr(latency_module, "_measure", measure)
    here, pixels, place = capture_environment(), np.zeros((4, 4), dtype=np.uint8), Workplace(tmp_path)

    def times_measured(environment: Any, image: Any = pixels) -> int:
        time_variants({}, image, TimeSetting(MeasureOptions(), environment), place, print)
        return len(counted)

    assert times_measured(here) == 1
    later = dataclasses.replace(here.state, taken="2030-01-01T00:00:00Z", load_average=(9.0, 9.0, 9.0))
    assert times_measured(dataclasses.replace(here, state=later)) == 1
    assert times_measured(dataclasses.replace(here, cpu="another CPU")) == 2
    assert times_measured(dataclasses.replace(here, packages={"numpy": "0"})) == 3
    assert times_measured(here, pixels + np.uint8(1)) == 4
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    assert times_measured(here, pixels + np.uint8(1)) == 5
    assert "elsewhere" not in (tmp_path / "latency.json").read_text()


@pytest.fixture(name="run")
def _run() -> TimedRun:
    generator = np.random.default_rng(0)
    drift = 1 + 0.3 * np.sin(np.arange(200) / 20)
    base = 40 * drift * generator.normal(1, 0.01, 200)
    samples = {
        "unet": {ENGINE: base},
        "crf": {ENGINE: 36 * drift * generator.normal(1, 0.01, 200), "step": 9 * drift},
    }
    facts = {ENGINE: {"precision": "fp32", "target": "onnxruntime-cpu", "compute_dtype": "float32"}}
    return TimedRun(samples, facts, {}, (), "time")


def test_times_are_paired_by_round_and_the_step_is_added_round_by_round(run: TimedRun) -> None:
    (found,) = estimate_engines(run, "crf", comparable=True)
    both = run.samples_ms["crf"][ENGINE] + run.samples_ms["crf"]["step"]
    assert found.ratio is not None
    assert found.ratio_with_step is not None
    assert found.ms_with_step is not None
    expected = ratio_interval(both, run.samples_ms["unet"][ENGINE])
    assert (found.ratio_with_step.value, found.ratio_with_step.high) == (expected.value, expected.high)
    assert found.ratio.value == pytest.approx(0.9, rel=0.005)
    assert found.ms_with_step.value == pytest.approx(np.median(both))
    # What drifts with the machine is in both, and does not widen the ratio.
    assert found.ratio.low is not None
    assert found.ratio.low > 0.89
    step = estimate_step(run, "crf", "dense_crf")
    assert step is not None
    assert step.ms.value == pytest.approx(np.median(run.samples_ms["crf"]["step"]))


def test_the_baseline_and_what_is_not_alike_have_no_ratio(run: TimedRun) -> None:
    (base,) = estimate_engines(run, "unet", comparable=True)
    assert (base.ratio, base.ms_with_step, base.ratio_with_step) == (None, None, None)
    (other,) = estimate_engines(run, "crf", comparable=False)
    assert other.ratio is None
    assert other.ratio_with_step is None
    assert other.ms_with_step is not None
    assert estimate_step(run, "unet", None) is None


def test_too_few_rounds_give_a_median_and_no_ratio(run: TimedRun) -> None:
    short = {
        name: {engine: row[:4] for engine, row in lanes.items() if engine != "step"}
        for name, lanes in run.samples_ms.items()
    }
    (found,) = estimate_engines(dataclasses.replace(run, samples_ms=short), "crf", comparable=True)
    assert found.ms.value == pytest.approx(np.median(short["crf"][ENGINE]))
    assert (found.ms.low, found.ratio) == (None, None)
    assert found.ms.why == "4 rounds are too few"


def test_rounds_that_depend_on_one_another_have_a_median_and_no_interval_and_say_why(run: TimedRun) -> None:
    slow = np.repeat([40.0, 50.0], 100)  # a machine that changed its pace half-way
    (found,) = estimate_engines(
        dataclasses.replace(run, samples_ms={"unet": {ENGINE: slow}}), "unet", comparable=True
    )
    assert (found.ms.low, found.ms.high) == (None, None)
    assert found.ms.why is not None
    assert "autocorrelated" in found.ms.why
    assert "200 count as" in found.ms.why
    (usual,) = estimate_engines(run, "unet", comparable=True)
    assert (usual.ms.low is None) is (usual.ms.why is not None)


def _scores(shift: float, count: int = 12) -> dict[str, dict[str, float]]:
    generator = np.random.default_rng(3)
    values = 0.9 + 0.05 * generator.random(count)
    noise = np.random.default_rng(int(1000 * shift) + 1).normal(0, 0.002, count)
    row = {f"{index}.png": float(value) for index, value in enumerate(values + shift + noise)}
    return dict.fromkeys(FIGURES, row)


def test_differences_are_paired_by_image_and_their_p_values_are_those_of_a_permutation_test() -> None:
    scores = {"unet": _scores(0.0), "focal": _scores(0.002), "combined": _scores(0.01)}
    found = compare_variants(scores)
    assert found["unet"] == ()
    assert [row.minus for row in found["combined"] if row.figure == "accuracy"] == ["unet", "focal"]
    (focal,) = (row for row in found["focal"] if row.figure == "accuracy")
    values = [list(scores[name]["accuracy"].values()) for name in ("focal", "unet")]
    assert focal.mean == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    expected = stats.permutation_test(
        values, lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert focal.p_value == pytest.approx(expected.pvalue)
    assert focal.p_holm is not None
    assert focal.p_holm >= focal.p_value
    alone = next(row for row in found["combined"] if row.minus == "focal")
    assert alone.p_holm == alone.p_value  # the only comparison of its family


def test_the_combination_against_the_others_is_a_family_of_its_own() -> None:
    shifts = {"unet": 0.0, "focal": 0.0095, "crf": 0.01, "combined": 0.011}
    found = compare_variants({name: _scores(shift) for name, shift in shifts.items()})
    rows = {row.minus: row for row in found["combined"] if row.figure == "accuracy"}
    first, second = sorted((rows["focal"], rows["crf"]), key=lambda row: row.p_value)
    assert first.p_holm == pytest.approx(min(1.0, 2 * first.p_value))
    assert second.p_holm == pytest.approx(max(first.p_holm, second.p_value))


def test_one_image_has_means_and_no_interval() -> None:
    scores = {"unet": _scores(0.0, 1), "focal": _scores(0.002, 1)}
    assert compare_variants(scores) == {"unet": (), "focal": ()}
    score = summarize_scores(scores["unet"])["dice"]
    assert (score.n, score.std, score.low, score.high) == (1, None, None, None)
