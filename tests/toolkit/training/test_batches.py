"""Batches: placed right, the same for the same seed, whoever cuts them and whatever is in the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.training.augment import Augmentation
from unetx_opt.training.batches import Batch, BatchCutter, Draw, random_batches, whole_batches
from unetx_opt.training.cache import PreparedCache
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.labelled import identify
from unetx_opt.training.options import training_contract
from unetx_opt.training.prepared import PreparedImages, place_mask

pytest.importorskip("monai", reason="views are cut by MONAI: pip install 'unetx-opt[train]'")


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
    batches = _whole(PreparedImages(dataset, 32), 4)
    assert [len(batch.image_nchw) for batch in batches] == [4, 4, 2]
    expected, _ = prepare_image(dataset.image(5), training_contract(32))
    assert np.abs(batches[1].image_nchw[1] - expected).max() < 1e-3
    assert batches[0].labels_nhw.dtype == np.uint8


def test_an_epoch_depends_on_seed_and_number_alone_and_not_on_the_cache(
    dataset: FolderDataset, tmp_path: Path
) -> None:
    plain = PreparedImages(dataset, 32)
    cached = PreparedImages(dataset, 32, identify(dataset), PreparedCache(tmp_path))
    first = _epoch(plain, 3, 7)
    assert first[0].shape == (10, 1, 32, 32)
    assert first[0].dtype == np.float32
    for images in (plain, cached, cached):
        assert all(np.array_equal(a, b) for a, b in zip(first, _epoch(images, 3, 7), strict=True))
    for seed, epoch in ((4, 7), (3, 8)):
        assert not np.array_equal(first[0], _epoch(cached, seed, epoch)[0])


def test_a_last_batch_of_one_view_is_left_out(dataset: FolderDataset) -> None:
    images, draw = PreparedImages(dataset, 32), Draw(0, 0, Augmentation())
    assert [len(b.image_nchw) for b in _random(images, 3, draw)] == [3, 3, 3]
    assert [len(b.image_nchw) for b in _random(images, 4, draw)] == [4, 4, 2]


def test_an_unreadable_mask_reaches_the_caller(dataset: FolderDataset, tmp_path: Path) -> None:
    broken = FolderDataset(tmp_path, "train", ("missing.png", "gone.png"))
    with pytest.raises(Exception, match=r"missing\.png|gone\.png"):
        _random(PreparedImages(broken, 32), 2, Draw(0, 0, Augmentation()))


@dataclasses.dataclass(frozen=True)
class _Sided:
    """Images whose grey value says on which side of the patient a pixel lies, with labels of both sides."""

    label_names: tuple[str, ...]
    names: tuple[str, ...] = tuple(f"{index}.png" for index in range(40))

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        grey = np.zeros((64, 64), dtype=np.uint8)
        grey[8:56, 36:56] = 120 + index % 5
        grey[8:56, 8:28] = 240
        return grey

    def mask(self, index: int) -> np.ndarray:
        labels = np.zeros((64, 64), dtype=np.uint8)
        labels[8:56, 36:56] = 1
        labels[8:56, 8:28] = min(2, len(self.label_names) - 1)
        return labels


def _views(label_names: tuple[str, ...]) -> Batch:
    images: Any = _Sided(label_names)
    (batch,) = _random(PreparedImages(images, 32), 40, Draw(0, 0, Augmentation(whole_share=1.0)))
    return batch


def test_in_a_mirrored_view_left_and_right_organs_trade_their_labels() -> None:
    """The left lung is label 1 and lies on the right of an image; so it must in a mirrored one."""
    batch = _views(("background", "left lung", "right lung", "heart"))
    columns = np.arange(32)
    mirrored = 0
    for grey, labels in zip(batch.image_nchw[:, 0], batch.labels_nhw, strict=True):
        left, right = ((labels == label).sum(axis=0) @ columns / (labels == label).sum() for label in (1, 2))
        assert right < left
        # The darker of the two has become the right lung where the pixels were mirrored.
        mirrored += bool(grey[labels == 2].mean() < grey[labels == 1].mean())
    assert 10 <= mirrored <= 30


def test_the_labels_of_a_binary_mask_stay_as_they_are_in_a_mirrored_view() -> None:
    batch = _views(("background", "lungs"))
    assert np.unique(batch.labels_nhw).tolist() == [0, 1]
    assert batch.labels_nhw.mean() > 0.4


def test_an_organ_without_its_other_side_is_never_shown_mirrored() -> None:
    batch = _views(("background", "left lung", "heart"))
    for grey, labels in zip(batch.image_nchw[:, 0], batch.labels_nhw, strict=True):
        assert grey[labels == 1].mean() < grey[labels == 2].mean()


def _random(images: PreparedImages, batch_size: int, draw: Draw) -> list[Batch]:
    with BatchCutter({"training": images}) as cutter:
        return list(random_batches(cutter, "training", batch_size, draw))


def _whole(images: PreparedImages, batch_size: int) -> list[Batch]:
    with BatchCutter({"training": images}) as cutter:
        return list(whole_batches(cutter, "training", batch_size))


def _epoch(images: PreparedImages, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    batches = _random(images, 4, Draw(seed, epoch, Augmentation()))
    return (
        np.concatenate([batch.image_nchw for batch in batches]),
        np.concatenate([batch.labels_nhw for batch in batches]),
    )
