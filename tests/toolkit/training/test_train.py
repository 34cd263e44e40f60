"""`unetx-opt train`: its result, its refusals, and what it says when it is stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unetx_opt.cli.main import main
from unetx_opt.models.checkpoint import load_model, read_checkpoint
from unetx_opt.training import loop
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.scores import score_model, summarize_scores

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'unetx-opt[train]'")


def _arguments(folder: Path, output: Path, *extra: str) -> list[str]:
    tiny = ["--width", "2", "--size", "32", "--epochs", "2", "--batch-size", "4", "--precision", "fp32"]
    return ["train", "--variant", "unet", "--data", str(folder), "-o", str(output), *tiny, *extra]


def test_a_checkpoint_says_how_it_was_made_and_its_figures_can_be_repeated(
    ellipse_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "model.safetensors"
    assert main(_arguments(ellipse_folder, output, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    checkpoint = read_checkpoint(output)
    assert result["sha256"] == checkpoint.sha256
    assert (checkpoint.variant, checkpoint.spec.width) == ("unet", 2)
    training = json.loads(checkpoint.metadata["training"])
    assert (training["seed"], training["size_px"], training["epochs_done"]) == (0, 32, 2)
    data = json.loads(checkpoint.metadata["data"])
    assert data["images"] == {"train": 10, "calibration": 0, "validation": 4, "test": 2}
    assert str(ellipse_folder.parent) not in "".join(checkpoint.metadata.values())
    validation = json.loads(checkpoint.metadata["validation"])
    scores = score_model(load_model(checkpoint), FolderDataset.open(ellipse_folder, "validation"), 32)
    assert validation == summarize_scores(scores) | {"size_px": 32}
    assert data["labels"] == ["background", "foreground"]
    assert sorted(path.name for path in output.parent.iterdir()) == ["model.safetensors", "model.safetensors.log"]
    assert len((output.parent / "model.safetensors.log" / "metrics.csv").read_text().splitlines()) == 3


def test_without_json_stdout_is_one_line(
    ellipse_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(ellipse_folder, tmp_path / "model.safetensors")) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "validation Dice" in captured.out
    assert "epoch 1: loss" in captured.err


def test_an_interrupted_run_says_how_to_go_on_and_then_does(
    ellipse_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.safetensors"
    real, calls = loop.validation_dice, []

    def interrupt(*arguments: object) -> float:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "validation_dice", interrupt)
    assert main(_arguments(ellipse_folder, output)) == 130
    assert "model.safetensors.state: run the same command with --resume" in capsys.readouterr().err
    assert not output.exists()

    assert main(_arguments(ellipse_folder, output)) == 1
    assert "holds a run that was stopped: pass --resume" in capsys.readouterr().err
    assert main(_arguments(ellipse_folder, output, "--resume", "--seed", "3")) == 1
    assert "seed 0 -> 3" in capsys.readouterr().err
    assert main(_arguments(ellipse_folder, output, "--resume")) == 0
    assert output.is_file()
    assert not output.with_name("model.safetensors.state").exists()


def test_the_log_of_an_earlier_run_is_kept_unless_told_otherwise(
    ellipse_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "runs" / "first"
    assert main(_arguments(ellipse_folder, tmp_path / "a.safetensors", "--log", str(log))) == 0
    rows = (log / "metrics.csv").read_text()
    assert rows.count("\n") == 3
    assert main(_arguments(ellipse_folder, tmp_path / "b.safetensors", "--log", str(log), "--seed", "1")) == 1
    assert "holds the log of an earlier run: choose another --log" in capsys.readouterr().err
    assert (log / "metrics.csv").read_text() == rows
    assert not (tmp_path / "a.safetensors.log").exists()
    arguments = _arguments(
        ellipse_folder, tmp_path / "b.safetensors", "--log", str(log), "--seed", "1", "--overwrite"
    )
    assert main(arguments) == 0
    assert (log / "metrics.csv").read_text() != rows


def test_a_cache_is_kept_for_the_next_run_and_the_one_of_a_run_alone_is_not(
    ellipse_folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert main(_arguments(ellipse_folder, tmp_path / "a.safetensors", "--cache", str(cache))) == 0
    entries = {path: path.stat().st_mtime_ns for path in cache.rglob("*.prepared")}
    assert len(entries) == 14
    assert main(_arguments(ellipse_folder, tmp_path / "b.safetensors", "--cache", str(cache))) == 0
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.prepared")} == entries
    assert read_checkpoint(tmp_path / "a.safetensors").sha256 == read_checkpoint(tmp_path / "b.safetensors").sha256
    assert main(_arguments(ellipse_folder, tmp_path / "c.safetensors")) == 0
    assert sorted(path.name for path in tmp_path.glob("c.*")) == ["c.safetensors", "c.safetensors.log"]


def test_resuming_nothing_starts_from_the_beginning(
    ellipse_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(ellipse_folder, tmp_path / "model.safetensors", "--resume")) == 0
    assert "starting from the beginning" in capsys.readouterr().err


def test_a_checkpoint_that_is_there_is_kept_unless_told_otherwise(
    ellipse_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.safetensors"
    output.write_bytes(b"precious")
    assert main(_arguments(ellipse_folder, output)) == 1
    assert "already exists: choose another output, or pass --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == b"precious"
    assert main(_arguments(ellipse_folder, output, "--overwrite")) == 0
    assert read_checkpoint(output).variant == "unet"


@pytest.mark.parametrize(
    ("extra", "code"),
    [(("--variant", "vnet"), 2), (("--precision", "fp8"), 2), (("--epochs", "0"), 2), (("--learning-rate", "7"), 1)],
    ids=["variant", "precision", "epochs", "learning rate"],
)
def test_bad_settings_are_refused_before_anything_is_written(
    ellipse_folder: Path, tmp_path: Path, extra: tuple[str, str], code: int
) -> None:
    assert main(_arguments(ellipse_folder, tmp_path / "model.safetensors", *extra)) == code
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_validation_images_is_refused_by_name(
    tmp_path: Path, ellipse_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for folder in ("images", "masks"):
        (root / folder).symlink_to(ellipse_folder / folder)
    (root / "splits.csv").write_text("file,patient,split\n00.png,a,train\n01.png,b,train\n")
    assert main(_arguments(root, tmp_path / "model.safetensors")) == 1
    assert "no image in split 'validation'" in capsys.readouterr().err
