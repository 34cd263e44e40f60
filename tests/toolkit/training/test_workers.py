"""Worker processes: they cut what this process would cut, tell what is wrong, and never outlive their parent."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from unetx_opt.errors import DataError
from unetx_opt.training.augment import Augmentation
from unetx_opt.training.batches import BatchCutter, Draw, random_batches, whole_batches
from unetx_opt.training.cache import PreparedCache
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.labelled import identify
from unetx_opt.training.prepared import PreparedImages

pytest.importorskip("monai", reason="views are cut by MONAI: pip install 'unetx-opt[train]'")


@pytest.fixture
def dataset(ellipse_folder: Path) -> FolderDataset:
    return FolderDataset.open(ellipse_folder, "train")


def test_two_worker_processes_cut_the_batches_that_none_cut(dataset: FolderDataset, tmp_path: Path) -> None:
    images = PreparedImages(dataset, 32, identify(dataset), PreparedCache(tmp_path))
    cut = []
    # The workers come first: they fill the cache, beside one another.
    for workers in (2, 0):
        with BatchCutter({"training": images}, workers) as cutter:
            random = random_batches(cutter, "training", 4, Draw(3, 7, Augmentation()))
            cut.append([*random, *whole_batches(cutter, "training", 4)])
    found, expected = cut
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.image_nchw, other.image_nchw)
        assert np.array_equal(one.labels_nhw, other.labels_nhw)


def test_an_error_in_a_worker_reaches_the_caller_as_it_is(dataset: FolderDataset, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        shutil.copytree(dataset.root / folder, tmp_path / folder)
    copy = dataclasses.replace(dataset, root=tmp_path)
    images = PreparedImages(copy, 32, identify(copy), PreparedCache(tmp_path / "cache"))
    (tmp_path / "images" / copy.names[3]).write_bytes(b"no image")
    with (
        BatchCutter({"training": images}, workers=1) as cutter,
        pytest.raises(DataError, match=f"{copy.names[3]} or its mask changed since the run began"),
    ):
        list(whole_batches(cutter, "training", 4))


def test_workers_end_when_their_parent_is_killed(dataset: FolderDataset, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, multiprocessing\n"
        "from pathlib import Path\n"
        "from unetx_opt.training.batches import BatchCutter, whole_batches\n"
        "from unetx_opt.training.datasets import FolderDataset\n"
        "from unetx_opt.training.prepared import PreparedImages\n"
        "if __name__ == '__main__':\n"
        "    images = PreparedImages(FolderDataset.open(Path(sys.argv[1]), 'train'), 32)\n"
        "    cutter = BatchCutter({'training': images}, workers=1)\n"
        "    next(whole_batches(cutter, 'training', 2))\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(script), str(dataset.root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
        assert all(_is_running(pid) for pid in workers)
        parent.kill()
    deadline = time.monotonic() + 30
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_running(pid) for pid in workers)


def _is_running(pid: int) -> bool:
    try:
        # What comes behind the name; a process that ended and was not yet collected is a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
