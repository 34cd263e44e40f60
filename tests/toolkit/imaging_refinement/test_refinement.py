"""Steps after the network: the dense CRF through the one path that runtime, gate and evaluation share."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetx_kernels.dense_crf.reference import Energies, infer_mean_field
from unetx_opt import optional
from unetx_opt.errors import MissingPackageError, SpecError
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters
from unetx_opt.imaging.postprocess import label_mask, restore_logits
from unetx_opt.imaging.preprocess import prepare_image
from unetx_opt.imaging.refinement import (
    STEPS,
    Refiner,
    crf_step_parameters,
    decide_labels,
    make_refiner,
    step_grey,
)
from unetx_opt.imaging.resize import resize_plane
from unetx_opt.models.variants import VARIANTS
from unetx_opt.specs import InputContract

SIDE = 40
CONTRACT = InputContract(height=SIDE, width=SIDE)
PARAMETERS = CrfParameters(1.5, 2.0, 6.0, 25.0, 4.0, iterations=3)
needs_grid, needs_peer, needs_cuda = (
    pytest.mark.skipif(row.why_not() is not None, reason=str(row.why_not())) for row in BACKENDS.values()
)
EACH = [
    pytest.param("grid", marks=needs_grid),
    pytest.param("pydensecrf", marks=needs_peer),
    pytest.param("cuda", marks=needs_cuda),
]


def film(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Smooth 12-bit waves with noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = np.sin(9 * columns) + np.cos(7 * rows)
    return np.asarray(2000 + 700 * waves + random.normal(0, 60, waves.shape)).clip(0, 4095).astype(np.uint16)


def noisy_logits(image_chw: np.ndarray, classes: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    slopes = np.arange(1, classes + 1, dtype=np.float32)[:, None, None]
    return (slopes * (4 * image_chw - 2) + random.normal(0, 1.2, (classes, SIDE, SIDE))).astype(np.float32)


def refiner(
    backend: str = "grid", contract: InputContract = CONTRACT, grid_px: int = SIDE, **changes: Any
) -> Refiner:
    values = crf_step_parameters(dataclasses.replace(PARAMETERS, **changes), grid_px)
    return make_refiner("dense_crf", values, contract, backend)


def expected_probabilities(logits: np.ndarray, grey: np.ndarray, parameters: CrfParameters) -> np.ndarray:
    """The float64 definition; one logit is two classes whose first is 0."""
    both = np.concatenate([np.zeros_like(logits), logits]) if len(logits) == 1 else logits
    energies = Energies(**{field.name: getattr(parameters, field.name) for field in dataclasses.fields(Energies)})
    return infer_mean_field(both, grey, energies, parameters.iterations)


def odds(probabilities: np.ndarray) -> np.ndarray:
    return np.exp(probabilities) / (1 + np.exp(probabilities))


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, 30), (25, SIDE)], ids=str)
def test_a_step_gives_the_definitions_labels_on_the_networks_grid(backend: str, shape: tuple[int, int]) -> None:
    image_chw, geometry = prepare_image(film(*shape), CONTRACT)
    logits = noisy_logits(image_chw, 1)
    rows = slice(geometry.top, geometry.top + geometry.scaled_height)
    columns = slice(geometry.left, geometry.left + geometry.scaled_width)
    seen = image_chw[0, rows, columns]
    grey = np.array([[round(255 * float(value)) for value in row] for row in seen], dtype=np.uint8)
    wanted = expected_probabilities(logits[:, rows, columns], grey, PARAMETERS)
    refined = refiner(backend).refine(logits, image_chw, geometry)
    assert refined.shape == logits.shape and refined.dtype == np.float32
    # The permutohedral lattice has an error of its own.
    limit = 0.01 if backend == "grid" else 0.05
    assert np.abs(odds(refined[0, rows, columns].astype(np.float64)) - wanted[1]).mean() < limit
    labels = decide_labels(logits, image_chw, geometry, refiner(backend))
    assert labels.shape == shape
    agreement = float((labels == (wanted[1] > wanted[0])).mean())
    assert agreement > (0.99 if backend == "grid" else 0.96)
    assert (label_mask(restore_logits(logits, geometry)) != labels).mean() > 0.03, "the step must matter here"


@needs_grid
def test_several_classes_are_refined_together() -> None:
    image_chw, geometry = prepare_image(film(SIDE, SIDE), CONTRACT)
    logits = noisy_logits(image_chw, 4)
    wanted = expected_probabilities(logits, step_grey(image_chw[0], CONTRACT), PARAMETERS)
    labels = decide_labels(logits, image_chw, geometry, refiner())
    assert (labels == wanted.argmax(0)).mean() > 0.98
    assert set(np.unique(labels)) > {0}


@needs_grid
def test_the_padding_takes_no_part() -> None:
    image_chw, geometry = prepare_image(film(SIDE, 20), CONTRACT)
    logits = noisy_logits(image_chw, 1)
    other_image, other_logits = image_chw.copy(), logits.copy()
    other_image[:, :, : geometry.left] = 1.0
    other_logits[:, :, : geometry.left] = 50.0
    before = logits.copy()
    found = [
        refiner().refine(one, image, geometry) for one, image in ((logits, image_chw), (other_logits, other_image))
    ]
    inside = (slice(None), slice(None), slice(geometry.left, geometry.left + geometry.scaled_width))
    np.testing.assert_array_equal(found[0][inside], found[1][inside])
    np.testing.assert_array_equal(found[1][:, :, : geometry.left], other_logits[:, :, : geometry.left])
    np.testing.assert_array_equal(logits, before)


@needs_grid
def test_a_larger_source_image_gives_the_same_mask_brought_to_its_size() -> None:
    source = film(SIDE, SIDE)
    doubled = source.repeat(4, axis=0).repeat(4, axis=1)
    image_chw, _ = prepare_image(source, CONTRACT)
    logits = noisy_logits(image_chw, 1)
    _, geometry = prepare_image(doubled, CONTRACT)
    refined = refiner().refine(logits, image_chw, geometry)
    labels = decide_labels(logits, image_chw, geometry, refiner())
    np.testing.assert_array_equal(labels, resize_plane(refined[0], 4 * SIDE, 4 * SIDE) > 0)


@needs_grid
def test_widths_are_scaled_with_the_networks_input() -> None:
    image_chw, geometry = prepare_image(film(SIDE, SIDE), CONTRACT)
    logits = noisy_logits(image_chw, 1)
    here = refiner(smoothness_sxy=1.5, bilateral_sxy=6.0)
    elsewhere = refiner(grid_px=4 * SIDE, smoothness_sxy=6.0, bilateral_sxy=24.0)
    np.testing.assert_array_equal(
        here.refine(logits, image_chw, geometry), elsewhere.refine(logits, image_chw, geometry)
    )
    unscaled = refiner(grid_px=SIDE, smoothness_sxy=6.0, bilateral_sxy=24.0)
    assert not np.array_equal(here.refine(logits, image_chw, geometry), unscaled.refine(logits, image_chw, geometry))


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (-0.5, 3.0)], ids=str)
def test_the_grey_of_a_step_does_not_depend_on_the_networks_value_range(value_range: tuple[float, float]) -> None:
    pixels = film(SIDE, SIDE)
    contract = InputContract(height=SIDE, width=SIDE, value_range=value_range)
    grey = step_grey(prepare_image(pixels, contract)[0][0], contract)
    low, high = np.percentile(pixels, [0.5, 99.5])
    wanted = 255 * np.clip((pixels - low) / (high - low), 0, 1)
    assert grey.dtype == np.uint8 and grey.min() == 0 and grey.max() == 255
    assert np.abs(grey - wanted).max() <= 0.501


@needs_grid
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-6, 1.0, 30.0, 1e4]), classes=st.integers(1, 3))
def test_refined_logits_are_finite_and_decide_as_the_labels_of_the_crf_do(
    seed: int, scale: float, classes: int
) -> None:
    from unetx_opt.imaging.dense_crf import refine

    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(classes, 9, 13))).astype(np.float32)
    image = random.integers(0, 256, (9, 13), dtype=np.uint8)
    found = refine(logits, image, PARAMETERS)
    assert np.isfinite(found.logits_khw).all()
    assert found.logits_khw.shape == logits.shape
    np.testing.assert_array_equal(label_mask(found.logits_khw), found.labels_hw)


@pytest.mark.parametrize("shape", [(16, 900), (900, 16)], ids=str)
@pytest.mark.parametrize("backend", EACH)
def test_an_image_that_is_one_pixel_high_in_the_network_is_refined(backend: str, shape: tuple[int, int]) -> None:
    image_chw, geometry = prepare_image(film(*shape), CONTRACT)
    labels = decide_labels(noisy_logits(image_chw, 1), image_chw, geometry, refiner(backend))
    assert labels.shape == shape


def test_logits_that_are_not_finite_are_decided_as_without_a_step() -> None:
    image_chw, geometry = prepare_image(film(SIDE, SIDE), CONTRACT)
    logits = noisy_logits(image_chw, 1)
    logits[0, 3, 4] = np.nan

    def run(logits_khw: np.ndarray, image_hw: np.ndarray) -> np.ndarray:
        raise AssertionError("must not be called")

    step = Refiner("dense_crf", {}, CONTRACT, run)
    np.testing.assert_array_equal(decide_labels(logits, image_chw, geometry, step), label_mask(logits))


def test_every_step_of_a_variant_is_in_the_table() -> None:
    assert {row.postprocess for row in VARIANTS.values()} - {None} == set(STEPS)


WHOLE = crf_step_parameters(PARAMETERS, 256)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("sharpen", WHOLE, "unknown step 'sharpen', this version has dense_crf: update unetx-opt"),
        ("dense_crf", {}, r"missing \['bilateral_compat', .*'grid_px'.*\], unknown \[\]"),
        ("dense_crf", WHOLE | {"theta": 1.0}, r"missing \[\], unknown \['theta'\]"),
        ("dense_crf", WHOLE | {"iterations": 2.5}, "iterations is 2.5, expected a whole number"),
        ("dense_crf", WHOLE | {"iterations": 101.0}, "iterations is 101, expected a number from 0 to 100"),
        ("dense_crf", WHOLE | {"grid_px": 0.0}, "grid_px is 0, expected 16 to 8192"),
        ("dense_crf", WHOLE | {"bilateral_sxy": -1.0}, "bilateral_sxy is -1.0, expected a number from 0.5"),
        ("dense_crf", WHOLE | {"bilateral_compat": float("nan")}, "bilateral_compat is nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_step_that_cannot_run_is_one_clear_line(name: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make_refiner(name, parameters, CONTRACT)
    assert "\n" not in str(caught.value)


def test_an_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="unknown CRF backend 'gpu', expected one of grid, pydensecrf, cuda"):
        make_refiner("dense_crf", WHOLE, CONTRACT, "gpu")


@pytest.mark.parametrize(("backend", "extra"), [("grid", "crf"), ("pydensecrf", "crf-reference")])
def test_a_missing_package_names_the_extra_before_an_image_is_read(
    backend: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetx_opt.imaging.dense_crf import backends

    monkeypatch.setattr(backends, "find", lambda module: False)
    with pytest.raises(MissingPackageError, match=rf"pip install 'unetx-opt\[{extra}\]'"):
        make_refiner("dense_crf", WHOLE, CONTRACT, backend)
    assert optional.EXTRAS["numba"] == "crf"


widths = st.floats(0.5, 10_000)
compats = st.floats(0, 1e4)


@needs_grid
@given(
    values=st.builds(CrfParameters, widths, compats, widths, widths, compats, st.integers(0, 100)),
    grid_px=st.integers(16, 8192),
)
def test_any_parameters_bind_as_they_were_written(values: CrfParameters, grid_px: int) -> None:
    from unetx_opt.imaging.refinement import _read_crf_parameters

    assert _read_crf_parameters(crf_step_parameters(values, grid_px)) == (values, grid_px)


def test_the_table_of_steps_imports_no_compiler() -> None:
    program = (
        "import sys, unetx_opt.imaging.refinement; "
        "sys.exit(str({'numba', 'pydensecrf', 'torch'} & set(sys.modules) or '') or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
