"""Random views: what they show, that image and mask agree, and that a seed decides all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.training.augment import Augmentation, View, cut_view, draw_view, vary_grey

_PIXELS = np.random.default_rng(0).random((32, 32), dtype=np.float32)


def test_the_plain_view_is_the_image() -> None:
    assert np.allclose(cut_view(_PIXELS, View(), 32, order=1, outside=0.0), _PIXELS, atol=1e-6)


def test_a_mirrored_view_swaps_left_and_right_only() -> None:
    cut = cut_view(_PIXELS, View(mirrored=True), 32, order=1, outside=0.0)
    assert np.allclose(cut, _PIXELS[:, ::-1], atol=1e-6)


def test_a_quarter_turn_is_clockwise() -> None:
    cut = cut_view(_PIXELS, View(rotation_deg=90.0), 32, order=1, outside=0.0)
    # The outermost pixels may round to just beyond the image.
    inner = slice(1, -1)
    assert np.allclose(cut[inner, inner], np.rot90(_PIXELS, -1)[inner, inner], atol=1e-5)


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [((0.25, 0.25), slice(0, 16), slice(0, 16)), ((0.75, 0.5), slice(16, 32), slice(8, 24))],
)
def test_zoom_two_shows_a_quarter_of_the_image(centre: tuple[float, float], rows: slice, columns: slice) -> None:
    cut = cut_view(_PIXELS, View(zoom_yx=(2.0, 2.0), centre_yx=centre), 16, order=1, outside=0.0)
    assert np.allclose(cut, _PIXELS[rows, columns], atol=1e-6)


def test_a_view_does_not_depend_on_the_resolution_it_is_cut_from() -> None:
    rows, columns = np.mgrid[0:64, 0:64] / 64.0
    fine = (rows + 2 * columns).astype(np.float32)
    coarse = fine.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    view = View((1.5, 1.3), 8.0, True, (0.52, 0.47))
    cuts = [cut_view(pixels, view, 32, order=1, outside=0.0) for pixels in (fine, coarse)]
    assert np.allclose(cuts[0], cuts[1], atol=1e-4)


def test_beyond_the_image_lies_the_value_asked_for() -> None:
    cut = cut_view(_PIXELS, View(zoom_yx=(0.5, 0.5)), 32, order=1, outside=-1.0)
    assert (cut[:7] == -1.0).all()
    assert (cut[9:23, 9:23] >= 0.0).all()


@given(st.integers(0, 2**32))
def test_image_and_mask_are_cut_alike(seed: int) -> None:
    rows, columns = np.mgrid[0:64, 0:64]
    mask = (((rows - 30) ** 2 + (columns - 36) ** 2) < 18**2).astype(np.uint8)
    view = draw_view(np.random.default_rng(seed), Augmentation())
    labels = cut_view(mask, view, 64, order=0, outside=0)
    grey = cut_view(mask.astype(np.float32), view, 64, order=1, outside=0.0)
    assert labels.dtype == np.uint8
    assert np.abs(labels - grey).max() <= 0.75 + 1e-6


@given(st.integers(0, 2**32))
def test_a_seed_decides_the_view_and_views_stay_within_limits(seed: int) -> None:
    limits = Augmentation()
    view = draw_view(np.random.default_rng(seed), limits)
    assert view == draw_view(np.random.default_rng(seed), limits)
    zoom = float(np.sqrt(view.zoom_yx[0] * view.zoom_yx[1]))
    assert limits.whole_zoom[0] - 1e-9 <= zoom <= limits.part_zoom[1] + 1e-9
    assert abs(np.log(view.zoom_yx[0] / view.zoom_yx[1])) <= limits.stretch + 1e-9
    assert abs(view.rotation_deg) <= limits.rotation_deg
    assert all(0.0 < centre < 1.0 for centre in view.centre_yx)


def test_most_views_are_whole() -> None:
    random = np.random.default_rng(1)
    zooms = [float(np.prod(draw_view(random, Augmentation()).zoom_yx)) ** 0.5 for _ in range(1000)]
    assert 550 <= sum(zoom <= 1.15 for zoom in zooms) <= 650


@given(st.integers(0, 2**32))
def test_varied_grey_stays_in_range_and_depends_on_the_seed_alone(seed: int) -> None:
    varied = [vary_grey(_PIXELS, np.random.default_rng(seed), Augmentation()) for _ in range(2)]
    assert np.array_equal(varied[0], varied[1])
    assert varied[0].dtype == np.float32
    assert varied[0].min() >= 0.0
    assert varied[0].max() <= 1.0
