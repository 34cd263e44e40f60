"""The energies of the fully connected CRF, and what a backend needs to minimise them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import ImageError, SpecError

__all__ = ["MAX_CLASSES", "MAX_WIDTH_PX", "MIN_WIDTH_PX", "CrfParameters", "CrfProblem", "check_problem"]

MAX_CLASSES: Final = 8
# Positions and widths are float32 in every backend; a wider term is constant over any image that fits memory.
MIN_WIDTH_PX, MAX_WIDTH_PX = 0.5, 10_000.0


@dataclass(frozen=True, slots=True)
class CrfParameters:
    """Energies of Krähenbühl & Koltun 2011, in the names and with the meaning of pydensecrf.

    The energy of a labelling is the sum over pixels of minus the logarithm of the class probability, and over all
    pairs of pixels with different labels of ``smoothness_compat * g(position; smoothness_sxy) + bilateral_compat *
    g(position; bilateral_sxy) * g(colour; bilateral_srgb)``, ``g(d; s) = exp(-|d|^2 / (2 s^2))``. Each kernel is
    normalised symmetrically: divided by the square roots of its sums at both pixels. A pixel is its own neighbour.

    A grey image stands for three equal channels, so intensities differ by ``sqrt(3)`` times the difference of
    levels: the effective width in intensity is ``bilateral_srgb / sqrt(3)``.

    Attributes
    ----------
    smoothness_sxy : float
        Width of the smoothness term in pixels, 0.5 to 10,000.
    smoothness_compat : float
        Its Potts weight, at least 0; 0 leaves the term out.
    bilateral_sxy : float
        Width of the bilateral term in pixels, 0.5 to 10,000.
    bilateral_srgb : float
        Its width in levels of an 8-bit RGB image, 0.5 to 10,000.
    bilateral_compat : float
        Its Potts weight, at least 0; 0 leaves the term out.
    iterations : int
        Mean-field updates, 0 to 100.
    """

    smoothness_sxy: float = 3.0
    smoothness_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    iterations: int = 5

    def __post_init__(self) -> None:
        for name in ("smoothness_sxy", "bilateral_sxy", "bilateral_srgb"):
            _check_range(name, getattr(self, name), MIN_WIDTH_PX, MAX_WIDTH_PX)
        for name in ("smoothness_compat", "bilateral_compat"):
            _check_range(name, getattr(self, name), 0.0, 1e4)
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int):
            raise SpecError(f"CRF iterations is {self.iterations!r}, expected an integer from 0 to 100")
        _check_range("iterations", self.iterations, 0, 100)

    @property
    def bilateral_intensity(self) -> float:
        """Width of the bilateral term in levels of a grey image."""
        return self.bilateral_srgb / math.sqrt(3)


@dataclass(frozen=True, slots=True)
class CrfProblem:
    """Checked inputs of a backend.

    Attributes
    ----------
    logits_khw : numpy.ndarray
        (K, H, W) float32, finite, C order, K from 2 to 8: one binary logit has become two classes, the first 0.
    image_hw : numpy.ndarray
        (H, W) uint8, C order.
    parameters : CrfParameters
        The energies.
    """

    logits_khw: NDArray[np.float32]
    image_hw: NDArray[np.uint8]
    parameters: CrfParameters


def check_problem(logits_khw: NDArray[Any], image_hw: NDArray[Any], parameters: CrfParameters) -> CrfProblem:
    """Check what a caller gave; see `unetx_opt.imaging.dense_crf.refine`.

    Raises
    ------
    SpecError
        The logits have a wrong shape or type, or hold NaN or infinity.
    ImageError
        The image is not 8-bit grey of the logits' size.
    """
    if logits_khw.ndim != 3 or not 1 <= logits_khw.shape[0] <= MAX_CLASSES or 0 in logits_khw.shape:
        raise SpecError(
            f"CRF logits have shape {logits_khw.shape}, expected (classes, height, width) with 1 to {MAX_CLASSES} "
            "classes: pass the logits of one image"
        )
    if logits_khw.dtype.kind != "f":
        raise SpecError(f"CRF logits are {logits_khw.dtype}, expected floating point: pass logits, not labels")
    if image_hw.dtype != np.uint8 or image_hw.ndim != 2:
        raise ImageError(
            f"CRF image is {image_hw.dtype} of shape {image_hw.shape}, expected uint8 (height, width): scale it to "
            "8-bit grey, the scale of the intensity width"
        )
    if image_hw.shape != logits_khw.shape[1:]:
        raise ImageError(
            f"CRF image is {image_hw.shape}, the logits are {logits_khw.shape[1:]}, expected the same size: restore "
            "the logits to the grid of the image first"
        )
    with np.errstate(over="ignore"):
        logits = np.ascontiguousarray(logits_khw, dtype=np.float32)
    if not np.isfinite(logits).all():
        raise SpecError("CRF logits hold NaN or infinity, expected finite float32 values: check the engine's output")
    if logits.shape[0] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits])
    return CrfProblem(logits, np.ascontiguousarray(image_hw), parameters)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise SpecError(f"CRF {name} is {value!r}, expected a number from {low:g} to {high:g}")
