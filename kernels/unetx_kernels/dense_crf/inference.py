"""The CRF of one image on a GPU, from arrays of the host to arrays of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetx_kernels.binaries import default_cache
from unetx_kernels.dense_crf.launch import open_plan
from unetx_kernels.dense_crf.plan import plan_crf
from unetx_kernels.dense_crf.reference import Energies
from unetx_kernels.driver import DeviceArray, primary_context
from unetx_kernels.errors import KernelError

__all__ = ["infer_on_gpu"]


def infer_on_gpu(
    logits_khw: NDArray[Any],
    image_hw: NDArray[np.uint8],
    energies: Energies,
    iterations: int,
    *,
    cache: Path | None = None,
) -> NDArray[np.float32]:
    """Run `reference.infer_mean_field` by the kernels.

    Parameters
    ----------
    logits_khw : numpy.ndarray
        (K, H, W) finite, K from 2 to 8.
    image_hw : numpy.ndarray
        (H, W) uint8.
    energies : Energies
        Widths and weights.
    iterations : int
        Updates, at least 1.
    cache : pathlib.Path or None
        Folder for compiled kernels; this user's where left out.

    Returns
    -------
    numpy.ndarray
        (K, H, W) float32 probabilities.

    Raises
    ------
    KernelError
        No kernel can run on this host, or shapes, classes or iterations are out of range.
    """
    if logits_khw.ndim != 3 or image_hw.shape != logits_khw.shape[1:] or image_hw.dtype != np.uint8:
        raise KernelError(
            f"logits are {logits_khw.shape} and the image is {image_hw.dtype} {image_hw.shape}, expected (K, H, W) "
            "and uint8 (H, W)"
        )
    logits = np.ascontiguousarray(logits_khw, dtype=np.float32)
    height, width = image_hw.shape
    plan = plan_crf((height, width), energies, int(image_hw.max()) + 1)
    found = np.empty_like(logits)
    with primary_context() as gpu:
        opened = open_plan(gpu, plan, len(logits), iterations, cache or default_cache())
        kept = [gpu.upload(logits), gpu.upload(image_hw), gpu.allocate(found.nbytes)]
        given, pixels, out = (int(memory) for memory in kept)
        opened.infer(
            DeviceArray(given, logits.shape, "f32"),
            DeviceArray(pixels, image_hw.shape, "u8"),
            DeviceArray(out, logits.shape, "f32"),
        )
        gpu.download(kept[2], found)
        # Given back while their context is current.
        del opened, kept
    return found
