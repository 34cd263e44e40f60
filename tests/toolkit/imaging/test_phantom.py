import functools

import numpy as np
import pytest
from scipy import ndimage

from unetx_opt.errors import ImageError
from unetx_opt.imaging.film import WHITE, expose_film, rotate_planes
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.specs import InputContract

SEEDS = range(12)


@functools.cache
def film(seed):
    return chest_phantom(seed, 256)


@pytest.mark.parametrize("size_px", [64, 100, 301])
def test_a_phantom_has_the_size_and_types_asked_for(size_px):
    image, mask = chest_phantom(3, size_px)
    assert (image.shape, image.dtype) == ((size_px, size_px), np.uint16)
    assert (mask.shape, mask.dtype) == ((size_px, size_px), np.uint8)
    assert image.max() <= WHITE
    assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize("size_px", [63, 4097])
def test_a_size_out_of_range_is_refused(size_px):
    with pytest.raises(ImageError, match="expected 64 to 4096"):
        chest_phantom(0, size_px)


def test_equal_seeds_give_equal_films_and_others_do_not():
    again = chest_phantom(5, 256)
    assert np.array_equal(film(5)[0], again[0])
    assert np.array_equal(film(5)[1], again[1])
    assert not np.array_equal(film(5)[1], film(6)[1])


def test_a_phantom_does_not_touch_the_global_random_state():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    chest_phantom(0, 64)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_holds_two_lungs_of_believable_size_and_place(seed):
    _, mask = film(seed)
    parts, count = ndimage.label(mask)
    assert count == 2
    assert 0.15 < mask.mean() < 0.38
    for part in (1, 2):
        assert (parts == part).mean() > 0.05
    centers = sorted(ndimage.center_of_mass(mask, parts, (1, 2)), key=lambda center: center[1])
    assert centers[0][1] < 0.45 * 256 < 0.55 * 256 < centers[1][1]


@pytest.mark.parametrize("seed", SEEDS)
def test_lungs_are_darker_than_what_lies_around_them(seed):
    image, mask = film(seed)
    ring = ndimage.binary_dilation(mask, iterations=10) & (mask == 0)
    assert np.median(image[mask > 0]) < 0.85 * np.median(image[ring])


@pytest.mark.parametrize("seed", [0, 4, 8])
def test_air_beside_the_body_is_black_and_the_spine_is_bright(seed):
    image, _ = film(seed)
    assert np.percentile(image, 2) < 0.1 * WHITE
    assert np.percentile(image[:, 110:146], 80) > 0.7 * WHITE


def test_the_collection_differs_in_anatomy_and_exposure():
    areas = np.array([mask.mean() for _, mask in map(film, SEEDS)])
    grey = np.array([image[mask > 0].mean() for image, mask in map(film, SEEDS)])
    assert areas.std() > 0.01
    assert grey.std() > 0.01 * WHITE


def test_grey_values_resemble_those_of_real_films(lungs):
    from unetx_opt.imaging.files import read_image

    def statistics(image, mask):
        grey = prepare_image(image, InputContract(height=256, width=256))[0][0]
        return grey[mask > 0].mean(), grey[mask == 0].mean(), grey.std(), mask.mean()

    names = sorted(path.name for path in (lungs / "images").iterdir())[::25]
    real = []
    for name in names:
        mask = read_image(lungs / "masks" / name).pixels[::2, ::2] > 127
        real.append(statistics(read_image(lungs / "images" / name).pixels, mask))
    phantom = [statistics(image, mask) for image, mask in map(film, SEEDS)]
    np.testing.assert_allclose(np.mean(phantom, axis=0), np.mean(real, axis=0), atol=0.1)


def test_a_rotation_continues_the_edges_and_keeps_the_middle():
    plane = np.full((60, 80), 3.0, np.float32)
    plane[25:35, 35:45] = 5.0
    (turned,) = rotate_planes([plane], 90)
    assert turned.shape == plane.shape
    assert turned[30, 40] == 5.0
    assert turned.min() == 3.0


def test_more_attenuation_gives_a_brighter_film():
    wedge = np.tile(np.linspace(0, 1.2, 8, dtype=np.float32).repeat(16), (128, 1))
    exposed = expose_film(wedge, np.random.default_rng(2)).astype(float)
    steps = np.median(exposed[40:90].reshape(50, 8, 16), axis=(0, 2))
    assert (np.diff(steps) >= 0).all()
    assert steps[0] < 0.1 * WHITE < 0.7 * WHITE < steps[-1]
