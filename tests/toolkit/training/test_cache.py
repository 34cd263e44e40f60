"""The cache of prepared images: exact, checked, whole after a kill, shared by processes, small in memory."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.errors import DataError, UnetxError
from unetx_opt.training.cache import PreparedCache, PreparedImage, entry_key
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.labelled import LabelledImages, identify
from unetx_opt.training.prepared import PreparedImages

_SIZE = 32
_KEY = "ab" * 32


def _prepared(seed: int = 0) -> PreparedImage:
    draw = np.random.default_rng(seed)
    mask = np.zeros((2 * _SIZE, 2 * _SIZE), dtype=np.uint8)
    mask[9:40, 5:30] = 3
    grey = (draw.random((side, side), dtype=np.float32).astype(np.float16) for side in (_SIZE, 2 * _SIZE))
    return PreparedImage(*grey, mask)


def _same(found: Any, prepared: PreparedImage, fine: bool) -> bool:
    expected = (prepared.fine_hw if fine else prepared.coarse_hw, prepared.mask_hw)
    return found is not None and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def _read_all(images: PreparedImages) -> list[Any]:
    return [part for index in range(len(images)) for fine in (False, True) for part in images.read(index, fine=fine)]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.prepared"))


@pytest.fixture
def dataset(ellipse_folder: Path) -> FolderDataset:
    return FolderDataset.open(ellipse_folder, "train")


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    assert cache.read(_KEY, _SIZE, fine=False) is None
    cache.write(_KEY, _prepared())
    for fine in (False, True):
        assert _same(cache.read(_KEY, _SIZE, fine=fine), _prepared(), fine)
    assert cache.read(_KEY, 2 * _SIZE, fine=False) is None


def test_a_flipped_bit_anywhere_is_noticed_or_lies_in_a_part_that_was_not_read(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    cache.write(_KEY, _prepared())
    (path,) = _entries(tmp_path)
    whole = path.read_bytes()
    draw = random.Random(1)
    noticed = 0
    for place in [*range(64), *(draw.randrange(len(whole)) for _ in range(300)), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        found = [cache.read(_KEY, _SIZE, fine=fine) for fine in (False, True)]
        assert any(one is None for one in found), f"byte {place} of {len(whole)}"
        noticed += all(one is None for one in found)
        assert all(one is None or _same(one, _prepared(), bool(fine)) for fine, one in enumerate(found))
    assert noticed >= 64


@given(st.data())
def test_a_file_of_any_length_and_content_is_no_entry(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    cache = PreparedCache(tmp_path_factory.mktemp("cache"))
    cache.write(_KEY, _prepared())
    (path,) = _entries(cache.folder)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut] + data.draw(st.binary(max_size=80)).ljust(1, b"x"))
    assert cache.read(_KEY, _SIZE, fine=True) is None or path.read_bytes() == whole


def test_an_entry_under_a_foreign_name_is_not_taken(tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path)
    cache.write(_KEY, _prepared())
    (path,) = _entries(tmp_path)
    other = "cd" * 32
    cache.write(other, _prepared(1))
    shutil.copy(path, next(entry for entry in _entries(tmp_path) if entry != path))
    assert cache.read(other, _SIZE, fine=False) is None


def test_the_name_of_an_entry_changes_with_all_that_it_is_made_of() -> None:
    names = ("background", "lungs")
    keys = {
        entry_key(b"a" * 32, names, 32),
        entry_key(b"b" * 32, names, 32),
        entry_key(b"a" * 32, ("background", "heart"), 32),
        entry_key(b"a" * 32, names, 64),
    }
    assert len(keys) == 4
    assert entry_key(b"a" * 32, names, 32) in keys


def test_damaged_and_missing_entries_are_made_again(dataset: FolderDataset, tmp_path: Path) -> None:
    expected = _read_all(PreparedImages(dataset, _SIZE))
    images = PreparedImages(dataset, _SIZE, identify(dataset), PreparedCache(tmp_path))
    _read_all(images)
    paths = _entries(tmp_path)
    assert len(paths) == len(dataset)
    whole = [path.read_bytes() for path in paths]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(whole[1][:-5])
    paths[2].write_bytes(whole[2][:100] + b"????" + whole[2][104:])
    paths[3].unlink()
    for found, wanted in zip(_read_all(images), expected, strict=True):
        assert np.array_equal(found, wanted)
    assert [path.read_bytes() for path in paths] == whole


def test_a_disk_without_room_keeps_nothing_and_changes_nothing(
    dataset: FolderDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is pretended: a full one cannot be had here."""
    usage = namedtuple("usage", "free")(2**30 + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    images = PreparedImages(dataset, _SIZE, identify(dataset), PreparedCache(tmp_path))
    expected = _read_all(PreparedImages(dataset, _SIZE))
    assert all(np.array_equal(a, b) for a, b in zip(_read_all(images), expected, strict=True))
    assert _entries(tmp_path) == []


def test_a_folder_that_is_a_file_is_named(dataset: FolderDataset, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    images = PreparedImages(dataset, _SIZE, identify(dataset), PreparedCache(tmp_path / "cache"))
    with pytest.raises(UnetxError, match="choose another --cache"):
        images.read(0, fine=False)


def test_an_image_that_changed_under_the_run_is_not_cached_as_the_old_one(
    dataset: FolderDataset, tmp_path: Path
) -> None:
    for folder in ("images", "masks"):
        shutil.copytree(dataset.root / folder, tmp_path / folder)
    copy = dataclasses.replace(dataset, root=tmp_path)
    images = PreparedImages(copy, _SIZE, identify(copy), PreparedCache(tmp_path / "cache"))
    images.read(0, fine=False)
    for index in (0, 1):
        shutil.copy(tmp_path / "images" / copy.names[2], tmp_path / "images" / copy.names[index])
    images.read(0, fine=False)
    with pytest.raises(DataError, match=f"{copy.names[1]} or its mask changed since the run began"):
        images.read(1, fine=False)


_FILL = """
import sys
from pathlib import Path
from unetx_opt.training.cache import PreparedCache
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.labelled import identify
from unetx_opt.training.prepared import PreparedImages

dataset = FolderDataset.open(Path(sys.argv[1]), "train")
images = PreparedImages(dataset, int(sys.argv[3]), identify(dataset), PreparedCache(Path(sys.argv[2])))
for index in range(len(dataset)):
    images.read(index, fine=False)
"""


def _start_filling(root: Path, cache: Path, size: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen([sys.executable, "-c", _FILL, str(root), str(cache), str(size)], env=environment)


def test_a_process_killed_while_it_fills_the_cache_leaves_whole_entries_only(
    dataset: FolderDataset, tmp_path: Path
) -> None:
    size = 512  # entries of 2.6 MB: a kill falls into the writing of one
    for attempt in range(3):
        process = _start_filling(dataset.root, tmp_path, size)
        deadline = time.monotonic() + 60
        while len(_entries(tmp_path)) <= attempt and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(random.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = _entries(tmp_path)
    assert before
    images = PreparedImages(dataset, size, identify(dataset), PreparedCache(tmp_path))
    identity = images.identity
    assert identity is not None
    keys = [entry_key(key, dataset.label_names, size) for key in identity.keys]
    assert images.cache is not None
    kept = [images.cache.read(key, size, fine=True) for key in keys]
    assert sum(one is not None for one in kept) == len(before)
    for index, one in enumerate(kept):
        if one is not None:
            plain = PreparedImages(dataset, size).read(index, fine=True)
            assert all(np.array_equal(a, b) for a, b in zip(one, plain, strict=True))


def test_two_processes_fill_one_cache_beside_each_other(dataset: FolderDataset, tmp_path: Path) -> None:
    both = [_start_filling(dataset.root, tmp_path, _SIZE) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert len(_entries(tmp_path)) == len(dataset)
    assert list(tmp_path.rglob(".*.partial-*")) == []
    images = PreparedImages(dataset, _SIZE, identify(dataset), PreparedCache(tmp_path))
    expected = _read_all(PreparedImages(dataset, _SIZE))
    assert all(np.array_equal(a, b) for a, b in zip(_read_all(images), expected, strict=True))


class _Endless:
    """As many small images as one likes; each is made when it is asked for."""

    label_names = ("background", "lungs")

    def __init__(self, count: int) -> None:
        self._count = count

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{index}.png" for index in range(self._count))

    def __len__(self) -> int:
        return self._count

    def image(self, index: int) -> Any:
        return np.random.default_rng(index).integers(0, 255, (64, 64), dtype=np.uint8)

    def mask(self, index: int) -> Any:
        return (self.image(index) > 128).astype(np.uint8)

    def fingerprint(self, index: int) -> str:
        return f"{index}\n"

    def digest(self, fingerprints: Any = None) -> str:
        return str(sum(1 for _ in fingerprints))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        images: LabelledImages = _Endless(count)
        tracemalloc.start()
        try:
            prepared = PreparedImages(images, _SIZE, identify(images), PreparedCache(tmp_path))
            for index in range(count):
                prepared.read(index, fine=index % 2 == 0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    few, many = peak(50), peak(550)
    print(f"peak {few / 1e3:.0f} kB with 50 images, {many / 1e3:.0f} kB with 550")
    # A key of 65 bytes each, twice while they are collected; one prepared image alone would be 14 kB.
    assert many - few < 500 * 170


def test_looking_through_a_set_reads_every_file_in_chunks(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "b.png"):
            with (tmp_path / folder / name).open("wb") as file:
                file.truncate(64 << 20)
    dataset = FolderDataset(tmp_path, None, ("a.png", "b.png"))
    tracemalloc.start()
    try:
        identity = identify(dataset)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
    assert identity.digest == dataset.digest()
    assert len(identity.keys) == 2
