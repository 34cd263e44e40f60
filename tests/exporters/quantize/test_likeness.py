"""Calibration images that are unlike those of the gate are told from those that are alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_exporters.gate_images import folder_gate_images
from unetx_exporters.quantize.likeness import grey_statistics, likeness_warnings, stability_index
from unetx_opt.errors import DataError
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.specs import InputContract

CONTRACT = InputContract(height=64, width=64)


def phantoms(first: int, count: int) -> Iterator[np.ndarray]:
    for seed in range(first, first + count):
        yield prepare_image(chest_phantom(seed, size_px=64)[0], CONTRACT)[0][np.newaxis]


def test_two_sets_of_phantoms_are_alike() -> None:
    assert likeness_warnings(grey_statistics(phantoms(0, 24)), grey_statistics(phantoms(500, 24))) == ()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: 1.0 - x, "median"),
        (lambda x: 0.3 * x, "bright end"),
        (lambda x: np.roll(x, 1, -1) * 0.5 + 0.5, "mean"),
        (lambda x: np.repeat(x[..., ::8], 8, -1), "sharpness"),
    ],
    ids=["inverted", "dark", "bright", "coarse"],
)
def test_changed_images_are_warned_about(change: object, word: str) -> None:
    assert callable(change)
    gate = grey_statistics(phantoms(500, 24))
    warnings = likeness_warnings(grey_statistics(map(change, phantoms(0, 24))), gate)
    assert any(word in warning for warning in warnings), warnings


def test_splits_of_one_data_set_are_alike_and_phantoms_are_not(lungs: Path) -> None:
    def split(name: str) -> Iterator[np.ndarray]:
        images = folder_gate_images(lungs, name)
        for index in range(24):
            yield prepare_image(images.read(index).pixels, CONTRACT)[0][np.newaxis]

    gate = grey_statistics(split("validation"))
    assert likeness_warnings(grey_statistics(split("calibration")), gate) == ()
    assert likeness_warnings(grey_statistics(phantoms(0, 24)), gate) != ()


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3))
def test_the_stability_index_is_0_for_equal_shares_and_positive_and_symmetric_otherwise(
    one: list[float], other: list[float]
) -> None:
    p, q = (np.array(shares) / sum(shares) for shares in (one, other))
    assert stability_index(p, p) == 0.0
    assert stability_index(p, q) == pytest.approx(stability_index(q, p))
    assert stability_index(p, q) == pytest.approx(sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True)))


def test_too_few_images_tell_nothing_and_none_is_an_error() -> None:
    few = grey_statistics(1.0 - image for image in phantoms(0, 3))
    assert likeness_warnings(few, grey_statistics(phantoms(500, 24))) == ()
    with pytest.raises(DataError):
        grey_statistics([])


def test_the_record_is_plain_json() -> None:
    record = grey_statistics(phantoms(0, 5)).to_json()
    assert json.loads(json.dumps(record)) == record
    assert record["images"] == 5
