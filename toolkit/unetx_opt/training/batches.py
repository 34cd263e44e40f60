"""Prepared images in memory, and batches of random views of them, made one step ahead of the model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unetx_opt.imaging.preprocess import ImageGeometry, prepare_image
from unetx_opt.training.augment import Augmentation, View, cut_view, draw_view, vary_grey
from unetx_opt.training.datasets import FolderDataset
from unetx_opt.training.options import training_contract

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Batch", "PreparedImage", "PreparedImages", "place_mask", "random_batches", "whole_batches"]

# Images prepared before this many bytes are full stay in memory; later ones are decoded again in each epoch.
CACHE_BYTES: Final = 4 * 2**30
# From this zoom on a view is cut from the fine copy: below it the coarse, antialiased one has enough pixels.
_FINE_FROM_ZOOM: Final = 1.25
_AHEAD: Final = 2


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image under the training contract at two resolutions, and its mask.

    Attributes
    ----------
    coarse_hw : ndarray
        float16 (S, S) in [0, 1]; half precision keeps 11 bits of grey, and twice as many images in memory.
    fine_hw : ndarray
        float16 (2 S, 2 S).
    mask_hw : ndarray
        uint8 (2 S, 2 S).
    """

    coarse_hw: NDArray[np.float16]
    fine_hw: NDArray[np.float16]
    mask_hw: NDArray[np.uint8]

    @property
    def size_bytes(self) -> int:
        """Memory of the three arrays."""
        return self.coarse_hw.nbytes + self.fine_hw.nbytes + self.mask_hw.nbytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Views and their labels.

    Attributes
    ----------
    image_nchw : ndarray
        float32 (N, 1, S, S) in [0, 1].
    labels_nhw : ndarray
        uint8 (N, S, S).
    """

    image_nchw: NDArray[np.float32]
    labels_nhw: NDArray[np.uint8]


class PreparedImages:
    """The images of a data set under the training contract, prepared once and kept while memory lasts.

    Parameters
    ----------
    dataset : FolderDataset
        Images and masks.
    size_px : int
        S, side of a view.
    cache_bytes : int
        Limit of what is kept.
    """

    def __init__(self, dataset: FolderDataset, size_px: int, cache_bytes: int = CACHE_BYTES) -> None:
        self.dataset = dataset
        self.size_px = size_px
        self._free_bytes = cache_bytes
        self._kept: dict[int, PreparedImage] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PreparedImage:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        image, mask = self.dataset.image(index), self.dataset.mask(index)
        coarse, _ = prepare_image(image, training_contract(self.size_px))
        fine, geometry = prepare_image(image, training_contract(2 * self.size_px))
        prepared = PreparedImage(coarse[0].astype(np.float16), fine[0].astype(np.float16), place_mask(mask, geometry))
        if prepared.size_bytes <= self._free_bytes:
            self._free_bytes -= prepared.size_bytes
            self._kept[index] = prepared
        return prepared


def place_mask(mask: NDArray[np.uint8], geometry: ImageGeometry) -> NDArray[np.uint8]:
    """Bring a mask to the grid on which its image was prepared.

    Parameters
    ----------
    mask : ndarray
        (H, W) labels on the source grid.
    geometry : ImageGeometry
        What `prepare_image` returned for the image.

    Returns
    -------
    ndarray
        uint8 (input_height, input_width): the nearest source pixel inside the image, 0 in the padding.
    """
    placed = np.zeros((geometry.input_height, geometry.input_width), dtype=np.uint8)
    rows = _nearest(geometry.scaled_height, geometry.source_height)
    columns = _nearest(geometry.scaled_width, geometry.source_width)
    placed[
        geometry.top : geometry.top + geometry.scaled_height,
        geometry.left : geometry.left + geometry.scaled_width,
    ] = mask[np.ix_(rows, columns)]
    return placed


def random_batches(
    images: PreparedImages, batch_size: int, seed: int, epoch: int, limits: Augmentation
) -> Iterator[Batch]:
    """Yield one epoch of random views, in an order and with views that depend on seed and epoch alone.

    Parameters
    ----------
    images : PreparedImages
        What to look at; each image is seen once.
    batch_size : int
        Views per batch. The last batch may be smaller, but never a single view: batch normalisation needs two.
    seed, epoch : int
        Determine the result.
    limits : Augmentation
        How far views go.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(images))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups.pop()

    def cut(indices: NDArray[np.intp]) -> Batch:
        return _stack([_random_view(images, int(i), (seed, epoch, int(i)), limits) for i in indices])

    yield from _one_ahead(cut, groups)


def whole_batches(images: PreparedImages, batch_size: int) -> Iterator[Batch]:
    """Yield every image once, whole, as it is prepared for the network, in the order of the data set."""
    groups = [range(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]

    def cut(indices: range) -> Batch:
        return _stack([_whole_view(images[i], images.size_px) for i in indices])

    yield from _one_ahead(cut, groups)


def _random_view(
    images: PreparedImages, index: int, seed: tuple[int, ...], limits: Augmentation
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    prepared, side = images[index], images.size_px
    random = np.random.default_rng(seed)
    view = draw_view(random, limits)
    is_fine = min(view.zoom_yx) >= _FINE_FROM_ZOOM
    source = (prepared.fine_hw if is_fine else prepared.coarse_hw).astype(np.float32)
    # A value that no grey has marks what lies outside, where padding must stay padding.
    pixels = cut_view(source, view, side, order=1, outside=-1.0)
    varied = vary_grey(pixels, random, limits)
    varied[pixels < 0.0] = training_contract(side).padding_value
    return varied, cut_view(prepared.mask_hw, view, side, order=0, outside=0)


def _whole_view(prepared: PreparedImage, side: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return prepared.coarse_hw.astype(np.float32), cut_view(prepared.mask_hw, View(), side, order=0, outside=0)


def _stack(views: list[tuple[NDArray[np.float32], NDArray[np.uint8]]]) -> Batch:
    return Batch(np.stack([pixels for pixels, _ in views])[:, np.newaxis], np.stack([labels for _, labels in views]))


def _nearest(count: int, source: int) -> NDArray[np.intp]:
    return np.minimum(((np.arange(count) + 0.5) * source / count).astype(np.intp), source - 1)


def _one_ahead(cut: Any, groups: list[Any]) -> Iterator[Batch]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: list[Future[Batch]] = [pool.submit(cut, group) for group in groups[:_AHEAD]]
        for position in range(len(groups)):
            batch = waiting.pop(0).result()
            if position + _AHEAD < len(groups):
                waiting.append(pool.submit(cut, groups[position + _AHEAD]))
            yield batch
