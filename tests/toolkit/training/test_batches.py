"""Batches: prepared once, placed right, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.training.augment import Augmentation
from unetx_opt.training.batches import PreparedImages, place_mask, random_batches, whole_batches
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.options import training_contract


@pytest.fixture
def dataset(ellipse_folder: Path) -> FolderDataset:
    return FolderDataset.open(ellipse_folder, "train")


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (64, 64), (100, 30)])
def test_a_mask_lies_where_its_image_lies(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[shape[0] // 4 : -shape[0] // 4, shape[1] // 3 : -shape[1] // 3] = 1
    prepared_chw, geometry = prepare_image(mask * np.uint8(200), training_contract(32))
    placed = place_mask(mask, geometry)
    assert placed.shape == (32, 32)
    assert np.abs(placed - prepared_chw[0]).max() <= 0.75


def test_whole_batches_are_what_the_network_is_given_later(dataset: FolderDataset) -> None:
    batches = list(whole_batches(PreparedImages(dataset, 32), 4))
    assert [len(batch.image_nchw) for batch in batches] == [4, 4, 2]
    expected, _ = prepare_image(dataset.image(5), training_contract(32))
    assert np.abs(batches[1].image_nchw[1] - expected).max() < 1e-3
    assert batches[0].labels_nhw.dtype == np.uint8


def test_an_epoch_depends_on_seed_and_number_alone_and_not_on_the_memory(dataset: FolderDataset) -> None:
    def collect(seed: int, epoch: int, cache_bytes: int) -> tuple[np.ndarray, np.ndarray]:
        images = PreparedImages(dataset, 32, cache_bytes)
        batches = list(random_batches(images, 4, seed, epoch, Augmentation()))
        return (
            np.concatenate([batch.image_nchw for batch in batches]),
            np.concatenate([batch.labels_nhw for batch in batches]),
        )

    first = collect(3, 7, 2**30)
    assert first[0].shape == (10, 1, 32, 32)
    assert first[0].dtype == np.float32
    for again in (collect(3, 7, 2**30), collect(3, 7, 30_000), collect(3, 7, 0)):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (collect(4, 7, 0), collect(3, 8, 0)):
        assert not np.array_equal(first[0], other[0])


def test_no_more_is_kept_than_the_limit(dataset: FolderDataset) -> None:
    one = PreparedImages(dataset, 32)[0].size_bytes
    images = PreparedImages(dataset, 32, cache_bytes=3 * one + 1)
    kept = [images[i] is images[i] for i in range(len(images))]
    assert kept == [True] * 3 + [False] * 7


def test_a_last_batch_of_one_view_is_left_out(dataset: FolderDataset) -> None:
    images = PreparedImages(dataset, 32)
    assert [len(b.image_nchw) for b in random_batches(images, 3, 0, 0, Augmentation())] == [3, 3, 3]
    assert [len(b.image_nchw) for b in random_batches(images, 4, 0, 0, Augmentation())] == [4, 4, 2]


def test_an_unreadable_mask_reaches_the_caller(dataset: FolderDataset, tmp_path: Path) -> None:
    broken = FolderDataset(tmp_path, "train", ("missing.png", "gone.png"))
    with pytest.raises(Exception, match=r"missing\.png|gone\.png"):
        list(random_batches(PreparedImages(broken, 32), 2, 0, 0, Augmentation()))
