"""The definition on whole images, against the matrix of all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from unetx_bench.dense_crf_exact import infer_exactly
from unetx_kernels.dense_crf.reference import Energies, infer_mean_field


@pytest.mark.parametrize("size", [(1, 1), (17, 29), (40, 31)], ids=str)
def test_sums_by_level_are_the_sums_over_all_pairs(size: tuple[int, int]) -> None:
    random = np.random.default_rng(size[0])
    image = random.integers(0, 256, size).astype(np.uint8)
    logit = random.normal(scale=2, size=size)
    energies = Energies(1.5, 3.0, 9.0, 20.0, 6.0)
    both = np.stack([np.zeros(size), logit])
    expected = infer_mean_field(both, image, energies, 4)[1]
    np.testing.assert_allclose(infer_exactly(logit, image, energies, 4), expected, rtol=1e-10)
