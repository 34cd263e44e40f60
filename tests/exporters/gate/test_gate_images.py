"""Gate images: what they are, that they repeat, and that their hash tells images apart."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unetx_exporters.gate_images import folder_gate_images, image_sha256, phantom_gate_images
from unetx_opt.errors import DataError


@pytest.fixture
def data_folder(tmp_path):
    """Make three images in `validation` and one in `test`."""
    root = tmp_path / "chests"
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rows = ["file,patient,split"]
    for index, split in enumerate(["validation", "validation", "test", "validation"]):
        name = f"image_{index}.png"
        Image.fromarray(generator.integers(0, 255, (40, 48), np.uint8)).save(root / "images" / name)
        mask = np.zeros((40, 48), np.uint8)
        mask[10:20, 5 : 15 + index] = 255
        Image.fromarray(mask).save(root / "masks" / name)
        rows.append(f"{name},patient{index},{split}")
    (root / "splits.csv").write_text("\n".join(rows) + "\n")
    return root


def test_a_folder_gives_the_images_of_one_split_with_their_truth(data_folder):
    images = folder_gate_images(data_folder, "validation")
    found = list(images)
    assert (images.data, images.split, len(images)) == ("chests", "validation", 3)
    assert [image.name for image in found] == ["image_0.png", "image_1.png", "image_3.png"]
    assert [int(image.truth.sum()) for image in found] == [100, 110, 130]
    assert "chests" in images.note and "validation" in images.note and str(data_folder) not in images.note


def test_images_are_read_one_at_a_time_and_again(data_folder):
    images = folder_gate_images(data_folder)
    first = next(iter(images))
    (data_folder / "images" / "image_3.png").unlink()  # not read yet
    assert next(iter(images)).sha256 == first.sha256


def test_a_split_without_images_is_an_error(data_folder):
    with pytest.raises(DataError, match="no image in split 'calibration'"):
        folder_gate_images(data_folder, "calibration")


def test_phantoms_repeat_and_differ_between_seeds():
    once, again, other = (list(phantom_gate_images(3, 64, seed)) for seed in (0, 0, 1))
    hashes = [image.sha256 for image in once]
    assert hashes == [image.sha256 for image in again]
    assert len({*hashes, *(image.sha256 for image in other)}) == 6
    assert len({image.name for image in [*once, *other]}) == 6
    assert once[0].pixels.shape == once[0].truth.shape == (64, 64)
    assert "not patients" in phantom_gate_images().note


def test_an_engine_smaller_than_any_phantom_gets_the_smallest_phantom():
    assert next(iter(phantom_gate_images(1, 32))).pixels.shape == (64, 64)


def test_enough_phantoms_are_taken_for_a_gate():
    from unetx_opt.metrics.gates import MINIMUM_IMAGES

    assert len(phantom_gate_images()) >= MINIMUM_IMAGES


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (65537, 0), (3, -1)], ids=["none", "too many", "negative seed"])
def test_impossible_sets_of_phantoms_are_refused(n, seed):
    with pytest.raises(DataError, match="phantoms"):
        phantom_gate_images(n, 64, seed)


def test_the_hash_is_of_the_values_their_type_and_their_shape():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    same = [pixels.copy(), np.asfortranarray(pixels), np.pad(pixels, 1)[1:-1, 1:-1]]
    assert {image_sha256(one) for one in same} == {image_sha256(pixels)}
    others = [pixels.reshape(4, 3), pixels.astype(np.uint16), pixels.T, pixels + np.uint8(1)]
    assert len({image_sha256(one) for one in [pixels, *others]}) == 5


def test_the_hash_does_not_depend_on_the_byte_order_in_memory():
    pixels = np.arange(12, dtype="<u2").reshape(3, 4)
    assert image_sha256(pixels) == image_sha256(pixels.astype(">u2"))


def test_the_hash_is_the_documented_one():
    # echo -ne 'uint8 1x2\n\x01\x02' | sha256sum
    expected = "1ee4f91a07b0e9233b5fb20b10a9ea1b2e565b7f737b4a03bb9d303c7132b691"
    assert image_sha256(np.array([[1, 2]], np.uint8)) == expected
