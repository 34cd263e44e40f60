import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetx_opt.errors import ImageError, SpecError
from unetx_opt.imaging.preprocess import letterbox, prepare_image
from unetx_opt.specs import InputContract, Normalization

CONTRACT = InputContract(height=64, width=64)


def random_image(shape=(64, 64), dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(100.0, 30.0, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -3000), min(info.max, 30000), shape, dtype=dtype, endpoint=True)


def expected_values(image, contract):
    values = image.astype(np.float64)
    low, high = np.percentile(values, [contract.lower_percentile, contract.upper_percentile])
    return np.clip((values - low) / (high - low), 0.0, 1.0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64"])
def test_whole_numbers_are_mapped_by_the_exact_percentiles(dtype):
    image = random_image(dtype=dtype)
    image_chw, _ = prepare_image(image, CONTRACT)
    assert image_chw.shape == (1, 64, 64)
    assert image_chw.dtype == np.float32
    assert image_chw.flags.c_contiguous
    np.testing.assert_allclose(image_chw[0], expected_values(image, CONTRACT), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "longdouble"])
def test_small_float_images_are_mapped_by_the_exact_percentiles(dtype):
    image = random_image(dtype=dtype)
    image_chw, _ = prepare_image(image, CONTRACT)
    np.testing.assert_allclose(image_chw[0], expected_values(image, CONTRACT), atol=1e-5)


def test_integers_that_span_too_many_levels_for_a_table_are_mapped_alike():
    image = np.random.default_rng(1).integers(-(2**40), 2**40, (64, 64))
    image_chw, _ = prepare_image(image, CONTRACT)
    np.testing.assert_allclose(image_chw[0], expected_values(image, CONTRACT), atol=1e-6)


def test_unsigned_values_above_the_signed_range_are_mapped_alike():
    image = random_image(dtype=np.uint8).astype(np.uint64) + np.uint64(2**63)
    image_chw, _ = prepare_image(image, CONTRACT)
    assert np.isfinite(image_chw).all()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float16", "float32", "float64"])
def test_the_same_picture_gives_the_same_tensor_whatever_its_type(dtype):
    image = random_image((100, 80), np.uint8)
    expected, _ = prepare_image(image, CONTRACT)
    actual, _ = prepare_image(image.astype(dtype), CONTRACT)
    assert np.array_equal(actual, expected)


def test_percentiles_of_a_large_float_image_come_from_a_grid_and_stay_close():
    image = random_image((1200, 1100), np.float32)
    contract = InputContract(height=1200, width=1100)
    image_chw, _ = prepare_image(image, contract)
    np.testing.assert_allclose(image_chw[0], expected_values(image, contract), atol=0.02)
    again, _ = prepare_image(image, contract)
    assert np.array_equal(image_chw, again)


def test_a_window_maps_its_ends_to_the_value_range_and_clips():
    contract = InputContract(
        height=16, width=16, normalization=Normalization.WINDOW, window=(10.0, 20.0), value_range=(-1.0, 1.0)
    )
    image = np.zeros((16, 16), np.int16)
    image[0, :4] = (10, 15, 20, 1000)
    image_chw, _ = prepare_image(image, contract)
    assert image_chw[0, 0, :5].tolist() == [-1.0, 0.0, 1.0, 1.0, -1.0]
    fraction, _ = prepare_image(image + np.float32(0.25), contract)
    np.testing.assert_allclose(fraction[0, 0, :5], [-0.95, 0.05, 1.0, 1.0, -1.0], atol=1e-6)


def test_a_window_beyond_any_grey_value_is_refused():
    contract = InputContract(height=16, width=16, normalization=Normalization.WINDOW, window=(0.0, float("inf")))
    with pytest.raises(SpecError, match="window"):
        prepare_image(np.ones((16, 16), np.uint8), contract)


@pytest.mark.parametrize("value", [0, 7, -3.5, 1e20], ids=str)
def test_a_constant_image_becomes_the_lower_end_without_a_warning(value):
    contract = InputContract(height=32, width=32, value_range=(-1.0, 1.0))
    with np.errstate(all="raise"):
        image_chw, _ = prepare_image(np.full((20, 32), value), contract)
    assert set(np.unique(image_chw[0, 6:26])) == {-1.0}


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_a_few_bright_pixels_on_a_flat_image_stretch_over_the_whole_range(dtype):
    image = np.full((64, 64), 5, dtype)
    image[3, 3], image[4, 4] = 105, 55
    image = image if dtype == "uint8" else image + np.asarray(0.25, dtype)
    image_chw, _ = prepare_image(image, CONTRACT)
    assert (image_chw[0, 0, 0], image_chw[0, 3, 3], image_chw[0, 4, 4]) == (0.0, 1.0, 0.5)


def test_denormal_contrast_gives_finite_values():
    image = np.zeros((16, 16), np.float32)
    image[:8] = np.float32(1e-45)
    image_chw, _ = prepare_image(image, InputContract(height=16, width=16))
    assert np.isfinite(image_chw).all()


def test_an_image_of_the_input_size_is_not_resampled():
    image = random_image()
    image_chw, geometry = prepare_image(image, CONTRACT)
    assert (geometry.top, geometry.left) == (0, 0)
    assert len(np.unique(image_chw)) <= len(np.unique(image))


def test_channels_repeat_the_grey_plane():
    image_chw, _ = prepare_image(random_image((30, 60)), InputContract(height=64, width=64, channels=3))
    assert image_chw.shape == (3, 64, 64)
    assert np.array_equal(image_chw[0], image_chw[2])


def test_padding_has_the_value_of_the_contract():
    contract = InputContract(height=64, width=64, padding_value=-7.0)
    image_chw, geometry = prepare_image(random_image((32, 64)), contract)
    assert (geometry.top, geometry.scaled_height) == (16, 32)
    assert set(np.unique(image_chw[0, :16])) == {-7.0}
    assert set(np.unique(image_chw[0, 48:])) == {-7.0}
    assert image_chw[0, 16:48].min() >= 0.0


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "scaled"),
    [
        ((100, 100), None, (64, 64)),
        ((200, 100), None, (64, 32)),
        ((100, 200), None, (32, 64)),
        ((100, 100), (0.2, 0.1), (64, 32)),
        ((200, 100), (0.1, 0.2), (64, 64)),
        ((1955, 1841), (0.168, 0.168), (64, 60)),
        ((1955, 1841), (1e-320, 1e-320), (64, 60)),
        ((16, 16384), None, (1, 64)),
    ],
    ids=str,
)
def test_the_physical_aspect_is_kept(shape, spacing_mm, scaled):
    geometry = letterbox(shape, CONTRACT, spacing_mm)
    assert (geometry.scaled_height, geometry.scaled_width) == scaled


@given(
    source=st.tuples(st.integers(16, 16384), st.integers(16, 16384)),
    target=st.tuples(st.integers(16, 8192), st.integers(16, 8192)),
    spacing_mm=st.none() | st.tuples(st.floats(0.05, 0.8), st.floats(0.05, 0.8)),
)
@settings(max_examples=300, deadline=None)
def test_the_letterbox_fits_is_centred_and_fills_one_side(source, target, spacing_mm):
    contract = InputContract(height=target[0], width=target[1])
    geometry = letterbox(source, contract, spacing_mm)
    below = geometry.input_height - geometry.top - geometry.scaled_height
    right = geometry.input_width - geometry.left - geometry.scaled_width
    assert 0 <= below - geometry.top <= 1
    assert 0 <= right - geometry.left <= 1
    assert geometry.scaled_height == target[0] or geometry.scaled_width == target[1]
    row_mm, column_mm = spacing_mm or (1.0, 1.0)
    scale = min(target[0] / (source[0] * row_mm), target[1] / (source[1] * column_mm))
    assert abs(geometry.scaled_height - max(1.0, source[0] * row_mm * scale)) <= 0.501
    assert abs(geometry.scaled_width - max(1.0, source[1] * column_mm * scale)) <= 0.501


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 0)), "0 x 0"),
        (np.zeros((15, 64)), "15 x 64"),
        (np.zeros((16, 16385), np.uint8), "16 to 16384"),
        (np.zeros((64, 64, 3), np.uint8), r"\(64, 64, 3\)"),
        (np.zeros(64), r"\(64,\)"),
        (np.zeros((64, 64), np.complex64), "complex64"),
        (np.zeros((64, 64), bool), "bool"),
        (np.full((64, 64), "a"), "<U1"),
        (np.full((64, 64), None), "object"),
        (np.where(np.eye(64) > 0, np.nan, 1.0), "64 pixels that are NaN"),
        (np.where(np.eye(64) > 0, -np.inf, 1.0), "64 pixels that are NaN or infinite"),
        (np.where(np.eye(64) > 0, 1e38, 1.0).astype(np.float32), "1e30"),
    ],
    ids=[
        "empty",
        "tiny",
        "absurd",
        "colour",
        "one axis",
        "complex",
        "bool",
        "text",
        "object",
        "nan",
        "infinite",
        "overflow",
    ],
)
def test_what_is_no_grey_image_is_refused_with_what_was_found(image, message):
    with pytest.raises(ImageError, match=message):
        prepare_image(image, CONTRACT)


@pytest.mark.parametrize(
    "spacing_mm", [(0.0, 0.0), (-0.1, 0.1), (float("nan"), 0.1), (0.1, float("inf")), (0.1, 9.0)], ids=str
)
def test_a_spacing_that_cannot_be_is_refused(spacing_mm):
    with pytest.raises(ImageError, match="pixel spacing"):
        prepare_image(random_image(), CONTRACT, spacing_mm)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_percentiles_of_any_histogram_agree_with_numpy(data):
    values = data.draw(st.lists(st.integers(-500, 500), min_size=256, max_size=256))
    lower = data.draw(st.floats(0.0, 40.0))
    upper = data.draw(st.floats(60.0, 100.0))
    image = np.array(values).reshape(16, 16)
    contract = InputContract(height=16, width=16, lower_percentile=lower, upper_percentile=upper)
    low, high = np.percentile(image, [lower, upper])
    if high - low < 1e-6:
        return
    image_chw, _ = prepare_image(image, contract)
    np.testing.assert_allclose(image_chw[0], expected_values(image, contract), atol=1e-6)
