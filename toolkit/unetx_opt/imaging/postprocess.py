"""Logits to masks and probabilities on the grid of the image they came from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetx_opt.errors import EngineError
from unetx_opt.imaging.preprocess import ImageGeometry
from unetx_opt.imaging.resize import resize_plane

__all__ = ["label_mask", "probabilities", "restore_logits"]


def restore_logits(logits_chw: NDArray[np.float32], geometry: ImageGeometry) -> NDArray[np.float32]:
    """Cut the padding off and scale the logits to the size of the source image.

    Parameters
    ----------
    logits_chw : numpy.ndarray
        (K, height, width) float32, as an engine gives them for one image.
    geometry : ImageGeometry
        What `unetx_opt.imaging.preprocess.prepare_image` returned with that image.

    Returns
    -------
    numpy.ndarray
        (K, H, W) float32 on the source grid, by the filter of `unetx_opt.imaging.resize`; the values themselves
        where nothing was scaled. Whether they are finite is for the caller to check.

    Raises
    ------
    EngineError
        The logits do not have the size of the network's input.
    """
    expected = (geometry.input_height, geometry.input_width)
    if logits_chw.ndim != 3 or logits_chw.shape[0] < 1 or logits_chw.shape[1:] != expected:
        raise EngineError(
            f"logits have shape {logits_chw.shape}, expected (classes, {expected[0]}, {expected[1]}): "
            "the engine does not fit the input contract"
        )
    rows = slice(geometry.top, geometry.top + geometry.scaled_height)
    columns = slice(geometry.left, geometry.left + geometry.scaled_width)
    inside = logits_chw[:, rows, columns]
    height, width = geometry.source_height, geometry.source_width
    if inside.shape[1:] == (height, width):
        return inside
    if inside.shape[0] == 1:
        return resize_plane(inside[0], height, width)[np.newaxis]
    return np.stack([resize_plane(plane, height, width) for plane in inside])


def label_mask(logits_khw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Decide every pixel.

    Parameters
    ----------
    logits_khw : numpy.ndarray
        (K, H, W) float32.

    Returns
    -------
    numpy.ndarray
        (H, W) uint8. One class: 1 where the logit is above 0. Otherwise the index of the largest logit, the lowest
        one of equals. NaN never wins.
    """
    if logits_khw.shape[0] == 1:
        foreground: NDArray[np.bool_] = logits_khw[0] > 0
        return foreground.view(np.uint8)
    # A running maximum reads each plane once, in order; numpy.argmax over the first axis is several times slower.
    labels = np.zeros(logits_khw.shape[1:], dtype=np.uint8)
    largest = np.full(labels.shape, -np.inf, dtype=logits_khw.dtype)
    for index, logits in enumerate(logits_khw):
        np.copyto(labels, np.uint8(index), where=logits > largest)
        np.fmax(largest, logits, out=largest)
    return labels


def probabilities(logits_khw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into probabilities: sigmoid of one class, softmax over several.

    Parameters
    ----------
    logits_khw : numpy.ndarray
        (K, H, W) float32.

    Returns
    -------
    numpy.ndarray
        (K, H, W) float32 in [0, 1]; neither overflows nor warns for any finite logit.
    """
    logits = logits_khw.astype(np.float32, copy=False)
    if logits.shape[0] == 1:
        # exp of a negative magnitude only: never above 1.
        decay = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, np.float32(1), decay) / (1 + decay), dtype=np.float32)
    weights = np.exp(logits - logits.max(axis=0, keepdims=True))
    return np.asarray(weights / weights.sum(axis=0, keepdims=True), dtype=np.float32)
