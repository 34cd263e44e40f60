"""The CRF's definition on whole images: exact sums over all pairs of pixels, by the levels of an 8-bit image.

The kernel of positions and intensities is a product, and 8-bit intensities take 256 values. So the sum over all pairs
is, for every level, a Gaussian over the positions of the pixels at that level, which is two dense matrix products,
weighted by the Gaussian of the levels' distance: nothing is interpolated or cut off, and 512 x 512 pixels take a
minute where `unetx_kernels.dense_crf.reference` would need a matrix of 512 GiB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetx_kernels.dense_crf.reference import Energies

__all__ = ["infer_exactly"]

Plane = NDArray[np.float64]


def infer_exactly(logit_hw: NDArray[Any], image_hw: NDArray[np.uint8], energies: Energies, iterations: int) -> Plane:
    """Run `unetx_kernels.dense_crf.reference.infer_mean_field` for two classes on an image of any size.

    Parameters
    ----------
    logit_hw : numpy.ndarray
        (H, W): logarithm of the foreground's odds.
    image_hw : numpy.ndarray
        (H, W) grey.
    energies : Energies
        Widths and weights.
    iterations : int
        Updates.

    Returns
    -------
    numpy.ndarray
        (H, W) float64 probabilities of the foreground.
    """
    smooth, bilateral = _Smoothness(image_hw.shape, energies), _Bilateral(image_hw, energies)
    own = logit_hw.astype(np.float64)
    ones = np.ones_like(own)
    terms = [
        (np.sqrt(compat / kernel.filter(ones)), kernel)
        for compat, kernel in ((energies.smoothness_compat, smooth), (energies.bilateral_compat, bilateral))
    ]
    current = own
    for _ in range(iterations):
        # Two classes are one logit, whose message is that of the difference of their probabilities.
        difference = np.tanh(current / 2)
        current = own + sum(scale * kernel.filter(scale * difference) for scale, kernel in terms)
    return np.asarray(1 / (1 + np.exp(-current)))


class _Smoothness:
    def __init__(self, size: tuple[int, ...], energies: Energies) -> None:
        self._rows, self._columns = (_gaussian(length, energies.smoothness_sxy) for length in size)

    def filter(self, values: Plane) -> Plane:
        return np.asarray(self._rows @ values @ self._columns)


class _Bilateral:
    def __init__(self, image_hw: NDArray[np.uint8], energies: Energies) -> None:
        self._image = image_hw.astype(np.int64)
        self._rows, self._columns = (_gaussian(length, energies.bilateral_sxy) for length in image_hw.shape)
        # A grey image stands for three equal channels.
        self._by_distance = np.exp(-1.5 * (np.arange(256) / energies.bilateral_srgb) ** 2)

    def filter(self, values: Plane) -> Plane:
        total = np.zeros_like(values)
        for level in np.unique(self._image):
            near = self._rows @ np.where(self._image == level, values, 0.0) @ self._columns
            total += self._by_distance[np.abs(self._image - level)] * near
        return total


def _gaussian(length: int, width: float) -> Plane:
    distance = np.subtract.outer(np.arange(length), np.arange(length)) / width
    return np.asarray(np.exp(-0.5 * distance**2))
