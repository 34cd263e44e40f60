"""Evaluations of several seeds, in one table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy import stats

from unetx_bench.reproduce.weights import read_seeds
from unetx_bench.seed_spread import main

Write = Callable[..., Path]
FIGURES = ("accuracy", "balanced_accuracy", "miou", "dice")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes an evaluation of two images, whose figures lie 0.02 around `value`."""

    def write_one(variant: str, seed: int, value: float, **settings: Any) -> Path:
        rows = [{"name": f"{k}.png", **dict.fromkeys(FIGURES, value + 0.02 * (2 * k - 1))} for k in range(2)]
        training = {"seed": seed, "epochs": 22, "device": "cpu", "best_epoch": seed, **settings}
        model = {"variant": variant, "sha256": "ab", "input_px": [256, 256], "training": training}
        path = tmp_path / f"{variant}-{seed}.json"
        path.write_text(json.dumps({"data_sha256": "cd", "per_image": rows, "model": model}))
        return path

    return write_one


def run(tmp_path: Path, *paths: Path) -> tuple[dict[str, Any], str]:
    output = tmp_path / "seeds.json"
    result = CliRunner().invoke(main, [*map(str, paths), "-o", str(output)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(output.read_text(encoding="ascii")), result.stdout


def test_the_spread_is_that_of_the_seeds_means(tmp_path: Path, write: Write) -> None:
    values = {"unet": (0.960, 0.962, 0.967), "focal": (0.955, 0.959, 0.960)}
    paths = [write(name, seed, value) for name, row in values.items() for seed, value in enumerate(row)]
    document, printed = run(tmp_path, *paths)
    for name, row in values.items():
        found = document["spread"][name]["dice"]
        assert found["mean"] == pytest.approx(statistics.fmean(row))
        assert found["std"] == pytest.approx(statistics.stdev(row))
        assert found["n"] == 3
    assert "| `unet` | 0, 1, 2 | 0.9630 +/- 0.0036 |" in printed


def test_the_interval_of_a_difference_is_that_of_students_t_paired_by_seed(tmp_path: Path, write: Write) -> None:
    unet, focal = (0.960, 0.962, 0.967), (0.955, 0.959, 0.960)
    paths = [write("unet", seed, value) for seed, value in enumerate(unet)]
    paths += [write("focal", seed, value) for seed, value in enumerate(focal)]
    document, _ = run(tmp_path, *paths)
    found = document["differences"]["focal"]["miou"]
    expected = stats.ttest_rel(focal, unet).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["mean"] == pytest.approx(statistics.fmean(focal) - statistics.fmean(unet))


def test_reproduce_reads_what_was_written(tmp_path: Path, write: Write) -> None:
    run(tmp_path, write("crf", 1, 0.95), write("crf", 0, 0.94, device="cuda"))
    seeds = read_seeds(tmp_path / "seeds.json")
    assert list(seeds) == ["crf"]
    assert seeds["crf"].figures["dice"] == pytest.approx({"0": 0.94, "1": 0.95})
    assert set(seeds["crf"].figures) == set(FIGURES)


def test_a_setting_that_an_older_checkpoint_lacks_had_its_default(tmp_path: Path, write: Write) -> None:
    document, _ = run(tmp_path, write("unet", 0, 0.96), write("unet", 1, 0.97, clip_norm=0.0))
    assert document["spread"]["unet"]["dice"]["n"] == 2


def test_one_seed_has_no_spread_and_no_interval(tmp_path: Path, write: Write) -> None:
    document, printed = run(tmp_path, write("unet", 0, 0.96), write("crf", 0, 0.97), write("focal", 1, 0.95))
    assert document["spread"]["unet"]["dice"]["std"] is None
    assert document["differences"]["crf"]["dice"] == {"mean": pytest.approx(0.01), "low": None, "high": None, "n": 1}
    assert "| `focal` | 0 | - | - | - | - |" in printed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda document: document["model"]["training"].update(epochs=40), "has epochs 40"),
        (lambda document: document["model"].pop("training"), "no variant and seed"),
        (lambda document: document["model"]["training"].update(seed=0), "both seed 0 of unet"),
        (lambda document: document["model"].update(input_px=[512, 512]), "has input_px [512, 512]"),
        (lambda document: document.update(data_sha256="ef"), "other content"),
        (lambda document: document["per_image"][0].update(dice=None), "lacks dice"),
    ],
    ids=["other settings", "no training", "the same seed", "other size", "other images", "no figure"],
)
def test_what_differs_in_more_than_the_seed_is_refused_in_one_line(
    tmp_path: Path, write: Write, change: Callable[[Any], Any], told: str
) -> None:
    first, second = write("unet", 0, 0.96), write("unet", 1, 0.97)
    document = json.loads(second.read_text())
    change(document)
    second.write_text(json.dumps(document))
    output = tmp_path / "seeds.json"
    result = CliRunner().invoke(main, [str(first), str(second), "-o", str(output)])
    assert result.exit_code == 1
    assert told in result.stderr
    assert "unet-1.json" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not output.exists()
