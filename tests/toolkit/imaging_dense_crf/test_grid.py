"""The grid backend against the definition of the CRF, and what must hold for any backend."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetx_kernels.dense_crf.reference import Energies, infer_mean_field
from unetx_opt.imaging.dense_crf import BACKENDS, CrfParameters, refine
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.imaging.postprocess import probabilities
from unetx_opt.metrics.overlap import dice

SMALL = CrfParameters(smoothness_sxy=1.5, bilateral_sxy=6.0, bilateral_srgb=25.0, bilateral_compat=4.0)


needs_grid, needs_peer, needs_cuda = (
    pytest.mark.skipif(row.why_not() is not None, reason=str(row.why_not())) for row in BACKENDS.values()
)
EACH = [
    pytest.param("grid", marks=needs_grid),
    pytest.param("pydensecrf", marks=needs_peer),
    pytest.param("cuda", marks=needs_cuda),
]


def _problem(seed: int, classes: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and an image of smooth patches with noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / generator.uniform(2, 9)) + np.cos(y / generator.uniform(2, 9))
    image = np.clip(128 + 50 * waves + generator.normal(size=waves.shape) * 6, 0, 255).astype(np.uint8)
    logits = generator.normal(size=(classes, height, width)) + 0.8 * waves * np.arange(classes)[:, None, None]
    return logits.astype(np.float32), image


def _film(seed: int, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, mask = chest_phantom(seed, size_px)
    noise = np.random.default_rng(seed).normal(size=mask.shape)
    return (4.0 * mask - 2.0 + 1.5 * noise).astype(np.float32)[np.newaxis], (pixels >> 4).astype(np.uint8)


def _expected(logits: np.ndarray, image: np.ndarray, parameters: CrfParameters) -> np.ndarray:
    both = np.concatenate([np.zeros_like(logits), logits]) if len(logits) == 1 else logits
    names = [field.name for field in dataclasses.fields(Energies)]
    energies = Energies(**{name: getattr(parameters, name) for name in names})
    inferred = infer_mean_field(both, image, energies, parameters.iterations)
    return inferred[1:] if len(logits) == 1 else inferred


@needs_grid
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(1, 8),
    height=st.integers(1, 29),
    width=st.integers(1, 29),
    widths=st.tuples(st.floats(0.7, 5), st.floats(4, 60), st.floats(9, 60)),
)
def test_the_grid_gives_the_definitions_probabilities(
    seed: int, classes: int, height: int, width: int, widths: tuple[float, float, float]
) -> None:
    smoothness_sxy, bilateral_sxy, bilateral_srgb = widths
    parameters = CrfParameters(smoothness_sxy, 2.0, bilateral_sxy, bilateral_srgb, 3.0, iterations=3)
    logits, image = _problem(seed, classes, height, width)
    found = refine(logits, image, parameters)
    assert np.abs(found.probabilities_khw - _expected(logits, image, parameters)).mean() < 0.01


@needs_grid
@pytest.mark.parametrize("bilateral_sxy", [0.5, 1.0, 2.0, 3.3], ids=lambda width: f"{width} px")
def test_widths_near_one_pixel_are_the_definitions_too(bilateral_sxy: float) -> None:
    logits, image = _problem(1, 2, 17, 21)
    parameters = dataclasses.replace(SMALL, bilateral_sxy=bilateral_sxy)
    found = refine(logits, image, parameters).probabilities_khw
    assert np.abs(found - _expected(logits, image, parameters)).mean() < 0.01


@needs_grid
def test_a_wide_smoothness_term_is_the_definitions_too() -> None:
    logits, image = _problem(2, 1, 40, 33)
    parameters = dataclasses.replace(SMALL, smoothness_sxy=14.0)
    found = refine(logits, image, parameters).probabilities_khw
    assert np.abs(found - _expected(logits, image, parameters)).mean() < 0.005


@needs_grid
@needs_peer
@pytest.mark.parametrize("seed", [1, 2])
def test_the_grid_is_nearer_to_the_definition_than_pydensecrf(seed: int) -> None:
    logits, image = _film(seed, 64)
    expected = _expected(logits, image, CrfParameters())
    error = {
        name: np.abs(refine(logits, image, backend=name).probabilities_khw - expected).mean()
        for name in ("grid", "pydensecrf")
    }
    assert error["grid"] < error["pydensecrf"] / 2
    assert error["grid"] < 2e-3


@needs_grid
@needs_peer
@pytest.mark.parametrize("size_px", [128, 256])
def test_the_grid_agrees_with_pydensecrf_on_a_phantom(size_px: int) -> None:
    logits, image = _film(5, size_px)
    masks = [refine(logits, image, backend=name).labels_hw for name in ("grid", "pydensecrf")]
    # What separates them is mostly the permutohedral lattice's own error, on logits as noisy as these.
    assert dice(*masks) >= 0.97


@needs_grid
@needs_peer
def test_the_grid_agrees_with_pydensecrf_on_four_classes() -> None:
    logits, image = _problem(3, 4, 60, 70)
    labels = [refine(logits, image, SMALL, backend=name).labels_hw for name in ("grid", "pydensecrf")]
    assert (labels[0] == labels[1]).mean() > 0.97


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_constant_on_all_logits_changes_nothing(backend: str, classes: int) -> None:
    logits, image = _problem(4, classes, 23, 31)
    plain = refine(logits, image, SMALL, backend=backend).probabilities_khw
    raised = refine(logits + np.float32(8), image, SMALL, backend=backend).probabilities_khw
    np.testing.assert_allclose(raised, plain, atol=2e-4)


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("classes", [2, 5])
def test_classes_in_another_order_give_results_in_that_order(backend: str, classes: int) -> None:
    logits, image = _problem(5, classes, 23, 31)
    order = np.roll(np.arange(classes), 1)
    plain = refine(logits, image, SMALL, backend=backend)
    moved = refine(logits[order], image, SMALL, backend=backend)
    np.testing.assert_allclose(moved.probabilities_khw, plain.probabilities_khw[order], atol=2e-4)


@pytest.mark.parametrize("backend", EACH)
@pytest.mark.parametrize("nothing", [{"smoothness_compat": 0.0, "bilateral_compat": 0.0}, {"iterations": 0}], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_without_terms_or_updates_it_is_the_softmax(backend: str, nothing: dict[str, float], classes: int) -> None:
    logits, image = _problem(6, classes, 9, 14)
    found = refine(logits, image, dataclasses.replace(SMALL, **nothing), backend=backend)
    np.testing.assert_allclose(found.probabilities_khw, probabilities(logits), atol=1e-6)


@pytest.mark.parametrize("backend", EACH)
def test_one_logit_is_two_classes_whose_first_is_zero(backend: str) -> None:
    logits, image = _problem(7, 1, 20, 11)
    one = refine(logits, image, SMALL, backend=backend)
    two = refine(np.concatenate([np.zeros_like(logits), logits]), image, SMALL, backend=backend)
    np.testing.assert_array_equal(one.probabilities_khw[0], two.probabilities_khw[1])
    np.testing.assert_array_equal(one.labels_hw, two.labels_hw)
    assert one.labels_hw.dtype == np.uint8


@needs_grid
def test_two_classes_as_one_logit_are_those_of_the_general_path() -> None:
    logits, image = _problem(8, 2, 25, 19)
    absent = np.full_like(logits[:1], -60)
    pair = refine(logits, image, SMALL).probabilities_khw
    triple = refine(np.concatenate([logits, absent]), image, SMALL).probabilities_khw
    np.testing.assert_allclose(triple[:2], pair, atol=1e-5)


@needs_grid
def test_extreme_logits_give_finite_probabilities() -> None:
    logits, image = _problem(9, 3, 12, 12)
    for values in (logits * np.float32(1e30), logits[:1] * np.float32(1e30)):
        found = refine(values, image, SMALL).probabilities_khw
        assert np.isfinite(found).all()


@needs_grid
def test_equal_inputs_give_equal_bits_in_several_threads() -> None:
    logits, image = _film(6, 96)
    expected = refine(logits, image).probabilities_khw.tobytes()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: refine(logits, image).probabilities_khw.tobytes(), range(8))
    assert set(found) == {expected}


@needs_grid
def test_the_inputs_are_left_as_they_were_and_may_be_views() -> None:
    logits, image = _problem(10, 2, 30, 40)
    before = logits.copy(), image.copy()
    strided = refine(logits[:, ::2, ::-1], image[::2, ::-1], SMALL).probabilities_khw
    packed = refine(logits[:, ::2, ::-1].copy(), image[::2, ::-1].copy(), SMALL).probabilities_khw
    np.testing.assert_array_equal(strided, packed)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(image, before[1])


@needs_grid
def test_memory_stays_within_a_few_images() -> None:
    logits, image = _film(8, 512)
    refine(logits, image)  # compiles
    tracemalloc.start()
    refine(logits, image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * logits.nbytes


@needs_grid
def test_two_processes_may_fill_one_cache_of_compiled_code(tmp_path: Path) -> None:
    program = (
        "import numpy as np; from unetx_opt.imaging.dense_crf import refine; "
        "z = np.linspace(-1, 1, 400, dtype='f4').reshape(1, 20, 20); "
        "print(refine(z, (z[0] * 90 + 99).astype('u1')).probabilities_khw.sum(dtype='f8'))"
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-c", program]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=200)[0] for process in started]
    printed.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert all(process.returncode == 0 for process in started)
    assert len(set(printed)) == 1
    assert float(printed[0]) > 0
    assert list(tmp_path.rglob("*.nbi"))
