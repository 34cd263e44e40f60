"""Both attention gates by their definition, in float64.

Everything else, the CUDA kernels and PyTorch alike, is measured against this.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WINDOWS", "additive_gate", "neighbourhood_gate", "neighbourhood_gate_gradients", "upsample_bilinear"]

#: Sides of the neighbourhood that the kernels know, in pixels.
WINDOWS = (3, 5, 7)

Tensor = NDArray[np.float64]


def neighbourhood_gate(
    theta: NDArray[Any],
    phi: NDArray[Any],
    values: NDArray[Any],
    window: int,
    *,
    dilation: int = 1,
    residual: NDArray[Any] | None = None,
) -> Tensor:
    """Attend from every pixel to its neighbourhood.

    ``s_ij = <theta_i, phi_j> / sqrt(D)``, ``a = softmax_j(s)``, ``y_i = sum_j a_ij values_j + residual_i`` for j in
    the window round i. Neighbours outside the image take no part.

    Parameters
    ----------
    theta, phi : numpy.ndarray
        (N, D, H, W).
    values : numpy.ndarray
        (N, C, H, W).
    window : int
        Pixels of the neighbourhood along one axis, 3, 5 or 7.
    dilation : int
        Distance of neighbouring pixels of the window, 1 or more.
    residual : numpy.ndarray or None
        (N, C, H, W), added to the result: the upsampled features of the decoder.

    Returns
    -------
    numpy.ndarray
        (N, C, H, W), float64.

    Raises
    ------
    ValueError
        Shapes do not fit one another, or window or dilation is out of range.
    """
    _check_shapes(theta, phi, values, residual)
    theta, phi, values = (np.asarray(tensor, dtype=np.float64) for tensor in (theta, phi, values))
    shifts = _Shifts(theta, window, dilation)
    weights = shifts.weights(theta, phi)
    padded = shifts.pad(values)
    attended = np.zeros_like(values) if residual is None else np.array(residual, dtype=np.float64)
    for weight, view in zip(weights, shifts.views, strict=True):
        attended += weight[:, None] * padded[view]
    return attended


def neighbourhood_gate_gradients(
    inputs: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    gradient: NDArray[Any],
    window: int,
    *,
    dilation: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate `neighbourhood_gate`.

    Parameters
    ----------
    inputs : tuple of numpy.ndarray
        theta and phi, (N, D, H, W), and values, (N, C, H, W).
    gradient : numpy.ndarray
        (N, C, H, W), of the output; it is the residual's gradient, too.
    window, dilation : int
        As in `neighbourhood_gate`.

    Returns
    -------
    tuple of numpy.ndarray
        Gradients of theta, phi and values, float64.
    """
    _check_shapes(*inputs, gradient)
    theta, phi, values, gradient = (np.asarray(tensor, dtype=np.float64) for tensor in (*inputs, gradient))
    shifts = _Shifts(theta, window, dilation)
    weights = shifts.weights(theta, phi)
    padded_phi, padded_values = shifts.pad(phi), shifts.pad(values)
    products = np.stack([np.sum(gradient * padded_values[view], axis=1) for view in shifts.views])
    of_scores = weights * (products - np.sum(weights * products, axis=0)) / math.sqrt(theta.shape[1])
    of_theta, of_phi, of_values = np.zeros_like(theta), np.zeros_like(padded_phi), np.zeros_like(padded_values)
    for weight, of_score, view in zip(weights, of_scores, shifts.views, strict=True):
        of_theta += of_score[:, None] * padded_phi[view]
        of_phi[view] += of_score[:, None] * theta
        of_values[view] += weight[:, None] * gradient
    return of_theta, of_phi[shifts.image], of_values[shifts.image]


class _Shifts:
    """Every tap of the window as a view of a padded tensor."""

    def __init__(self, like: Tensor, window: int, dilation: int) -> None:
        if window not in WINDOWS or dilation < 1:
            raise ValueError(f"window is {window} and dilation {dilation}, expected one of {WINDOWS} and at least 1")
        height, width = like.shape[2:]
        self._reach = window // 2 * dilation
        starts = [(dy * dilation, dx * dilation) for dy in range(window) for dx in range(window)]
        self.views = [np.s_[:, :, top : top + height, left : left + width] for top, left in starts]
        self.image = self.views[len(starts) // 2]

    def pad(self, tensor: NDArray[Any]) -> NDArray[Any]:
        margin = (self._reach, self._reach)
        return np.pad(tensor, ((0, 0), (0, 0), margin, margin))

    def weights(self, theta: Tensor, phi: Tensor) -> Tensor:
        """Return the attention distribution, (window ** 2, N, H, W)."""
        padded, inside = self.pad(phi), self.pad(np.ones((1, 1, *theta.shape[2:]), dtype=bool))
        scores = np.stack(
            [np.where(inside[view][:, 0], np.sum(theta * padded[view], axis=1), -np.inf) for view in self.views]
        ) / math.sqrt(theta.shape[1])
        weights = np.exp(scores - scores.max(axis=0))
        weights /= weights.sum(axis=0)
        return np.asarray(weights)


def additive_gate(
    values: NDArray[Any],
    projected_skip: NDArray[Any],
    projected_coarse: NDArray[Any],
    psi: NDArray[Any],
    *,
    psi_bias: float = 0.0,
    residual: NDArray[Any] | None = None,
) -> Tensor:
    """Weight every pixel by the additive gate of Attention U-Net (Oktay et al. 2018, arXiv:1804.03999).

    ``y = sigmoid(<psi, relu(projected_skip + up(projected_coarse))> + psi_bias) * values + residual``.

    Parameters
    ----------
    values : numpy.ndarray
        (N, C, H, W), the skip connection.
    projected_skip : numpy.ndarray
        (N, D, H, W).
    projected_coarse : numpy.ndarray
        (N, D, h, w), the gating signal after its projection; brought to (H, W) by `upsample_bilinear`.
    psi : numpy.ndarray
        (D,).
    psi_bias : float
        Added to the score.
    residual : numpy.ndarray or None
        (N, C, H, W), added to the result.

    Returns
    -------
    numpy.ndarray
        (N, C, H, W), float64.
    """
    _check_shapes(projected_skip, projected_skip, values, residual)
    if projected_coarse.shape[:2] != projected_skip.shape[:2] or psi.shape != projected_skip.shape[1:2]:
        raise ValueError(
            f"projections are {projected_skip.shape} and {projected_coarse.shape} and psi is {psi.shape}, "
            "expected (N, D, H, W), (N, D, h, w) and (D,)"
        )
    height, width = values.shape[2:]
    features = np.asarray(projected_skip, dtype=np.float64) + upsample_bilinear(projected_coarse, height, width)
    scores = np.einsum("d,ndhw->nhw", np.asarray(psi, dtype=np.float64), np.maximum(features, 0.0)) + psi_bias
    gated = _sigmoid(scores)[:, None] * np.asarray(values, dtype=np.float64)
    return gated if residual is None else gated + np.asarray(residual, dtype=np.float64)


def upsample_bilinear(features: NDArray[Any], height: int, width: int) -> Tensor:
    """Interpolate (N, D, h, w) to (N, D, height, width) with half-pixel centres, as PyTorch does."""
    features = np.asarray(features, dtype=np.float64)
    low_y, high_y, part_y = _source_positions(features.shape[2], height)
    low_x, high_x, part_x = _source_positions(features.shape[3], width)
    rows = features[:, :, low_y] * (1.0 - part_y)[:, None] + features[:, :, high_y] * part_y[:, None]
    upsampled: Tensor = rows[..., low_x] * (1.0 - part_x) + rows[..., high_x] * part_x
    return upsampled


def _source_positions(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    low = np.minimum(position.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), position - low


def _sigmoid(scores: Tensor) -> Tensor:
    decay = np.exp(-np.abs(scores))
    return np.where(scores >= 0.0, 1.0, decay) / (1.0 + decay)


def _check_shapes(
    theta: NDArray[Any], phi: NDArray[Any], values: NDArray[Any], residual: NDArray[Any] | None
) -> None:
    pixels = (values.shape[0], *values.shape[2:])
    fits = (
        values.ndim == theta.ndim == 4
        and theta.shape == phi.shape
        and (theta.shape[0], *theta.shape[2:]) == pixels
        and (residual is None or residual.shape == values.shape)
        and 0 not in (*values.shape, *theta.shape)
    )
    if not fits:
        raise ValueError(
            f"shapes are {theta.shape}, {phi.shape}, {values.shape} and "
            f"{None if residual is None else residual.shape}, "
            "expected (N, D, H, W) twice and (N, C, H, W) once or twice, none of them empty"
        )
