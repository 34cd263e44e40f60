import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, special

from unetx_opt.errors import EngineError
from unetx_opt.imaging.postprocess import label_mask, probabilities, restore_logits
from unetx_opt.imaging.preprocess import letterbox, prepare_image
from unetx_opt.imaging.resize import resize_plane
from unetx_opt.specs import InputContract, Normalization

SIDES = st.integers(16, 300)
UNIT_WINDOW = {"normalization": Normalization.WINDOW, "window": (0.0, 1.0)}


def triangle_weights(source, target):
    """(target, source) matrix of the documented filter, in float64."""
    scale = source / target
    width = max(1.0, scale)
    centers = (np.arange(target)[:, None] + 0.5) * scale
    taps = np.arange(source)[None]
    weights = np.maximum(0.0, 1.0 - np.abs((taps - centers + 0.5) / width))
    weights[taps < np.maximum(0, (centers - width + 0.5).astype(int))] = 0.0
    weights[taps >= np.minimum(source, (centers + width + 0.5).astype(int))] = 0.0
    return weights / weights.sum(axis=1, keepdims=True)


@given(source=st.tuples(SIDES, SIDES), target=st.tuples(st.integers(1, 300), st.integers(1, 300)))
@settings(max_examples=40, deadline=None)
def test_the_filter_is_the_documented_one(source, target):
    plane = np.random.default_rng(0).random(source, dtype=np.float32)
    rows = (plane.astype(np.float64) @ triangle_weights(source[1], target[1]).T).astype(np.float32)
    expected = triangle_weights(source[0], target[0]) @ rows.astype(np.float64)
    np.testing.assert_allclose(resize_plane(plane, *target), expected, atol=2e-7)


@pytest.mark.parametrize(
    ("source", "target"),
    [((300, 260), (64, 64)), ((64, 60), (200, 210)), ((99, 400), (150, 64)), ((512, 512), (511, 513))],
    ids=str,
)
def test_the_filter_agrees_with_torch(source, target):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    plane = np.random.default_rng(0).random(source, dtype=np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(plane)[None, None], size=target, mode="bilinear", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(resize_plane(plane, *target), expected[0, 0].numpy(), atol=1e-4)


@given(source=st.tuples(SIDES, SIDES), target=st.tuples(st.integers(16, 128), st.integers(16, 128)))
@settings(max_examples=60, deadline=None)
def test_logits_come_back_in_the_shape_of_the_source(source, target):
    contract = InputContract(height=target[0], width=target[1])
    image = np.random.default_rng(0).integers(0, 255, source, dtype=np.uint8)
    image_chw, geometry = prepare_image(image, contract)
    logits = np.concatenate([image_chw, -image_chw])
    restored = restore_logits(logits, geometry)
    assert restored.shape == (2, *source)
    assert restored.dtype == np.float32
    assert label_mask(restored).shape == source


@given(size=st.tuples(st.integers(16, 128), st.integers(16, 128)), classes=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_identity_is_exact_to_the_bit(size, classes):
    logits = np.random.default_rng(0).normal(size=(classes, *size)).astype(np.float32)
    geometry = letterbox(size, InputContract(height=size[0], width=size[1]))
    assert np.array_equal(restore_logits(logits, geometry), logits)


@given(
    source=st.tuples(st.integers(60, 400), st.integers(60, 400)),
    target=st.tuples(st.integers(64, 192), st.integers(64, 192)),
)
@settings(max_examples=60, deadline=None)
def test_a_rectangle_comes_back_within_a_pixel(source, target):
    height, width = source
    top, left = height // 4, width // 4
    mask = np.zeros(source, np.uint8)
    mask[top : height - top, left : width - left] = 1
    contract = InputContract(height=target[0], width=target[1], **UNIT_WINDOW)
    image_chw, geometry = prepare_image(mask, contract)
    back = label_mask(restore_logits(image_chw - np.float32(0.5), geometry))
    square = np.ones((3, 3))
    scale = max(1.0, height / geometry.scaled_height, width / geometry.scaled_width)
    # A pixel of the coarser grid; corners are rounded by the filter, so sides are compared.
    rows, columns = slice(top + top // 2, height - top - top // 2), slice(left + left // 2, width - left - left // 2)
    reach = max(1, round(scale / 2))
    assert not (back & ~ndimage.binary_dilation(mask, square, iterations=reach)).any()
    inner = ndimage.binary_erosion(mask, square, iterations=reach)
    assert back[rows, :][inner[rows, :]].all()
    assert back[:, columns][inner[:, columns]].all()


@given(
    source=st.tuples(st.integers(40, 400), st.integers(40, 400)),
    target=st.tuples(st.integers(48, 160), st.integers(48, 160)),
)
@settings(max_examples=40, deadline=None)
def test_a_ramp_comes_back_without_a_shift(source, target):
    rows = np.linspace(0.0, 1.0, source[0])[:, None]
    columns = np.linspace(0.0, 1.0, source[1])[None]
    ramp = (rows + columns) / 2
    contract = InputContract(height=target[0], width=target[1], **UNIT_WINDOW)
    image_chw, geometry = prepare_image(ramp, contract)
    restored = restore_logits(image_chw, geometry)[0]
    # The filter is cut at the border, so the ramp is compared inside; a shift of one pixel is 1 / side.
    inside = tuple(slice(side // 4, side - side // 4) for side in source)
    shift = (restored - ramp)[inside].mean()
    assert abs(shift) < 0.02 / max(source)
    assert np.abs(restored - ramp)[inside].max() < 0.15 / min(source)


def test_the_centroid_of_a_blob_stays_where_it_was():
    rows, columns = np.mgrid[:331, :257]
    blob = np.exp(-((rows - 100.3) ** 2 + (columns - 170.8) ** 2) / (2 * 12.0**2))
    contract = InputContract(height=128, width=128, **UNIT_WINDOW)
    image_chw, geometry = prepare_image(blob, contract)
    restored = restore_logits(image_chw, geometry)[0].astype(np.float64)
    assert ndimage.center_of_mass(restored) == pytest.approx((100.3, 170.8), abs=0.02)


def test_anisotropic_pixels_come_back_on_the_source_grid():
    mask = np.zeros((100, 200), np.uint8)
    mask[30:70, 60:140] = 1
    contract = InputContract(height=128, width=128, **UNIT_WINDOW)
    image_chw, geometry = prepare_image(mask, contract, spacing_mm=(0.4, 0.2))
    assert (geometry.scaled_height, geometry.scaled_width) == (128, 128)
    back = label_mask(restore_logits(image_chw - np.float32(0.5), geometry))
    assert abs(int(back.sum()) - int(mask.sum())) <= 0.01 * mask.sum()


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 63), (0, 64, 64), (1, 1, 64, 64)], ids=str)
def test_logits_of_another_size_are_refused(shape):
    geometry = letterbox((64, 64), InputContract(height=64, width=64))
    with pytest.raises(EngineError, match="expected \\(classes, 64, 64\\)"):
        restore_logits(np.zeros(shape, np.float32), geometry)


def test_one_class_is_decided_at_zero():
    logits = np.array([[[-1.0, 0.0, 1e-30, np.nan, np.inf]]], np.float32)
    labels = label_mask(logits)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 0, 1, 0, 1]]


@given(classes=st.integers(2, 6), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_several_classes_are_decided_by_the_largest_logit(classes, seed):
    logits = np.random.default_rng(seed).integers(-3, 3, (classes, 9, 11)).astype(np.float32)
    assert np.array_equal(label_mask(logits), logits.argmax(axis=0))


def test_a_nan_never_wins_among_classes():
    logits = np.array([[[np.nan, 1.0]], [[2.0, np.nan]], [[1.0, 0.0]]], np.float32)
    assert label_mask(logits).tolist() == [[1, 0]]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_probabilities_are_stable_and_agree_with_scipy(classes):
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(classes, 16, 16)) * 10.0 ** rng.integers(-3, 5, (classes, 16, 16))).astype(np.float32)
    logits[:, 0, 0] = np.finfo(np.float32).max
    logits[:, 0, 1] = np.finfo(np.float32).min
    with np.errstate(all="raise", under="ignore"):
        actual = probabilities(logits)
    assert actual.dtype == np.float32
    assert actual.shape == logits.shape
    wide = logits.astype(np.float64)
    expected = special.expit(wide) if classes == 1 else special.softmax(wide, axis=0)
    np.testing.assert_allclose(actual, expected, atol=3e-7)
