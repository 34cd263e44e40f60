"""A run that is killed at a random moment and goes on ends in the checkpoint of a run that was left alone."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unetx_opt.cli.main import main
from unetx_opt.models.checkpoint import read_checkpoint
from unetx_opt.training.state import has_state, load_state

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'unetx-opt[train]'")
pytest.importorskip("monai", reason="views are cut by MONAI: pip install 'unetx-opt[train]'")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_process_goes_on_to_the_same_checkpoint_bit_for_bit(
    ellipse_folder: Path, tmp_path: Path, workers: int
) -> None:
    arguments = ["train", "--variant", "attention", "--data", str(ellipse_folder), "--width", "2", "--size", "32"]
    arguments += ["--epochs", "10", "--patience", "10", "--batch-size", "4", "--precision", "fp32"]
    helped = [*arguments, "--workers", str(workers), "--cache", str(tmp_path / "cache"), "-o"]
    # Sums depend on the number of threads: the other process has as many as this one.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    environment = os.environ | threads | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    state = tmp_path / "killed.safetensors.state"

    command = [sys.executable, "-m", "unetx_opt.cli.main", *helped, str(killed)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not has_state(state) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.uniform(0.0, 0.2))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not killed.exists()
    done = len(load_state(state).history)
    assert 1 <= done < 10

    assert main([*helped, str(killed), "--resume"]) == 0
    # Without workers and with a cache of its own: neither decides anything.
    assert main([*arguments, "-o", str(whole)]) == 0
    first, second = read_checkpoint(killed), read_checkpoint(whole)
    assert first.metadata == second.metadata
    for name, value in second.tensors.items():
        assert torch.equal(first.tensors[name], value), f"{name} differs: killed after epoch {done}"
    assert not state.exists()
    logs = [_read_log(path.with_name(path.name + ".log")) for path in (killed, whole)]
    assert [row["epoch"] for row in logs[0]] == [str(epoch) for epoch in range(1, 11)]
    for row, other in zip(*logs, strict=True):
        assert all(row[name] == other[name] for name in ("epoch", "loss", "learning_rate", "validation_dice"))


def _read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
