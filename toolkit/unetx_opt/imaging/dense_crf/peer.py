"""The mean field by pydensecrf, the implementation that most published results come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetx_opt.imaging.dense_crf.parameters import CrfProblem
from unetx_opt.optional import require

__all__ = ["infer_peer"]


def infer_peer(problem: CrfProblem) -> NDArray[np.float32]:
    """Infer by the permutohedral lattice, symmetric normalisation, grey as three equal channels.

    Parameters
    ----------
    problem : CrfProblem
        Checked inputs.

    Returns
    -------
    numpy.ndarray
        (K, H, W) float32 probabilities.

    Raises
    ------
    MissingPackageError
        pydensecrf is not installed.
    """
    densecrf = require("pydensecrf.densecrf", purpose="the CRF's pydensecrf backend")
    parameters = problem.parameters
    classes, height, width = problem.logits_khw.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-problem.logits_khw.reshape(classes, -1)))
    kernel = {"kernel": densecrf.DIAG_KERNEL, "normalization": densecrf.NORMALIZE_SYMMETRIC}
    if parameters.smoothness_compat > 0:
        width_px = parameters.smoothness_sxy
        crf.addPairwiseGaussian(sxy=(width_px, width_px), compat=parameters.smoothness_compat, **kernel)
    if parameters.bilateral_compat > 0:
        width_px, width_rgb = parameters.bilateral_sxy, parameters.bilateral_srgb
        crf.addPairwiseBilateral(
            sxy=(width_px, width_px),
            srgb=(width_rgb, width_rgb, width_rgb),
            rgbim=np.ascontiguousarray(np.repeat(problem.image_hw[:, :, np.newaxis], 3, axis=2)),
            compat=parameters.bilateral_compat,
            **kernel,
        )
    inferred = crf.inference(parameters.iterations)
    return np.array(inferred, dtype=np.float32).reshape(classes, height, width)
