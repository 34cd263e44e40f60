"""The definition of the CRF against sums written out pixel by pixel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from unetx_kernels.dense_crf.reference import Energies, infer_mean_field, labelling_energy, pairwise_matrix

ENERGIES = Energies(1.5, 3.0, 2.5, 20.0, 5.0)
GENERATOR = np.random.default_rng(7)
IMAGE = GENERATOR.integers(0, 256, (3, 4)).astype(np.uint8)
LOGITS = GENERATOR.normal(size=(3, 3, 4))


def _matrix_by_loops() -> np.ndarray:
    pixels = list(itertools.product(range(3), range(4)))
    kernels = np.zeros((2, 12, 12))
    for i, (y, x) in enumerate(pixels):
        for j, (v, u) in enumerate(pixels):
            far = (y - v) ** 2 + (x - u) ** 2
            grey = 3 * (float(IMAGE[y, x]) - float(IMAGE[v, u])) ** 2
            kernels[0, i, j] = math.exp(-far / (2 * 1.5**2))
            kernels[1, i, j] = math.exp(-far / (2 * 2.5**2) - grey / (2 * 20.0**2))
    sums = kernels.sum(axis=2)
    normalised = kernels / np.sqrt(sums[:, :, None] * sums[:, None, :])
    return 3.0 * normalised[0] + 5.0 * normalised[1]


def test_the_pairwise_weights_are_both_kernels_normalised_symmetrically() -> None:
    matrix = pairwise_matrix(IMAGE, ENERGIES)
    np.testing.assert_allclose(matrix, _matrix_by_loops(), rtol=1e-12)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-14)


def test_one_update_is_the_softmax_of_logits_and_the_mass_of_equal_neighbours() -> None:
    logits = LOGITS.reshape(3, -1)
    first = np.exp(logits) / np.exp(logits).sum(axis=0)
    weights = np.exp(logits + first @ _matrix_by_loops())
    found = infer_mean_field(LOGITS, IMAGE, ENERGIES, 1)
    np.testing.assert_allclose(found.reshape(3, -1), weights / weights.sum(axis=0), rtol=1e-12)


def test_no_update_is_the_softmax() -> None:
    found = infer_mean_field(LOGITS, IMAGE, ENERGIES, 0)
    np.testing.assert_allclose(found, np.exp(LOGITS) / np.exp(LOGITS).sum(axis=0), rtol=1e-12)


def test_the_energy_counts_every_unlike_pair_once() -> None:
    labels = np.zeros((3, 4), dtype=np.uint8)
    alike = labelling_energy(labels, LOGITS, IMAGE, ENERGIES)
    own = -np.log(np.exp(LOGITS[0]) / np.exp(LOGITS).sum(axis=0))
    assert alike == pytest.approx(own.sum())
    labels[1, 2] = 2
    matrix = _matrix_by_loops()
    crossed = matrix[6].sum() - matrix[6, 6]
    changed = (LOGITS[0] - LOGITS[2])[1, 2]
    assert labelling_energy(labels, LOGITS, IMAGE, ENERGIES) == pytest.approx(alike + changed + crossed)


def test_inference_lowers_the_energy_of_noisy_labels() -> None:
    generator = np.random.default_rng(3)
    image = np.where(np.arange(16) < 8, 60, 180).astype(np.uint8) * np.ones((16, 1), dtype=np.uint8)
    logits = np.stack([np.zeros((16, 16)), (image > 100) - 0.5 + generator.normal(size=(16, 16))])
    inferred = infer_mean_field(logits, image, ENERGIES, 5).argmax(axis=0)
    before = labelling_energy(logits.argmax(axis=0), logits, image, ENERGIES)
    assert labelling_energy(inferred, logits, image, ENERGIES) < before
