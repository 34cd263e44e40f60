"""The metrics log: every epoch once, in the table and in TensorBoard's own reading of its files."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from unetx_opt.errors import UnetxError
from unetx_opt.training import metrics_log
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.metrics_log import EpochFigures, MetricsLog
from unetx_opt.training.options import Resources, TrainingOptions

pytest.importorskip("torch", reason="TensorBoard's files are written through torch: pip install 'unetx-opt[train]'")


def _figures(epoch: int, loss: float = 0.5) -> EpochFigures:
    return EpochFigures(epoch, loss, 1e-3, 0.25 * epoch, 12.5, 80.0)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator: Any = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'unetx-opt[train]'"
    )
    reader = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_the_table_and_tensorboard_say_the_same(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "log", 0) as log:
        for epoch in (1, 2, 3):
            log.add(_figures(epoch))
    rows = _rows(tmp_path / "log")
    assert [EpochFigures(int(row.pop("epoch")), **{k: float(v) for k, v in row.items()}) for row in rows] == [
        _figures(1),
        _figures(2),
        _figures(3),
    ]
    events = _events(tmp_path / "log")
    assert set(events) == {field.name for field in dataclasses.fields(EpochFigures)} - {"epoch"}
    assert events["validation_dice"] == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_a_row_whose_epoch_was_lost_is_written_anew_and_not_twice(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        for epoch in (1, 2, 3):
            log.add(_figures(epoch, loss=9.0))
    with MetricsLog(tmp_path, 2) as log:
        assert [row["epoch"] for row in _rows(tmp_path)] == ["1", "2"]
        log.add(_figures(3, loss=1.0))
        log.add(_figures(4, loss=1.0))
    assert [(row["epoch"], row["loss"]) for row in _rows(tmp_path)] == [
        ("1", "9.0"),
        ("2", "9.0"),
        ("3", "1.0"),
        ("4", "1.0"),
    ]
    assert _events(tmp_path)["loss"] == [(1, 9.0), (2, 9.0), (3, 1.0), (4, 1.0)]


def test_a_new_run_begins_a_new_log(tmp_path: Path) -> None:
    for loss in (9.0, 1.0):
        with MetricsLog(tmp_path, 0) as log:
            log.add(_figures(1, loss))
    assert [row["loss"] for row in _rows(tmp_path)] == ["1.0"]
    assert _events(tmp_path)["loss"] == [(1, 1.0)]


@pytest.mark.parametrize("content", ["", "epoch,loss\n1,2\n", "\0", "epoch,loss,learning_rate\n"])
def test_a_file_that_is_no_log_is_kept_and_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UnetxError, match=r"metrics\.csv is no metrics log .*: choose another --log"):
        MetricsLog(tmp_path, 0)
    assert (tmp_path / "metrics.csv").read_text() == content


def test_without_tensorboard_the_table_is_written_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "find", lambda module: False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with MetricsLog(tmp_path, 0) as log:
        log.add(_figures(1))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_run_that_dies_between_a_row_and_its_state_has_every_epoch_once(
    ellipse_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("monai", reason="views are cut by MONAI: pip install 'unetx-opt[train]'")
    from unetx_opt.training import loop

    options = TrainingOptions("unet", width=2, size_px=32, epochs=3, batch_size=4)
    splits = [FolderDataset.open(ellipse_folder, split) for split in ("train", "validation")]
    resources = Resources(log=tmp_path / "log")
    real = loop.save_state

    def die_in_the_second(folder: Path, state: Any) -> None:
        if len(state.history) == 2:
            raise SystemExit
        real(folder, state)

    monkeypatch.setattr(loop, "save_state", die_in_the_second)
    with pytest.raises(SystemExit):
        loop.train_model(options, *splits, tmp_path / "state", resources=resources)
    assert len(_rows(tmp_path / "log")) == 2
    monkeypatch.undo()
    trained = loop.train_model(options, *splits, tmp_path / "state", resources=resources)
    rows = _rows(tmp_path / "log")
    assert [float(row["loss"]) for row in rows] == [record.loss for record in trained.history]
    assert [float(row["validation_dice"]) for row in rows] == [record.validation_dice for record in trained.history]
    assert [step for step, _ in _events(tmp_path / "log")["loss"]] == [1, 2, 3]
    assert all(float(row["seconds"]) > 0.0 and float(row["images_per_s"]) > 0.0 for row in rows)
