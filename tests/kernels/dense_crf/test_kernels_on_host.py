"""dense_crf.cu on the host under sanitizers, against the definition in float64 and the processor's backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetx_kernels.dense_crf.launch import plan_launches
from unetx_kernels.dense_crf.plan import plan_crf, shared_levels
from unetx_kernels.dense_crf.reference import Energies, infer_mean_field
from unetx_kernels.errors import KernelError

USUAL = Energies(3.0, 3.0, 80.0, 13.0, 10.0)
SMALL = Energies(2.0, 2.0, 6.0, 25.0, 3.0)


def _scene(classes: int, height: int, width: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Noisy logits over an image with an edge."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.where(x + y > (height + width) / 2, 170, 60) + random.normal(scale=8, size=(height, width))
    logits = random.normal(scale=1.5, size=(classes, height, width))
    logits[-1] += np.where(x + y > (height + width) / 2, 1.0, -1.0)
    return logits.astype(np.float32), np.clip(image, 0, 255).astype(np.uint8)


def _on_host(crf: Any, scene: Any, energies: Energies, iterations: int) -> NDArray[np.float32]:
    logits, image = scene
    plan = plan_crf(image.shape, energies, int(image.max()) + 1)
    done, found = crf.infer(logits, image, plan, iterations)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return found


@pytest.mark.parametrize("energies", [USUAL, SMALL], ids=["usual", "small"])
@pytest.mark.parametrize(("classes", "size"), [(2, (31, 45)), (3, (24, 17)), (8, (9, 13))])
def test_the_kernels_do_what_the_processors_backend_does(
    crf: Any, classes: int, size: tuple[int, int], energies: Energies
) -> None:
    pytest.importorskip("numba", reason="the processor's backend is compiled by numba")
    from unetx_opt.imaging.dense_crf import CrfParameters, refine

    scene = _scene(classes, *size)
    names = ("smoothness_sxy", "smoothness_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat")
    parameters = CrfParameters(**{name: getattr(energies, name) for name in names}, iterations=5)
    expected = refine(*scene, parameters).probabilities_khw
    np.testing.assert_allclose(_on_host(crf, scene, energies, 5), expected, atol=2e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_kernels_are_near_the_sum_over_all_pairs(crf: Any, classes: int) -> None:
    scene = _scene(classes, 28, 33)
    exact = infer_mean_field(*scene, SMALL, 5)
    found = _on_host(crf, scene, SMALL, 5)
    assert np.mean(found.argmax(0) == exact.argmax(0)) > 0.99
    assert np.abs(found - exact).mean() < 0.01


@settings(max_examples=15)
@given(
    shape=st.tuples(st.integers(2, 8), st.integers(1, 20), st.integers(1, 20)),
    compats=st.tuples(st.sampled_from([0.0, 2.0]), st.sampled_from([0.0, 3.0])),
    widths=st.tuples(st.floats(0.5, 20), st.floats(2, 30), st.floats(3, 60)),
)
def test_any_size_keeps_inside_its_buffers_and_gives_probabilities(
    crf: Any, shape: tuple[int, int, int], compats: tuple[float, float], widths: tuple[float, float, float]
) -> None:
    scene = _scene(*shape)
    energies = Energies(widths[0], compats[0], widths[1], widths[2], compats[1])
    found = _on_host(crf, scene, energies, 2)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(0), 1.0, atol=1e-5)
    if compats == (0.0, 0.0):
        exact = np.exp(scene[0].astype(np.float64))
        np.testing.assert_allclose(found, exact / exact.sum(0), atol=1e-6)


def test_no_order_of_the_threads_changes_a_bit_of_the_result(crf: Any) -> None:
    scene = _scene(3, 24, 37)
    plan = plan_crf((24, 37), USUAL)
    _, forwards = crf.infer(*scene, plan, 2)
    done, backwards = crf.infer(*scene, plan, 2, -1)
    assert done.returncode == 0
    assert forwards.tobytes() == backwards.tobytes()


def test_room_for_levels_that_an_image_does_not_have_changes_no_bit(crf: Any) -> None:
    logits, image = _scene(3, 24, 37)
    image = np.minimum(image, 150)
    assert shared_levels(image.shape, USUAL, 151) == 256
    found = [crf.infer(logits, image, plan_crf(image.shape, USUAL, levels), 2)[1] for levels in (151, 256)]
    assert found[0].tobytes() == found[1].tobytes()


def test_a_grid_that_would_be_coarser_with_every_level_keeps_the_images_own() -> None:
    narrow = Energies(2.0, 2.0, 1.0, 25.0, 3.0)
    assert shared_levels((300, 300), narrow, 5) == 5
    assert plan_crf((300, 300), narrow, 5).bin_width < plan_crf((300, 300), narrow).bin_width


def test_a_node_of_more_pixels_than_one_sum_holds_is_that_of_the_processors_backend(crf: Any) -> None:
    pytest.importorskip("numba", reason="the processor's backend is compiled by numba")
    from unetx_opt.imaging.dense_crf import CrfParameters, refine

    scene = _scene(2, 104, 101)
    wide = Energies(1.0, 0.0, 300.0, 40.0, 10.0)
    assert len(plan_crf((104, 101), wide).rows.starts) == 2
    expected = refine(*scene, CrfParameters(1.0, 0.0, 300.0, 40.0, 10.0, iterations=2)).probabilities_khw
    np.testing.assert_allclose(_on_host(crf, scene, wide, 2), expected, atol=2e-5)


def test_messages_of_very_small_probabilities_are_zero_and_not_overflow(crf: Any) -> None:
    logits, image = _scene(8, 12, 11)
    logits[1:] -= 300.0
    found = _on_host(crf, (logits, image), SMALL, 2)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], 1.0, atol=1e-6)


def test_a_planted_missing_barrier_is_found(crf: Any) -> None:
    scene = _scene(2, 24, 40)
    plan = plan_crf((24, 40), SMALL)
    _, right = crf.infer(*scene, plan, 2)
    done, wrong = crf.infer(*scene, plan, 2, 1)
    assert done.returncode == 0
    assert np.abs(right - wrong).max() > 0.01


def test_a_planted_read_beyond_the_image_is_found(crf: Any) -> None:
    scene = _scene(2, 24, 40)
    done, _ = crf.infer(*scene, plan_crf((24, 40), SMALL), 2, 3)
    assert done.returncode != 0
    assert b"AddressSanitizer: heap-buffer-overflow" in done.stderr


def test_the_plan_is_that_of_the_processors_backend() -> None:
    pytest.importorskip("numba", reason="the processor's backend is compiled by numba")
    from unetx_opt.imaging.dense_crf.compiled import compiled_loops
    from unetx_opt.imaging.dense_crf.lattice import make_bilateral

    image = _scene(2, 150, 211)[1]
    plan = plan_crf(image.shape, USUAL, int(image.max()) + 1)
    other = make_bilateral(compiled_loops(), image, USUAL.bilateral_sxy, USUAL.bilateral_srgb / 3**0.5)
    assert plan.bins == other.bins
    np.testing.assert_array_equal(image // plan.bin_width, other.bins_hw)
    np.testing.assert_array_equal(plan.level_taps, other.bin_taps)
    for mine, theirs in ((plan.rows, other.rows), (plan.columns, other.columns)):
        np.testing.assert_array_equal(mine.starts, theirs.starts)
        np.testing.assert_array_equal(mine.weights, theirs.weights)
        np.testing.assert_array_equal(mine.taps, theirs.taps)


def test_one_iteration_is_five_launches_and_the_norms_six() -> None:
    norms, inference = plan_launches(plan_crf((512, 512), USUAL), 2, 5)
    assert len(norms) == 6
    assert len(inference) == 1 + 5 * 5
    assert all(launch.blocks < 2**31 for launch in (*norms, *inference))


@pytest.mark.parametrize(("classes", "iterations"), [(1, 5), (9, 5), (2, 0)])
def test_what_no_kernel_computes_is_refused(classes: int, iterations: int) -> None:
    with pytest.raises(KernelError, match="expected 2 to 8 and at least 1"):
        plan_launches(plan_crf((8, 8), USUAL), classes, iterations)


def test_an_image_whose_pixels_no_32_bit_number_counts_is_refused() -> None:
    plan = plan_crf((33_000, 33_000), Energies(3.0, 3.0, 4000.0, 13.0, 10.0))
    with pytest.raises(KernelError, match="below 2147483648 values"):
        plan_launches(plan, 2, 1)


def test_a_grid_beyond_memory_is_refused() -> None:
    with pytest.raises(KernelError, match="raise bilateral_sxy"):
        plan_crf((60_000, 60_000), Energies(3.0, 3.0, 0.5, 0.5, 1.0))
