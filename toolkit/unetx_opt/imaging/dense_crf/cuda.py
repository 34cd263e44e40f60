"""The mean field on a GPU, by the grid of `unetx_opt.imaging.dense_crf.lattice` as CUDA kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from unetx_kernels.dense_crf.inference import infer_on_gpu
from unetx_kernels.dense_crf.reference import Energies
from unetx_kernels.errors import KernelError
from unetx_opt.errors import EngineError
from unetx_opt.imaging.dense_crf.parameters import CrfProblem
from unetx_opt.imaging.postprocess import probabilities

__all__ = ["infer_cuda"]


def infer_cuda(problem: CrfProblem) -> NDArray[np.float32]:
    """Infer on the first GPU; what an image of this size needs stays there for the next one.

    Parameters
    ----------
    problem : CrfProblem
        Checked inputs.

    Returns
    -------
    numpy.ndarray
        (K, H, W) float32 probabilities, within 2e-5 of the processor's.

    Raises
    ------
    EngineError
        The GPU cannot be used, or has too little memory.
    """
    if not problem.parameters.iterations:
        return probabilities(problem.logits_khw)
    names = [field.name for field in dataclasses.fields(Energies)]
    energies = Energies(**{name: getattr(problem.parameters, name) for name in names})
    try:
        return infer_on_gpu(problem.logits_khw, problem.image_hw, energies, problem.parameters.iterations)
    except KernelError as error:
        raise EngineError(f"the CRF cannot run on the GPU: {error}") from error
