"""The loop: it learns, it is deterministic, and an interrupted run ends in the weights of an undisturbed one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from unetx_opt.errors import CheckpointError, DataError, UnetxError
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.options import PRECISIONS, TrainingOptions
from unetx_opt.training.state import load_state

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'unetx-opt[train]'")

pytest.importorskip("monai", reason="views are cut by MONAI: pip install 'unetx-opt[train]'")

from unetx_opt.training import loop, run  # noqa: E402
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
def test_every_variant_trains_in_every_precision(ellipse_folder: Path, tmp_path: Path, variant: str) -> None:
    for precision in PRECISIONS:
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


def test_a_run_in_float16_goes_on_with_its_scale_to_the_same_weights(
    ellipse_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU: the arithmetic of a GPU is another, the bookkeeping is the same."""
    scales: list[float] = []
    lengths: list[float] = []
    step = torch.amp.GradScaler.step

    def watched(self: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> object:
        scales.append(self.get_scale())
        gradients = [p.grad.norm() for group in optimizer.param_groups for p in group["params"]]
        lengths.append(float(torch.stack(gradients).norm()))
        return step(self, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "step", watched)
    # The scale grows after 2000 good steps; here after two, so that it moves while the test lasts.
    monkeypatch.setattr(run, "gradient_scaler", lambda options: torch.amp.GradScaler("cpu", growth_interval=2))
    options = dataclasses.replace(_TINY, precision="fp16", clip_norm=1e3)
    whole = _train(options, ellipse_folder, tmp_path / "whole")
    expected, scales = scales, []

    def interrupt(report: loop.StepReport) -> None:
        if (report.epoch, report.step) == (3, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(options, ellipse_folder, tmp_path / "state", watch=interrupt)
    done = 2 * 3
    assert scales[:done] == expected[:done]
    scales.clear()
    resumed = _train(options, ellipse_folder, tmp_path / "state")
    assert scales == expected[done:]
    assert len(set(expected[done - 1 :])) > 1
    # Clipped without their scale: none is as long as a scaled one, which would be cut at 1000.
    assert 0.0 < max(length for length in lengths if math.isfinite(length)) < 100.0
    assert _same_weights(resumed, whole)


def test_a_gradient_that_is_longer_than_allowed_is_shortened_and_a_shorter_one_left(
    ellipse_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[float] = []
    step = torch.amp.GradScaler.step

    def watched(self: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> object:
        gradients = [p.grad.norm() for group in optimizer.param_groups for p in group["params"]]
        lengths.append(float(torch.stack(gradients).norm()))
        return step(self, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "step", watched)
    plain = _train(_TINY, ellipse_folder, tmp_path / "plain")
    free, limit = list(lengths), sorted(lengths)[len(lengths) // 2]
    lengths.clear()
    _train(dataclasses.replace(_TINY, clip_norm=limit), ellipse_folder, tmp_path / "clipped")
    assert max(free) > 1.01 * limit
    assert max(lengths) <= 1.001 * limit
    assert lengths[0] == pytest.approx(min(free[0], limit), rel=1e-4)
    never = _train(dataclasses.replace(_TINY, clip_norm=1e6), ellipse_folder, tmp_path / "never")
    assert _same_weights(never, plain)


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


def test_splits_with_other_labels_are_refused(ellipse_folder: Path, tmp_path: Path) -> None:
    training, validation = (FolderDataset.open(ellipse_folder, split) for split in ("train", "validation"))

    class Organs:
        label_names = ("background", "heart")
        names = validation.names

        def __len__(self) -> int:
            return len(self.names)

    other: Any = Organs()
    with pytest.raises(DataError, match=r"'foreground'.*'heart'.*they must agree"):
        train_model(_TINY, training, other, tmp_path / "state")


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
