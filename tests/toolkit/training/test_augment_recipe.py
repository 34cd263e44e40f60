"""MONAI's resampling and grey values against scipy and numpy: the recipe of the shipped checkpoints, view by view."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import ndimage

from unetx_opt.training.augment import Augmentation, View, cut_view, draw_view, vary_grey

pytest.importorskip("monai", reason="augmentation needs MONAI: pip install 'unetx-opt[train]'")

_SEEDS = st.integers(0, 2**32 - 1)


def _smooth(seed: int, shape: tuple[int, int]) -> np.ndarray:
    grey = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape, dtype=np.float32), 2.0)
    return ((grey - grey.min()) / (grey.max() - grey.min())).astype(np.float32)


def _cut_by_scipy(pixels: np.ndarray, view: View, side: int, order: int, outside: float) -> np.ndarray:
    angle = math.radians(view.rotation_deg)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if view.mirrored:
        rotation[:, 1] *= -1.0
    extent = np.asarray(pixels.shape, dtype=np.float64)
    matrix = np.diag(extent / (side * np.asarray(view.zoom_yx))) @ rotation
    offset = np.asarray(view.centre_yx) * extent - 0.5 - matrix @ np.full(2, side / 2 - 0.5)
    return ndimage.affine_transform(
        pixels, matrix, offset, (side, side), order=order, mode="constant", cval=outside, prefilter=False
    )


def _vary_by_numpy(pixels: np.ndarray, random: np.random.Generator, limits: Augmentation) -> np.ndarray:
    exponent = math.exp(random.uniform(-limits.gamma, limits.gamma))
    gain = math.exp(random.uniform(-limits.contrast, limits.contrast))
    offset = random.uniform(-limits.brightness, limits.brightness)
    deviation = random.uniform(0.0, limits.noise)
    varied = (np.clip(pixels, 0.0, 1.0).astype(np.float64) ** exponent - 0.5) * gain + 0.5 + offset
    return np.clip(varied + deviation * random.standard_normal(pixels.shape, dtype=np.float32), 0.0, 1.0)


@given(_SEEDS, st.sampled_from([(96, 96), (192, 192), (96, 64), (33, 120)]))
@example(0, (96, 96))
def test_a_view_is_the_one_that_scipy_cuts(seed: int, shape: tuple[int, int]) -> None:
    grey = _smooth(seed % 7, shape)
    view = draw_view(np.random.default_rng(seed), Augmentation())
    ours = cut_view(grey, view, 96, order=1, outside=-1.0)
    scipys = _cut_by_scipy(grey, view, 96, 1, -1.0)
    inside = (ours >= 0.0) & (scipys >= 0.0)
    assert ((ours < 0.0) == (scipys < 0.0)).mean() >= 0.999
    assert np.abs(ours - scipys)[inside].max(initial=0.0) <= 1e-6
    labels = ((grey > 0.4).astype(np.uint8) + (grey > 0.6)).astype(np.uint8)
    assert (cut_view(labels, view, 96, order=0, outside=0) == _cut_by_scipy(labels, view, 96, 0, 0)).mean() >= 0.999


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_plain_view_reaches_to_the_outermost_pixels_as_scipys_does(mirrored: bool) -> None:
    grey = _smooth(3, (64, 64))
    for side in (32, 64, 128):
        ours = cut_view(grey, View(mirrored=mirrored), side, order=1, outside=-1.0)
        scipys = _cut_by_scipy(grey, View(mirrored=mirrored), side, 1, -1.0)
        assert np.array_equal(ours < 0, scipys < 0)
        assert np.abs(ours - scipys).max() <= 1e-6


@given(_SEEDS, st.floats(0.0, 0.5), st.floats(0.5, 1.0))
@example(1, 0.0, 1.0)
@example(2, 0.3, 0.3001)
def test_grey_values_are_varied_as_the_formulas_say_whatever_range_a_view_has(
    seed: int, low: float, high: float
) -> None:
    """The gamma of MONAI acts on the range of the image it is given; a view of the heart alone has a narrow one."""
    grey = (low + (high - low) * _smooth(seed % 5, (40, 48))).astype(np.float32)
    grey[:4] = -1.0
    ours = vary_grey(grey, np.random.default_rng(seed), Augmentation())
    assert np.abs(ours - _vary_by_numpy(grey, np.random.default_rng(seed), Augmentation())).max() <= 1e-5
