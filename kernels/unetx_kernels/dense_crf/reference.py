"""The fully connected CRF by its definition: every pair of pixels, float64.

For ``N = H * W`` pixels each kernel is an (N, N) matrix; 64 x 64 pixels take 128 MiB for each. Everything else is
measured against this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Energies", "infer_mean_field", "labelling_energy", "pairwise_matrix"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Energies:
    """Widths and Potts weights of the two kernels, as pydensecrf names them.

    Attributes
    ----------
    smoothness_sxy, smoothness_compat : float
        Width in pixels and weight of the kernel of positions.
    bilateral_sxy, bilateral_srgb, bilateral_compat : float
        Widths in pixels and in 8-bit RGB levels, and weight, of the kernel of positions and colours.
    """

    smoothness_sxy: float
    smoothness_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float


def pairwise_matrix(image_hw: NDArray[Any], energies: Energies) -> Matrix:
    """Return the sum of both kernels, each normalised symmetrically and times its weight.

    Parameters
    ----------
    image_hw : numpy.ndarray
        (H, W), grey on the scale 0 to 255; it stands for three equal channels.
    energies : Energies
        Widths and weights.

    Returns
    -------
    numpy.ndarray
        (N, N) float64, pixels in C order. The diagonal, a pixel with itself, is as in pydensecrf part of it.
    """
    height, width = image_hw.shape
    y, x = (plane.ravel().astype(np.float64) for plane in np.mgrid[:height, :width])
    grey = image_hw.ravel().astype(np.float64)
    position = _squared_distances(x) + _squared_distances(y)
    matrix = energies.smoothness_compat * _normalised(np.exp(position / (-2 * energies.smoothness_sxy**2)))
    colour = 3 * _squared_distances(grey)
    exponent = position / (2 * energies.bilateral_sxy**2) + colour / (2 * energies.bilateral_srgb**2)
    matrix += energies.bilateral_compat * _normalised(np.exp(-exponent))
    return matrix


def infer_mean_field(
    logits_khw: NDArray[Any], image_hw: NDArray[Any], energies: Energies, iterations: int
) -> NDArray[np.float64]:
    """Run algorithm 1 of the paper with parallel updates.

    Parameters
    ----------
    logits_khw : numpy.ndarray
        (K, H, W), K at least 2.
    image_hw : numpy.ndarray
        (H, W), grey on the scale 0 to 255.
    energies : Energies
        Widths and weights.
    iterations : int
        Updates; 0 gives the softmax of the logits.

    Returns
    -------
    numpy.ndarray
        (K, H, W) float64 probabilities.
    """
    classes = len(logits_khw)
    logits = logits_khw.reshape(classes, -1).astype(np.float64)
    matrix = pairwise_matrix(image_hw, energies)
    probabilities = _softmax(logits)
    for _ in range(iterations):
        # Up to a constant per pixel, the cost of the neighbours' other labels is minus the mass of the same one.
        probabilities = _softmax(logits + probabilities @ matrix)
    return probabilities.reshape(logits_khw.shape)


def labelling_energy(
    labels_hw: NDArray[Any], logits_khw: NDArray[Any], image_hw: NDArray[Any], energies: Energies
) -> float:
    """Return the Gibbs energy of a labelling, every pair of pixels counted once."""
    classes = len(logits_khw)
    labels = labels_hw.ravel()
    own = -np.log(_softmax(logits_khw.reshape(classes, -1).astype(np.float64)))
    unlike = labels[:, np.newaxis] != labels[np.newaxis, :]
    pairs = pairwise_matrix(image_hw, energies)[unlike].sum() / 2
    return float(own[labels, np.arange(labels.size)].sum() + pairs)


def _squared_distances(values: NDArray[np.float64]) -> Matrix:
    return np.square(np.subtract.outer(values, values))


def _normalised(kernel: Matrix) -> Matrix:
    norm = 1 / np.sqrt(kernel.sum(axis=0))
    kernel *= norm[:, np.newaxis]
    kernel *= norm[np.newaxis, :]
    return kernel


def _softmax(logits: Matrix) -> Matrix:
    weights = np.exp(logits - logits.max(axis=0))
    return np.asarray(weights / weights.sum(axis=0))
