"""Boundary distances against brute force, MONAI and geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetx_opt.errors import DataError
from unetx_opt.metrics import boundary
from unetx_opt.metrics.boundary import assd_mm, assd_px, hd95_mm, hd95_px, surface_distances

SPACINGS = st.sampled_from([(1.0, 1.0), (0.7, 0.7), (0.3, 1.9)])


def mask_pairs() -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
    return shapes.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.bool_, shape) for _ in range(2)]))


def boundary_points(mask):
    """Pixels with a neighbour that is background or outside the image, one by one."""
    height, width = mask.shape
    found = []
    for row, column in np.argwhere(mask):
        for next_row, next_column in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= next_row < height and 0 <= next_column < width
            if not inside or not mask[next_row, next_column]:
                found.append((row, column))
                break
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def brute_force(first, second, spacing):
    points, others = (boundary_points(mask) * spacing for mask in (first, second))
    if not len(points) and not len(others):
        return 0.0, 0.0
    if not len(points) or not len(others):
        return np.inf, np.inf
    distances = np.sqrt(((points[:, None] - others[None]) ** 2).sum(axis=2))
    forth, back = distances.min(axis=1), distances.min(axis=0)
    return max(np.percentile(forth, 95), np.percentile(back, 95)), np.concatenate([forth, back]).mean()


def disc(size_px, centre, radius):
    rows, columns = np.ogrid[:size_px, :size_px]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


@pytest.mark.parametrize("tree_share", [0.0, 2.0], ids=["distance transform", "tree"])
@given(pair=mask_pairs(), spacing=SPACINGS)
def test_distances_are_those_of_brute_force(tree_share, pair, spacing):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundary, "_TREE_SHARE", tree_share)
        measured = hd95_mm(*pair, spacing), assd_mm(*pair, spacing)
    assert measured == pytest.approx(brute_force(*pair, spacing), abs=1e-12)


@given(mask_pairs(), SPACINGS, st.integers(0, 3))
def test_distances_are_symmetric_and_not_negative(pair, spacing, turns):
    first, second = pair
    assert hd95_mm(first, second, spacing) == hd95_mm(second, first, spacing) >= 0.0
    assert assd_mm(first, second, spacing) == pytest.approx(assd_mm(second, first, spacing))
    assert hd95_px(np.rot90(first, turns), np.rot90(second, turns)) == pytest.approx(hd95_px(first, second))
    assert hd95_px(first, first) == assd_px(first, first) == 0.0


@given(mask_pairs(), st.integers(1, 6), st.integers(1, 6))
def test_a_wider_frame_of_background_changes_nothing(pair, above, left):
    # Boundaries at the image's border are boundaries as any other.
    wider = [np.pad(mask, ((above, 2), (left, 1))) for mask in pair]
    assert hd95_px(*wider) == hd95_px(*pair)
    assert assd_px(*wider) == pytest.approx(assd_px(*pair))


@given(
    radius=st.integers(8, 20),
    shift=st.integers(0, 6),
    axis=st.integers(0, 1),
)
def test_a_rectangle_moved_by_k_pixels_lies_k_pixels_apart(radius, shift, axis):
    first = np.zeros((64, 64), bool)
    first[20 : 20 + radius, 18 : 18 + radius] = True
    second = np.roll(first, shift, axis=axis)
    # The two sides across the movement, over a quarter of the boundary each, are k away; none is further.
    assert hd95_px(first, second) == shift
    assert surface_distances(first, second).hausdorff(100.0) == shift


@given(radius=st.integers(10, 24), shift=st.integers(0, 5))
def test_a_disc_moved_by_k_pixels_has_a_hausdorff_distance_of_k(radius, shift):
    first = disc(80, (40, 34), radius)
    second = np.roll(first, shift, axis=1)
    assert surface_distances(first, second).hausdorff(100.0) == shift
    assert shift - 1.0 <= hd95_px(first, second) <= shift


@given(mask_pairs(), st.floats(0.1, 10.0))
def test_distances_scale_with_the_spacing(pair, spacing):
    in_px = hd95_px(*pair), assd_px(*pair)
    in_mm = hd95_mm(*pair, (spacing, spacing)), assd_mm(*pair, (spacing, spacing))
    assert in_mm == pytest.approx((in_px[0] * spacing, in_px[1] * spacing))


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own, about itself
def test_monai_gives_the_same_distances():
    metrics = pytest.importorskip("monai.metrics", reason="the comparison needs monai")
    torch = pytest.importorskip("torch")
    first = disc(96, (40, 40), 22) | disc(96, (70, 75), 9)
    second = disc(96, (43, 38), 24)
    one, other = (torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (first, second))
    hausdorff = metrics.compute_hausdorff_distance(one, other, include_background=True, percentile=95.0)
    average = metrics.compute_average_surface_distance(one, other, include_background=True, symmetric=True)
    # MONAI measures in float32.
    assert hd95_px(first, second) == pytest.approx(float(hausdorff[0, 0]), rel=1e-6)
    assert assd_px(first, second) == pytest.approx(float(average[0, 0]), rel=1e-6)


def test_empty_masks_are_zero_apart_and_infinitely_far_from_others():
    empty, blob = np.zeros((9, 9), bool), disc(9, (4, 4), 2)
    assert hd95_px(empty, empty) == assd_px(empty, empty) == 0.0
    assert hd95_px(empty, blob) == hd95_px(blob, empty) == np.inf
    assert assd_px(empty, blob) == assd_px(blob, empty) == np.inf


def test_one_class_of_a_label_mask_is_measured_alone():
    labels = np.zeros((20, 20), np.uint8)
    labels[2:8, 2:8], labels[12:18, 2:8] = 1, 2
    moved = np.roll(labels, 3, axis=1)
    moved[labels == 1] = 1
    assert hd95_px(labels, moved, class_index=2) == 3.0


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((0.0, 1.0), (4, 4)), ((1.0, float("nan")), (4, 4)), ((1.0, 1.0), (4, 5))],
    ids=["no spacing", "NaN spacing", "other grid"],
)
def test_impossible_spacings_and_grids_are_refused(spacing, shape):
    with pytest.raises(DataError, match="expected"):
        hd95_mm(np.ones((4, 4), bool), np.ones(shape, bool), spacing)


def test_smooth_masks_are_measured_by_the_tree_and_ragged_ones_by_the_transform(monkeypatch):
    # Each is several times slower than the other where the other belongs.
    first = disc(512, (256, 150), 140) | disc(512, (256, 380), 120)
    ragged = np.random.default_rng(0).random((512, 512)) < 0.5
    called = []
    for name in ("cKDTree", "distance_transform_edt"):
        real = getattr(boundary, name)
        monkeypatch.setattr(
            boundary, name, lambda *a, name=name, real=real, **k: called.append(name) or real(*a, **k)
        )
    assert hd95_px(first, np.roll(first, 2, axis=0)) == 2.0
    assert set(called) == {"cKDTree"}
    called.clear()
    assert hd95_px(ragged, ~ragged) == 1.0
    assert set(called) == {"distance_transform_edt"}
