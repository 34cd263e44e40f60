"""Images brought to the training contract at two resolutions, from the data set or from a cache on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unetx_opt.errors import DataError
from unetx_opt.imaging.preprocess import ImageGeometry, prepare_image
from unetx_opt.training.cache import PreparedCache, PreparedImage, entry_key
from unetx_opt.training.labelled import Identity, LabelledImages
from unetx_opt.training.options import training_contract

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PreparedImages", "place_mask"]


@dataclass(frozen=True, slots=True)
class PreparedImages:
    """The images of a data set under the training contract; it holds no pixel, and is sent to worker processes.

    Attributes
    ----------
    images : LabelledImages
        Images and masks.
    size_px : int
        S, side of a view.
    identity : Identity or None
        What the data set held when the run began; None takes each image as it is.
    cache : PreparedCache or None
        Where prepared images are kept; None prepares them anew each time. It needs the identity.
    """

    images: LabelledImages
    size_px: int
    identity: Identity | None = None
    cache: PreparedCache | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, *, fine: bool) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Return one image at one of its resolutions, and its mask.

        Parameters
        ----------
        index : int
            Of the image.
        fine : bool
            The resolution: 2 S instead of S.

        Returns
        -------
        grey_hw : ndarray
            float16 (S, S) or (2 S, 2 S).
        mask_hw : ndarray
            uint8 (2 S, 2 S).

        Raises
        ------
        DataError
            The image or its mask is unreadable, or changed since the run began.
        """
        if self.identity is None or self.cache is None:
            prepared = self._prepare(index)
        else:
            key = entry_key(self.identity.keys[index], self.images.label_names, self.size_px)
            kept = self.cache.read(key, self.size_px, fine=fine)
            if kept is not None:
                return kept
            self._check_unchanged(index, self.identity)
            prepared = self._prepare(index)
            self.cache.write(key, prepared)
        return (prepared.fine_hw if fine else prepared.coarse_hw), prepared.mask_hw

    def _prepare(self, index: int) -> PreparedImage:
        image, mask = self.images.image(index), self.images.mask(index)
        coarse, _ = prepare_image(image, training_contract(self.size_px))
        fine, geometry = prepare_image(image, training_contract(2 * self.size_px))
        return PreparedImage(coarse[0].astype(np.float16), fine[0].astype(np.float16), place_mask(mask, geometry))

    def _check_unchanged(self, index: int, identity: Identity) -> None:
        found = hashlib.sha256(self.images.fingerprint(index).encode()).digest()
        if found != identity.keys[index]:
            raise DataError(
                f"{self.images.names[index]} or its mask changed since the run began: leave the data as it is while "
                "a model is trained, and start again"
            )


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


def _nearest(count: int, source: int) -> NDArray[np.intp]:
    return np.minimum(((np.arange(count) + 0.5) * source / count).astype(np.intp), source - 1)
