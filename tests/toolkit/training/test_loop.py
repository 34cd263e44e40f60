"""The loop: it learns, it is deterministic, and a killed run ends in the same weights as an undisturbed one."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unetx_opt.cli.main import main
from unetx_opt.errors import CheckpointError, UnetxError
from unetx_opt.models.checkpoint import read_checkpoint
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.options import TrainingOptions
from unetx_opt.training.state import has_state, load_state

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'unetx-opt[train]'")

from unetx_opt.training import loop  # noqa: E402
from unetx_opt.training.loop import TrainedModel, train_model  # noqa: E402

_TINY = TrainingOptions("unet", width=2, size_px=32, epochs=3, batch_size=4, learning_rate=0.01)


def _train(options: TrainingOptions, folder: Path, state: Path, **watch: object) -> TrainedModel:
    splits = (FolderDataset.open(folder, split) for split in ("train", "validation"))
    return train_model(options, *splits, state, **watch)  # type: ignore[arg-type]


def _same_weights(first: TrainedModel, second: TrainedModel) -> bool:
    a, b = first.model.state_dict(), second.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_small_model_learns_two_ellipses(ellipse_folder: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(_TINY, width=4, epochs=12, average_decay=0.8)
    trained = _train(options, ellipse_folder, tmp_path / "state")
    assert trained.best.validation_dice > 0.85
    assert trained.best.validation_dice == max(record.validation_dice for record in trained.history)
    assert not trained.model.training


def test_equal_options_give_equal_weights_and_another_seed_others(ellipse_folder: Path, tmp_path: Path) -> None:
    first, second = (_train(_TINY, ellipse_folder, tmp_path / name) for name in ("a", "b"))
    assert first.history == second.history
    assert _same_weights(first, second)
    other = _train(dataclasses.replace(_TINY, seed=1), ellipse_folder, tmp_path / "c")
    assert not _same_weights(first, other)


@pytest.mark.parametrize("variant", ["focal", "attention", "dilated"])
def test_every_variant_trains_in_both_precisions(ellipse_folder: Path, tmp_path: Path, variant: str) -> None:
    for precision in ("fp32", "bf16"):
        options = dataclasses.replace(_TINY, variant=variant, epochs=1, precision=precision)
        trained = _train(options, ellipse_folder, tmp_path / precision)
        assert all(p.dtype == torch.float32 for p in trained.model.parameters())
        assert len(trained.history) == 1


def test_training_stops_when_nothing_gets_better(
    ellipse_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.6, 0.6, 0.4, 0.9])
    monkeypatch.setattr(loop, "validation_dice", lambda *_: next(scores))
    trained = _train(dataclasses.replace(_TINY, epochs=9, patience=2), ellipse_folder, tmp_path / "state")
    assert [record.validation_dice for record in trained.history] == [0.5, 0.6, 0.6, 0.4]
    assert trained.best.epoch == 2


def test_an_interrupted_run_goes_on_to_the_same_weights(ellipse_folder: Path, tmp_path: Path) -> None:
    def interrupt(report: loop.StepReport) -> None:
        if (report.epoch, report.step) == (3, 2):
            raise KeyboardInterrupt

    whole = _train(_TINY, ellipse_folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(_TINY, ellipse_folder, tmp_path / "state", watch=interrupt)
    assert len(load_state(tmp_path / "state").history) == 2
    resumed = _train(_TINY, ellipse_folder, tmp_path / "state")
    assert resumed.history == whole.history
    assert _same_weights(resumed, whole)


def test_a_killed_process_goes_on_to_the_same_checkpoint_bit_for_bit(ellipse_folder: Path, tmp_path: Path) -> None:
    arguments = ["train", "--variant", "attention", "--data", str(ellipse_folder), "--width", "2", "--size", "32"]
    arguments += ["--epochs", "16", "--patience", "16", "--batch-size", "4", "--precision", "fp32", "-o"]
    # Sums depend on the number of threads: the other process has as many as this one.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    environment = os.environ | threads | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    state = tmp_path / "killed.safetensors.state"

    command = [sys.executable, "-m", "unetx_opt.cli.main", *arguments, str(killed)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not has_state(state) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.uniform(0.0, 0.2))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not killed.exists()
    done = len(load_state(state).history)
    assert 1 <= done < 16

    assert main([*arguments, str(killed), "--resume"]) == 0
    assert main([*arguments, str(whole)]) == 0
    first, second = read_checkpoint(killed), read_checkpoint(whole)
    assert first.metadata == second.metadata
    for name, value in second.tensors.items():
        assert torch.equal(first.tensors[name], value), f"{name} differs: killed after epoch {done}"
    assert not state.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "seed 0 -> 5"),
        ({"epochs": 4}, "epochs 3 -> 4"),
        ({"variant": "dilated"}, "variant unet -> dilated"),
    ],
    ids=["seed", "epochs", "variant"],
)
def test_a_state_of_other_options_is_refused(
    ellipse_folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    _train(_TINY, ellipse_folder, tmp_path / "state")
    with pytest.raises(CheckpointError, match=message):
        _train(dataclasses.replace(_TINY, **change), ellipse_folder, tmp_path / "state")  # type: ignore[arg-type]


def test_a_state_of_other_images_is_refused(ellipse_folder: Path, tmp_path: Path) -> None:
    _train(_TINY, ellipse_folder, tmp_path / "state")
    training = FolderDataset.open(ellipse_folder, "train")
    fewer = dataclasses.replace(training, names=training.names[1:])
    with pytest.raises(CheckpointError, match="training images"):
        train_model(_TINY, fewer, FolderDataset.open(ellipse_folder, "validation"), tmp_path / "state")


def test_a_loss_that_is_not_finite_stops_the_run(
    ellipse_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = dataclasses.replace(loop.get_loss("bce_dice"), compute=lambda logits, labels: logits.sum() * float("nan"))
    monkeypatch.setattr(loop, "get_loss", lambda name: lost)
    with pytest.raises(UnetxError, match="the loss is nan in step 1 of epoch 1: lower the learning rate"):
        _train(_TINY, ellipse_folder, tmp_path / "state")


def test_one_image_is_too_few(ellipse_folder: Path, tmp_path: Path) -> None:
    training = FolderDataset.open(ellipse_folder, "train")
    single = dataclasses.replace(training, names=training.names[:1])
    with pytest.raises(UnetxError, match="1 training image, expected at least 2"):
        train_model(_TINY, single, training, tmp_path / "state")
